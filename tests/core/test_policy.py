"""A participant takes part in what its own policy allows, and says which clause does not hold."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from secagg.errors import ConfigError, PolicyRefused
from secagg.identity import Identity, Member, Roster
from secagg.ledger import MemoryLedger
from secagg.participant import Participant
from secagg.plan import SUITES, RoundPlan
from secagg.policy import MAX_ROUND_JUMP, Policy
from secagg.testing import SeededRandomness, cohort, make_round

MEMBERS = cohort(7)
ME = MEMBERS.identities[1]
ALLOWED = MEMBERS.plan(max_weight=50)  # n = 7, f = 2, t = q = 5
STRICT = Policy(
    MEMBERS.roster.digest,
    max_colluders=2,
    min_survivors=5,
    min_cohort=7,
    min_threshold=5,
    model_digests=frozenset({ALLOWED.model_digest}),
    layout_digests=frozenset({ALLOWED.layout.digest}),
    max_clip=1.0,
    max_weight=50,
    max_length=8,
)


def participant(plan: RoundPlan, policy: Policy = STRICT, last: int = 0) -> Participant:
    ledger = MemoryLedger()
    if last:
        ledger.join(ME.public_key, bytes(32), last)
    return Participant(
        plan, identity=ME, roster=MEMBERS.roster, policy=policy, ledger=ledger,
        randomness=SeededRandomness("policy"),
    )  # fmt: skip


def test_a_plan_at_every_limit_is_accepted() -> None:
    assert participant(ALLOWED).start()


REFUSED: dict[str, Callable[[], RoundPlan]] = {
    "max_colluders": lambda: MEMBERS.plan(max_weight=50, max_colluders=1, share_threshold=5),
    "min_survivors": lambda: MEMBERS.plan(max_weight=50, min_survivors=4),
    "model_digests": lambda: replace(ALLOWED, model_digest=bytes(32)),
    "layout_digests": lambda: MEMBERS.plan(7, max_weight=50),
    "max_clip": lambda: MEMBERS.plan(max_weight=50, clip=1.0000001),
    "max_weight": lambda: MEMBERS.plan(max_weight=51),
    "suites": lambda: MEMBERS.plan(max_weight=50, suite="x25519"),
    "complete_up_to": lambda: MEMBERS.plan(max_weight=50, neighbours=6),
}


@pytest.mark.parametrize("clause", REFUSED)
def test_each_clause_refuses_by_its_name_before_anything_is_said(clause: str) -> None:
    """C28: f understated, few survivors, another model or layout, a larger clip or weight, a
    downgrade of suite or graph."""
    one = participant(REFUSED[clause]())
    with pytest.raises(PolicyRefused, match=clause) as caught:
        one.start()
    assert caught.value.clause == clause
    assert one._ledger.last_round(ME.public_key) == 0


@pytest.mark.parametrize(
    ("clause", "policy"),
    [
        ("roster_digest", replace(STRICT, roster_digest=bytes(32))),
        ("suites", replace(STRICT, suites=())),
        ("schemes", replace(STRICT, schemes=())),
        ("min_cohort", replace(STRICT, min_cohort=8)),
        ("min_threshold", replace(STRICT, min_threshold=6)),
        ("max_length", replace(STRICT, max_length=7, layout_digests=frozenset())),
    ],
)
def test_each_clause_of_a_stricter_policy_refuses_by_its_name(clause: str, policy: Policy) -> None:
    """C28: another roster, a downgrade of suite or scheme, a small cohort or threshold."""
    with pytest.raises(PolicyRefused) as caught:
        participant(ALLOWED, policy).start()
    assert caught.value.clause == clause


def test_a_large_cohort_with_few_assumed_colluders_and_holders_is_refused() -> None:
    """C28: n = 257 with f = 1 may work with 3 holders, who are likely to be somebody's colluders;
    on the complete graph the same f means 130 holders."""
    members = cohort(257)
    sparse = members.plan(1, max_colluders=1, neighbours=3)
    assert (sparse.share_count, sparse.share_threshold) == (3, 3)
    for plan, accepted in (
        (sparse, False),
        (members.plan(1, max_colluders=24), False),
        (members.plan(1, max_colluders=25), True),
        (members.plan(1), True),
        (members.plan(1, max_colluders=1, neighbours=257), True),
    ):
        one = Participant(
            plan, identity=members.identities[1], roster=members.roster,
            policy=Policy(members.roster.digest), ledger=MemoryLedger(),
        )  # fmt: skip
        if accepted:
            assert one.start()
            continue
        with pytest.raises(PolicyRefused) as caught:
            one.start()
        assert caught.value.clause == "sparse_corrupt"


def test_a_policy_that_says_so_takes_part_in_a_sparse_round_or_in_the_older_suite() -> None:
    """C28."""
    for plan, willing in (
        (REFUSED["suites"](), replace(STRICT, suites=SUITES)),
        (REFUSED["complete_up_to"](), replace(STRICT, complete_up_to=6)),
    ):
        assert participant(plan, willing).start()


@pytest.mark.parametrize(
    ("last", "number", "clause"),
    [
        (5, 5, "round_number"),
        (5, 4, "round_number"),
        (5, 5 + MAX_ROUND_JUMP + 1, "round_jump"),
        (0, MAX_ROUND_JUMP + 1, "round_jump"),
        (5, 6, None),
        (5, 5 + MAX_ROUND_JUMP, None),
    ],
)
def test_round_numbers_rise_and_do_not_jump(last: int, number: int, clause: str | None) -> None:
    """C28, C30."""
    one = participant(replace(ALLOWED, round_number=number), last=last)
    if clause is None:
        assert one.start()
        return
    with pytest.raises(PolicyRefused) as caught:
        one.start()
    assert caught.value.clause == clause


def test_the_default_policy_wants_one_colluder_and_three_survivors() -> None:
    """C28: a cohort of three assumes no colluder, and is refused unless the tenant says so."""
    few = cohort(3)
    plan = few.plan()
    policy = Policy(few.roster.digest)
    network = make_round(3, plan=plan, policy=policy)
    network.run()
    assert {repr(t.failure) for t in network.tenants.values()} != {"None"}
    for tenant in network.tenants.values():
        assert isinstance(tenant.failure, PolicyRefused)
        assert tenant.failure.clause == "max_colluders"
    assert not [e for e in network.sent if e.up]
    assert make_round(3, plan=plan, policy=replace(policy, max_colluders=0)).run().result


def test_a_plan_without_me_is_refused() -> None:
    """C28."""
    plan = MEMBERS.plan(cohort=tuple(n for n in MEMBERS.names if n != ME.tenant))
    with pytest.raises(PolicyRefused) as caught:
        participant(plan)
    assert caught.value.clause == "cohort"


def test_a_cohort_with_a_stranger_is_refused() -> None:
    """C38: nobody could verify the stranger, and whoever invented it knows its keys."""
    names = tuple(sorted([*MEMBERS.names[:6], "mallory"]))
    with pytest.raises((PolicyRefused, ConfigError), match="mallory"):
        participant(replace(ALLOWED, cohort=names))


def test_another_roster_than_the_plans_is_refused() -> None:
    """C38."""
    identities = [*MEMBERS.identities[:6], Identity.generate("t006", SeededRandomness("new"))]
    changed = Roster.create(tuple(map(Member.create, identities)))
    plan = replace(ALLOWED, roster_digest=changed.digest)
    with pytest.raises(PolicyRefused) as caught:
        participant(plan)
    assert caught.value.clause == "roster_digest"


def test_another_key_under_my_name_is_refused() -> None:
    """C38."""
    impostor = Identity.generate(ME.tenant, SeededRandomness("impostor"))
    with pytest.raises(ConfigError, match="another public key"):
        Participant(
            ALLOWED, identity=impostor, roster=MEMBERS.roster, policy=STRICT, ledger=MemoryLedger()
        )


def test_a_sparse_graph_is_for_cohorts_above_the_stated_size_and_not_for_that_size() -> None:
    sparse = MEMBERS.plan(max_weight=50, neighbours=6)
    for size, allowed in ((6, True), (7, False), (8, False)):
        policy = replace(STRICT, complete_up_to=size, min_threshold=2)
        if allowed:
            assert participant(sparse, policy).start()
        else:
            with pytest.raises(PolicyRefused) as refused:
                participant(sparse, policy).start()
            assert refused.value.clause == "complete_up_to"


def test_a_policy_that_pins_no_model_and_no_layout_takes_any() -> None:
    open_to_all = Policy(MEMBERS.roster.digest, max_colluders=2, min_survivors=5)
    assert participant(ALLOWED, open_to_all).start()
    assert participant(replace(ALLOWED, model_digest=bytes(32)), open_to_all).start()


def test_what_sparse_graphs_have_to_assume_is_not_asked_of_the_complete_one() -> None:
    assert participant(ALLOWED, replace(STRICT, sparse_corrupt=0.9)).start()
    sparse = MEMBERS.plan(max_weight=50, neighbours=6)
    allowing = replace(STRICT, complete_up_to=0, min_threshold=2)
    for fraction, allowed in ((2 / 7, True), (0.42, True), (0.43, False)):
        policy = replace(allowing, sparse_corrupt=fraction)
        if allowed:
            assert participant(sparse, policy).start()
        else:
            with pytest.raises(PolicyRefused) as refused:
                participant(sparse, policy).start()
            assert refused.value.clause == "sparse_corrupt"
