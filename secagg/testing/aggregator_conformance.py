"""What every aggregator must do, as claims that run against anybody's implementation.

    @pytest.mark.parametrize("claim", AGGREGATOR_CLAIMS)
    def test_aggregator(claim):
        claim(make_my_aggregator)

`CKKS_AGGREGATOR_CLAIMS` are those of scheme `ckks`.

An implementation is given as a function that makes an `AggregatorHost` for one round: a coordinator
behind bytes. Each claim puts it into a `SimulatedNetwork` with this package's tenants, honest and
deviating, and raises `InvariantBroken` where it does not hold. `CoreAggregator` is the adapter of
this package's own, and an example.

Participants need no honest aggregator: what these claims show is that rounds open, that sums are
right, and that nobody honest is blamed. Not shown: that it survives a restart, and that it keeps
what it announces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Protocol

from secagg.aggregator import Aggregator
from secagg.errors import ProtocolError, RoundAborted, Step
from secagg.identity import Roster
from secagg.messages import ShareDelivery, decode_message
from secagg.outputs import Aborted, AggregatorOutput, Dispatch, Excluded, Finished
from secagg.plan import RoundPlan
from secagg.result import Result
from secagg.scheme import leaf_places, upload_bytes
from secagg.spool import MemorySpool
from secagg.testing.ckks_deviations import WRONG_SUMS, BadResidue
from secagg.testing.cohorts import cohort, make_tenants
from secagg.testing.deviations import deviations, ends_rounds
from secagg.testing.faults import DOWN, DOWN_NAMES, PLAN, Duplicate, Fault, Reorder, Silence
from secagg.testing.host import Refused
from secagg.testing.invariants import check_invariants, require
from secagg.testing.network import Envelope, SimulatedNetwork
from secagg.testing.stage import CKKS, MASKING, Plans, refused
from secagg.testing.tenant import SimulatedTenant

Dispatches = list[tuple[str, bytes]]
"""Messages to tenants, by tenant id."""


class AggregatorHost(Protocol):
    """One round at somebody's coordinator. Methods raise `Refused` for what they take no notice of;
    what they return is to be sent."""

    def receive(self, sender: str, message: bytes) -> Dispatches:
        """A message of the tenant that the transport authenticated."""

    def absorb(self, sender: str, offset: int, piece: bytes) -> int:
        """Bytes of an announced upload; returns how many it has."""

    def committed(self, sender: str) -> int:
        """How many bytes of this tenant's upload it has."""

    def expire(self) -> Dispatches:
        """The running step's deadline passes."""

    @property
    def result(self) -> Result | None:
        """What was opened."""

    @property
    def aborted(self) -> bool:
        """Whether the round is over without a result."""

    @property
    def accused(self) -> frozenset[str]:
        """Tenants named with proof so far."""

    @property
    def transcript(self) -> bytes:
        """Of an opened round."""


MakeAggregator = Callable[[bytes, bytes], AggregatorHost]
"""From a plan's and a roster's canonical bytes."""

Claim = Callable[[MakeAggregator], None]


class CoreAggregator:
    """This package's aggregator behind `AggregatorHost`."""

    def __init__(
        self, plan: bytes, roster: bytes, kind: Callable[..., Aggregator] = Aggregator
    ) -> None:
        self._core = kind(RoundPlan.decode(plan), Roster.decode(roster), spool=MemorySpool())
        self._now = 0.0
        self._accused: set[str] = set()
        self.aborted = False
        self._core.start(self._now)

    def receive(self, sender: str, message: bytes) -> Dispatches:
        """See `AggregatorHost`."""
        try:
            return self._done(self._core.receive(sender, message, self._now))
        except ProtocolError as error:
            self._accused |= {name for name in (getattr(error, "participant", ""),) if name}
            raise Refused(str(error)) from error

    def absorb(self, sender: str, offset: int, piece: bytes) -> int:
        """See `AggregatorHost`."""
        try:
            return self._core.absorb(sender, offset, piece)
        except ProtocolError as error:
            raise Refused(str(error)) from error

    def committed(self, sender: str) -> int:
        """See `AggregatorHost`."""
        try:
            return self._core.committed(sender)
        except ProtocolError as error:
            raise Refused(str(error)) from error

    def expire(self) -> Dispatches:
        """See `AggregatorHost`."""
        self._now = max(self._now, self._core.deadline)
        return self._done(self._core.on_deadline(self._now))

    @property
    def result(self) -> Result | None:
        """See `AggregatorHost`."""
        return self._core.result

    @property
    def accused(self) -> frozenset[str]:
        """See `AggregatorHost`."""
        return frozenset(self._accused)

    @property
    def transcript(self) -> bytes:
        """See `AggregatorHost`."""
        return self._core.transcript

    def _done(self, outputs: list[AggregatorOutput]) -> Dispatches:
        sent: Dispatches = []
        for output in outputs:
            match output:
                case Dispatch():
                    sent.append((output.recipient, output.message))
                case Excluded() if output.evidence:
                    self._accused.add(output.participant)
                case Aborted():
                    self.aborted = True
                    self._accused |= {
                        name for name in (getattr(output.error, "participant", ""),) if name
                    }
                case _:
                    pass
        return sent


class HostedAggregator(Aggregator):
    """A host in a simulated network, where an `Aggregator` is due."""

    def __init__(self, host: AggregatorHost, plan: RoundPlan, roster: Roster) -> None:
        super().__init__(plan, roster, spool=MemorySpool())
        self._host = host

    @property
    def transcript(self) -> bytes:
        """See `Aggregator`."""
        return self._host.transcript

    def start(self, now: float) -> list[AggregatorOutput]:
        """See `Aggregator`."""
        self.deadline = now + self.plan.deadlines.steps[0] / 1000
        return []

    def receive(self, sender: str, message: bytes, now: float) -> list[AggregatorOutput]:
        """See `Aggregator`."""
        try:
            return self._sent(self._host.receive(sender, message), now)
        except Refused as error:
            raise ProtocolError(str(error)) from error

    def absorb(self, sender: str, offset: int, piece: bytes | memoryview) -> int:
        """See `Aggregator`."""
        try:
            have = self._host.absorb(sender, offset, bytes(piece))
        except Refused as error:
            raise ProtocolError(str(error)) from error
        self._spool.append(sender, piece)
        return have

    def committed(self, sender: str) -> int:
        """See `Aggregator`."""
        try:
            return self._host.committed(sender)
        except Refused as error:
            raise ProtocolError(str(error)) from error

    def on_deadline(self, now: float) -> list[AggregatorOutput]:
        """See `Aggregator`."""
        return self._sent(self._host.expire(), now)

    def _sent(self, dispatches: Dispatches, now: float) -> list[AggregatorOutput]:
        for _, message in dispatches:
            step = DOWN.index(DOWN_NAMES.get(type(decode_message(message)), PLAN))
            self.step, self.deadline = Step(step), now + self.plan.deadlines.steps[step] / 1000
        self.result = self._host.result
        outputs: list[AggregatorOutput] = [Dispatch(to, (data,)) for to, data in dispatches]
        if self.result is None and not self._host.aborted:
            return outputs
        over = self.deadline == float("inf")
        self.deadline = float("inf")
        if over or self.result is not None:
            return [*outputs, Finished(self.result)]
        return [*outputs, Aborted(RoundAborted("the host aborted the round"))]


# ---------------------------------------------------------------------------- claims


def rounds_open_exactly(make: MakeAggregator, plans: Plans = MASKING) -> None:
    """Both suites, both graphs: the survivors' sum, and a transcript that gives it again."""
    for plan in plans.every():
        network, _ = _run(make, plan)
        _opened(network, plan.n)


def dropouts_after_any_step_cost_themselves(make: MakeAggregator, plans: Plans = MASKING) -> None:
    """Silent from the beginning, or after whatever step, or in the middle of the upload."""
    for plan in (plans.small("x25519"), plans.small()):
        for after in (None, *list(Step)[:-1]):
            network, _ = _run(make, plan, faults=[Silence(plan.cohort[-1], after)])
            late = after is not None and after >= Step.MASKED_INPUT
            _opened(network, plan.n if late else plan.n - 1)


def links_may_repeat_and_reorder(make: MakeAggregator, plans: Plans = MASKING) -> None:
    """The same message again is nothing new, whenever it comes."""
    plan = plans.small("x25519")
    for name in plan.cohort[:3]:
        for label in ("advertise_keys", "share_keys", "acknowledge", "upload_commitment"):
            faults: list[Fault] = [Duplicate(name, label), Reorder(plan.cohort[4], label, 3)]
            network, host = _run(make, plan, faults=faults)
            _opened(network, plan.n)
            require(not host.accused, "a repeated message was taken for proof")


def too_few_survivors_abort(make: MakeAggregator, plans: Plans = MASKING) -> None:
    """Nothing opens below the plan's sizes."""
    plan = plans.small("x25519")
    for after in (None, *list(Step)[:-1]):
        faults = [Silence(name, after) for name in plan.cohort[:3]]
        network, host = _run(make, plan, faults=faults)
        require(host.aborted and network.outcome.result is None, "too few were enough")


def everybody_hears_the_same(make: MakeAggregator, plans: Plans = MASKING) -> None:
    """U1, U2, U3 and the quorum are one message each; deliveries have one list of dealings."""
    for plan in plans.every():
        network, _ = _run(make, plan)
        said: dict[str, set[bytes]] = {}
        for envelope in network.sent:
            if not envelope.up and envelope.label != PLAN:
                said.setdefault(envelope.label, set()).add(_common(envelope))
        require(all(len(one) == 1 for one in said.values()), "it says different things")
        require(len(said) == len(DOWN) - 1, "a step's message is missing")


def _common(envelope: Envelope) -> bytes:
    message = decode_message(envelope.data)
    if isinstance(message, ShareDelivery):
        return b"".join(signed.digest for signed in message.bodies)
    return envelope.data


def deviating_tenants_cost_a_place_at_most(make: MakeAggregator, plans: Plans = MASKING) -> None:
    """Each kind of `secagg.testing.deviations`: the round opens, and blame is right."""
    for kind in deviations(plans.small()):
        if kind not in ends_rounds(plans.small()):
            plan = plans.small() if "Pad" in kind.__name__ else plans.small("x25519")
            network, host = _run(make, plan, kinds={plan.cohort[1]: kind})
            _opened(network, plan.n - 1, at_least=True)
            require(host.accused <= {plan.cohort[1]}, f"{kind.__name__}: the wrong one")


def wrong_dealings_and_poisoned_sums_open_nothing_false(
    make: MakeAggregator, plans: Plans = MASKING
) -> None:
    """What ends a round ends it: no sum comes out that is not the survivors'."""
    plan = plans.small("x25519")
    for kind in ends_rounds(plan):
        network, host = _run(make, plan, kinds={plan.cohort[1]: kind})
        if network.outcome.result is None:
            require(host.aborted, f"{kind.__name__}: the round does not end")


def proven_faults_are_named(make: MakeAggregator, plans: Plans = MASKING) -> None:
    """Missing answers, two signed messages; wrong or other ones, and dealings that do not open; in
    scheme `ckks` malformed sums."""
    plan, provable = plans.small("x25519"), {"MissingAnswer", "TwoFaced"}
    if plan.scheme == "masking":
        provable |= {"WrongAnswers", "OtherKind", "OffPolynomial", "OtherSecret"}
    else:
        provable |= {"TruncatedSum", "SumOfPrimes"}
    for kind in deviations(plan):
        if kind.__name__ in provable:
            _, host = _run(make, plan, kinds={plan.cohort[1]: kind})
            require(plan.cohort[1] in host.accused, f"{kind.__name__} is not named")


def bad_upload_bytes_are_refused(make: MakeAggregator, plans: Plans = MASKING) -> None:
    """C17: another offset, a byte too many, bits after the last value; then the right ones."""
    plan = plans.small("x25519")
    members = cohort(plan.n)
    host = make(plan.encode(), members.roster.encode())
    network = _BadUploads(
        HostedAggregator(host, plan, members.roster),
        make_tenants(members, plan).values(),
        host=host,
    )
    network.run()
    _opened(network, plan.n)
    require(network.tried > 0, "nobody uploaded")


class _BadUploads(SimulatedNetwork):
    """Offers spoilt bytes ahead of every right piece."""

    def __init__(
        self, aggregator: Aggregator, tenants: Iterable[SimulatedTenant], *, host: AggregatorHost
    ) -> None:
        super().__init__(aggregator, tenants)
        self._host, self.tried = host, 0

    def _deliver_up(self, envelope: Envelope) -> None:
        if envelope.label == "upload_chunk":
            self.tried += 1
            at, piece = envelope.offset, envelope.data
            left = upload_bytes(self.plan) - at
            bad = [
                ("a gap", at + 1, piece),
                ("bytes beyond the end", at, piece + bytes(left - len(piece) + 1)),
                ("far beyond the end", at + left + 9, b"\0"),
            ]
            if leaf_places(self.plan)[-1].spare:
                bad.append(("bits after the last value", at, piece[:-1] + b"\xff"))
            for why, offset, data in bad:
                refused(f"{why} (C17)", self._host.absorb, envelope.tenant, offset, data)
            for stranger in ("", "nobody", self.plan.cohort[0] + "x"):
                refused("an upload of a stranger", self._host.absorb, stranger, 0, piece)
        super()._deliver_up(envelope)


def messages_of_strangers_are_refused(make: MakeAggregator, plans: Plans = MASKING) -> None:
    """C02: whoever the transport authenticated speaks in its own name, and is in the cohort."""
    plan = plans.small("x25519")
    network, _ = _run(make, plan)
    messages = [one for one in network.sent if one.up and one.label != "upload_chunk"]
    host = make(plan.encode(), cohort(plan.n).roster.encode())
    for envelope in messages:
        for name in ("", "nobody", next(n for n in plan.cohort if n != envelope.tenant)):
            refused("a message in another's name (C02)", host.receive, name, envelope.data)
    for data in (b"", b"\x01", messages[0].data[:-1], messages[0].data + b"\0"):
        refused("bytes that are not canonical (C01)", host.receive, messages[0].tenant, data)


AGGREGATOR_CLAIMS: tuple[Claim, ...] = (
    rounds_open_exactly,
    dropouts_after_any_step_cost_themselves,
    links_may_repeat_and_reorder,
    too_few_survivors_abort,
    everybody_hears_the_same,
    deviating_tenants_cost_a_place_at_most,
    wrong_dealings_and_poisoned_sums_open_nothing_false,
    proven_faults_are_named,
    bad_upload_bytes_are_refused,
    messages_of_strangers_are_refused,
)


def wrong_sums_of_shares_are_left_out(make: MakeAggregator, plans: Plans = CKKS) -> None:
    """C45: with t right answers the sum is exact whatever another holder answers; with fewer
    of them nothing opens. Nobody is named with proof."""
    plan = plans.small("x25519")
    for kind in WRONG_SUMS:
        network, host = _run(make, plan, kinds={plan.cohort[1]: kind})
        _opened(network, plan.n)
        silent = [Silence(name, Step.CONSISTENCY_CHECK) for name in plan.cohort[4:]]
        network, host = _run(make, plan, kinds={plan.cohort[1]: kind}, faults=silent)
        require(host.aborted and not host.accused, f"{kind.__name__}: one too many")


def malformed_residues_cost_their_sender(make: MakeAggregator, plans: Plans = CKKS) -> None:
    """C44: in whichever leaf; it signed them, and what was added before is taken out again."""
    for number in (0, -1):
        kind = type("Bad", (BadResidue,), {"number": number})
        plan = cohort(6).plan(3_000, scheme=plans.scheme, max_colluders=1, min_survivors=5)
        network, host = _run(make, plan, kinds={plan.cohort[1]: kind})
        _opened(network, plan.n - 1)
        require(host.accused == {plan.cohort[1]}, "a malformed upload is not proven")


def _in_ckks(claim: Claim) -> Claim:
    @wraps(claim)
    def tried(make: MakeAggregator) -> None:
        claim(make, plans=CKKS)  # type: ignore[call-arg]

    return tried


CKKS_AGGREGATOR_CLAIMS: tuple[Claim, ...] = (
    *map(_in_ckks, AGGREGATOR_CLAIMS),
    wrong_sums_of_shares_are_left_out,
    malformed_residues_cost_their_sender,
)
"""The same claims in rounds of scheme `ckks`, for implementations that have it, and its own."""


def _run(
    make: MakeAggregator,
    plan: RoundPlan,
    *,
    faults: Iterable[Fault] = (),
    kinds: Mapping[str, type[SimulatedTenant]] | None = None,
) -> tuple[SimulatedNetwork, AggregatorHost]:
    members = cohort(plan.n)
    host = make(plan.encode(), members.roster.encode())
    network = SimulatedNetwork(
        HostedAggregator(host, plan, members.roster),
        make_tenants(members, plan, kinds=kinds).values(),
        faults=faults,
    )
    network.run()
    check_invariants(network, kinds or {})
    require(host.accused <= set(kinds or {}), "somebody honest is named with proof")
    return network, host


def _opened(network: SimulatedNetwork, count: int, at_least: bool = False) -> None:
    result = network.outcome.result
    have = 0 if result is None else len(result.survivors)
    right = have >= count if at_least else have == count
    require(right, f"{have} survivors were opened, and {count} were due")
