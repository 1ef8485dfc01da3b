"""The test kit's own edges: what it says when it is used on something that did not work."""

from itertools import combinations

import numpy as np
import pytest

from secagg.aggregator import Aggregator
from secagg.errors import PolicyRefused, ProtocolError, StaleState, Step, TooFewSurvivors
from secagg.messages import (
    AgreedView,
    Answer,
    KeyDirectory,
    Quorum,
    ShareKeys,
    ShareKeysBody,
    Signed,
    Unmask,
)
from secagg.records import encode
from secagg.result import Result
from secagg.spool import MemorySpool
from secagg.testing import (
    Silence,
    SimulatedTenant,
    SteppedNetwork,
    ckks_deviations,
    cohort,
    make_round,
    make_tenants,
    participant_conformance,
)
from secagg.testing.aggregator_conformance import CoreAggregator, HostedAggregator
from secagg.testing.coalition import Coalition, Mark
from secagg.testing.deviations import (
    DeviatingTenant,
    OffPolynomial,
    OtherKind,
    RandomUpload,
    TwoFaced,
)
from secagg.testing.host import CoreHost, HostedTenant, Refused
from secagg.testing.invariants import (
    InvariantBroken,
    Witness,
    check_invariants,
    check_opened_exactly,
)
from secagg.testing.stage import setup, small
from secagg.testing.strategies import sparse_sizes
from secagg.testing.transport_conformance import impostor


def test_a_round_that_opened_nothing_has_no_sum() -> None:
    network = make_round(4, faults=[Silence("t000", None), Silence("t001", None)])
    outcome = network.run()
    assert isinstance(outcome.error, TooFewSurvivors)
    with pytest.raises(AssertionError, match="nothing was opened"):
        _ = outcome.opened
    with pytest.raises(AssertionError, match="has submitted nothing"):
        network.expected_levels(["t002"])


def test_the_least_sparse_plans_are_found_by_search() -> None:
    """With a colluder four tenants are the fewest, and five the fewest that stand a lost holder."""
    assert [sparse_sizes(n) for n in (3, 4, 5)] == [(), ((1, 2), (1, 3)), ((1, 3), (1, 4))]
    room = {
        (n, k): k - cohort(n).plan(1, max_colluders=f, neighbours=k).share_threshold
        for n in (4, 5)
        for f, k in sparse_sizes(n)
    }
    assert room == {(4, 2): 0, (4, 3): 0, (5, 3): 0, (5, 4): 1}


# ---------------------------------------------------------------------------- coalitions


def test_a_tenant_that_refuses_the_plan_is_no_mark() -> None:
    coalition = Coalition(cohort(4), cohort(4).plan(3), [3])
    for tenant in coalition.tenants.values():
        tenant.ledger.join(tenant.identity.public_key, bytes(32), 9)
    assert coalition.marks() == []


def test_an_upload_before_its_time_is_refused() -> None:
    coalition = Coalition(cohort(4), cohort(4).plan(3), [3])
    (mark, *_) = coalition.marks()
    assert not coalition.upload(mark)
    assert mark.errors


def test_a_state_that_the_ledger_has_overtaken_makes_no_process() -> None:
    coalition = Coalition(cohort(4), cohort(4).plan(3), [3])
    (mark, *others) = coalition.marks()
    assert others
    assert coalition.tell(mark, coalition.directory(range(4)))
    assert coalition.fork(mark, 0) is None
    assert coalition.fork(mark, 1) is not None


@pytest.mark.parametrize("message", [AgreedView(()), Quorum(())])
def test_what_is_accepted_out_of_order_breaks_an_invariant(message: object) -> None:
    coalition = Coalition(cohort(4), cohort(4).plan(3), [3])
    with pytest.raises(InvariantBroken, match="out of order"):
        coalition.note(Mark(0, coalition.tenants["t000"]), message)


def test_what_no_participant_says_breaks_an_invariant() -> None:
    coalition = Coalition(cohort(4), cohort(4).plan(3), [3])
    for data in (encode(KeyDirectory(())),):
        with pytest.raises(InvariantBroken, match="no participant's message"):
            coalition.hear(Mark(0, coalition.tenants["t000"]), [data])
        with pytest.raises(InvariantBroken, match="no participant's message"):
            Witness(coalition.plan).see("t000", "advertise_keys", data)


def test_a_colluder_deals_to_a_u1_only_if_enough_of_those_it_drew_are_in_it() -> None:
    plan = cohort(6).plan(3, max_colluders=1, neighbours=4)
    dealt = set()
    for colluder in range(6):
        coalition = Coalition(cohort(6), plan, [colluder])
        mark = coalition.marks()[0]
        for members in combinations(range(6), 4):
            if {colluder, mark.index} <= set(members):
                mark.directory = coalition.directory(members)
                dealt.add(coalition.dealing(mark, colluder) is not None)
    assert dealt == {True, False}


# ---------------------------------------------------------------------------- hosts


def test_a_host_that_lost_its_state_refuses() -> None:
    host = CoreHost(setup(small()))
    host.offer(small().encode())
    host._tenant._exports.clear()
    host.restart()
    host._tenant._exports.append(b"")
    with pytest.raises(Refused, match="lost its state"):
        host.receive(b"")


def test_a_tenant_sends_under_its_own_name() -> None:
    (tenant, *_) = make_round(4).tenants.values()
    assert tenant.name_for(b"anything") == tenant.name


def test_one_that_opens_the_other_kind_has_nothing_left_when_asked_again() -> None:
    network = make_round(5, kinds={"t001": OtherKind})
    network.run()
    tenant = network.tenants["t001"]
    (quorum,) = {one.data for one in network.sent if one.label == "quorum"}
    (again,) = tenant.receive(quorum)
    entries = tenant.ledger.entries(tenant.identity.public_key, network.plan.context)
    assert again == entries[-1].message


def test_a_hosted_aggregator_refuses_as_an_aggregator_does() -> None:
    plan = cohort(4).plan(3)
    host = CoreAggregator(plan.encode(), cohort(4).roster.encode())
    aggregator = HostedAggregator(host, plan, cohort(4).roster)
    for act in (
        lambda: aggregator.receive("t000", b"", 0.0),
        lambda: aggregator.absorb("t000", 0, b"x"),
        lambda: aggregator.committed("t000"),
    ):
        with pytest.raises(ProtocolError):
            act()


def test_a_hosted_tenant_hears_of_its_deadline() -> None:
    plan = small()
    (_, like, *_) = make_round(6, plan=plan).tenants.values()
    hosted = HostedTenant(CoreHost(setup(plan)), like)
    assert hosted.offer(plan.encode())
    hosted.on_deadline()
    with pytest.raises(Refused):
        hosted.receive(encode(KeyDirectory(())))


def test_a_dealing_is_not_said_twice() -> None:
    network = make_round(4, kinds={"t001": TwoFaced})
    deviating = network.tenants["t001"]
    assert isinstance(deviating, TwoFaced)
    with pytest.raises(TypeError):
        deviating.deviate(ShareKeysBody((), bytes(32), bytes(32)))


def test_a_sum_with_random_bytes_in_it_is_not_compared() -> None:
    network = make_round(4, kinds={"t001": RandomUpload})
    plan = network.plan
    assert network.run().result is None
    zeros = np.zeros(plan.layout.size, np.int64)
    network.aggregator.result = Result(plan.cohort, zeros, 4, plan.quantiser, plan.max_weight)
    check_opened_exactly(network, ["t001"])
    with pytest.raises(AssertionError):
        check_opened_exactly(network)


class ForeignLedger(SimulatedTenant):
    """Its ledger has the leaf of another upload."""

    def submit(self) -> list[bytes]:
        messages = super().submit()
        context = self.running.plan.context
        self.ledger.record_leaves(self.identity.public_key, context, 0, [bytes(32)])
        return messages


def test_a_tenant_whose_ledger_knows_another_upload_sends_nothing() -> None:
    network = make_round(4, kinds={"t001": ForeignLedger})
    assert "t001" not in network.run().opened.survivors
    assert isinstance(network.tenants["t001"].failure, StaleState)
    assert not [one for one in network.sent if (one.tenant, one.label) == ("t001", "upload_chunk")]


# ---------------------------------------------------------------------------- stepped networks


def stepped() -> SteppedNetwork:
    honest = make_round(4)
    network = SteppedNetwork(honest.aggregator, honest.tenants.values())
    network.begin()
    return network


def test_a_lost_piece_of_an_upload_is_sent_again() -> None:
    network = stepped()
    lost = False
    while network.waiting:
        if network.waiting[0].label == "upload_chunk" and not lost:
            network.lose(0)
            lost = True
        else:
            network.deliver(0)
    assert lost
    assert len(network.outcome.opened.survivors) == 4


def test_two_processes_that_upload_at_once_send_the_same_bytes() -> None:
    network = stepped()
    twins: list[SimulatedTenant] = []
    while network.waiting:
        uploading = network.waiting[0].label == "upload_chunk"
        if uploading and network.waiting[0].tenant == "t001" and not twins:
            twins.append(network.fork("t001", network.tenants["t001"].exports - 1))
        for place, envelope in enumerate(network.waiting):
            if twins and envelope.label == "survivor_set" and envelope.tenant == "t001":
                assert network.deliver_to_twin(place, twins[0])
        network.deliver(0)
    assert [twin.life for twin in twins] == [1]
    assert {one.life for one in network.sent if one.tenant == "t001" and one.up} == {0, 1}
    assert "t001" in network.outcome.opened.survivors
    check_invariants(network)


def test_a_message_for_somebody_else_does_not_reach_a_second_process() -> None:
    network = stepped()
    while not network.tenants["t001"].exports:
        network.deliver(0)
    twin = network.fork("t001", 0)
    others = [place for place, one in enumerate(network.waiting) if one.tenant != "t001"]
    assert not network.deliver_to_twin(others[0], twin)


def test_a_tenant_that_is_refused_stays_where_it_is() -> None:
    network = stepped()
    with pytest.raises(PolicyRefused):
        network.tenants["t001"].offer(cohort(5).plan(3).encode())
    assert network.aggregator.step is Step.ADVERTISE_KEYS


def test_a_process_that_is_gone_is_not_handed_its_last_message_again() -> None:
    """It came back, and was gone before it heard anything."""
    members = cohort(4)
    plan = members.plan(8)
    tenants = make_tenants(members, plan)
    network = SteppedNetwork(
        Aggregator(plan, members.roster, spool=MemorySpool()), tenants.values()
    )
    network.begin()
    while not any(one.label == "share_keys" for one in network.waiting):
        network.deliver(0)
    name = next(one.tenant for one in network.waiting if one.label == "share_keys")
    network._restart(tenants[name], "same")
    network.silence(name)
    said = len(network.sent)
    network._settle()
    assert len(network.sent) == said


def test_an_impostor_speaks_in_its_victims_name_first() -> None:
    members = cohort(4)
    plan = members.plan(8)
    kinds = {"t000": impostor(members.identity("t001"))}
    tenant = make_tenants(members, plan, kinds=kinds)["t000"]
    first, second = tenant.offer(plan.encode())
    assert isinstance(tenant, kinds["t000"])
    assert [tenant.name_for(first), tenant.name_for(second)] == ["t001", "t000"]  # type: ignore[attr-defined]


def asked_again(kind: type[DeviatingTenant], **state: object) -> DeviatingTenant:
    """A tenant without a round, as if it had nothing left of it."""
    tenant = object.__new__(kind)
    for name, value in state.items():
        setattr(tenant, name, value)
    return tenant


def test_deviating_tenants_that_are_asked_again_say_what_they_said() -> None:
    body = Unmask(bytes(32), (Answer(0, 0, bytes(33), bytes(32)),))
    assert asked_again(OtherKind, _held=())._answering(body) == body  # type: ignore[attr-defined]
    dealing = ShareKeys(Signed("share_keys", 0, b"", bytes(64)), ())
    dealer = asked_again(OffPolynomial, _before=None, _directory=None)
    assert dealer.deal(dealing) is dealing
    outsider = asked_again(ckks_deviations.DoubledSum)
    assert outsider._answering(Unmask(bytes(32), ())) == Unmask(bytes(32), ())  # type: ignore[attr-defined]


def test_an_upload_that_nobody_spoils_is_an_honest_one() -> None:
    plan = cohort(5).plan(4, scheme="ckks")
    network = make_round(5, plan=plan, kinds={"t001": ckks_deviations.SpoiltUpload})
    network.run()
    assert network.outcome.opened.survivors == plan.cohort


def test_a_sum_of_shares_of_another_size_is_none() -> None:
    plan = cohort(5).plan(4, scheme="ckks")
    with pytest.raises(InvariantBroken, match="no sum of shares"):
        participant_conformance._check_one_sum(plan, Unmask(bytes(32), (), b"short"))
