"""A coordinator that lies, and tenants that collude with it.

`Coalition` holds everything that a malicious coordinator has: every message that an honest tenant
ever sent, the link to each of them, and the identities of all tenants (a test says which of them
it means to be honest, by not signing in their names). Honest tenants are real participants behind
their real entry points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from secagg import merkle, suite
from secagg.aggregator import Aggregator
from secagg.checks import leaf_digest, share_commitment
from secagg.edges import seals_pad
from secagg.errors import FaultyCoordinator, FaultyParticipant, Step
from secagg.identity import sha256
from secagg.ledger import Act, Entry
from secagg.messages import (
    BODIES,
    Acknowledge,
    AdvertiseKeys,
    AgreedView,
    Body,
    DeliveredLeaf,
    Downlink,
    KeyDirectory,
    Leaf,
    Quorum,
    ShareDelivery,
    ShareKeys,
    ShareKeysBody,
    Signed,
    Survivors,
    SurvivorSet,
    Unmask,
    UploadCommitment,
    UploadHeader,
    decode_message,
)
from secagg.outputs import AggregatorOutput, Dispatch
from secagg.participant_steps import Acknowledged, Advertised, Dealt, Held, Self, _opened
from secagg.plan import SUITES, RoundPlan
from secagg.records import encode
from secagg.scheme import DealtPad, scheme_of
from secagg.secret import Pad, Share
from secagg.spool import MemorySpool
from secagg.suite import Peer
from secagg.testing import SimulatedNetwork, SimulatedTenant, cohort, make_tenants
from secagg.testing.invariants import check_blame

# Two suites on two graphs. Sparse: f = 1, k = 5, t = 4, q = 5; one may drop out and no more.
PLANS: dict[str, RoundPlan] = {
    f"{graph}, {suite}": members.plan(4, suite=suite, **sizes)  # type: ignore[arg-type]
    for graph, members, sizes in (
        ("complete", cohort(5), {}),
        ("sparse", cohort(8), {"max_colluders": 1, "neighbours": 5}),
    )
    for suite in SUITES
}
CKKS = cohort(5).plan(4, scheme="ckks")
EVERY_PLAN: dict[str, RoundPlan] = {**PLANS, "ckks": CKKS}


class Coalition:
    """See the module's docstring. `said[label][index]` is what each tenant signed."""

    def __init__(
        self, n: int = 5, plan: RoundPlan | None = None, kinds: Mapping[str, type] | None = None
    ) -> None:
        self.members = cohort(n if plan is None else plan.n)
        self.plan = plan or self.members.plan(4)
        self.tenants = make_tenants(self.members, self.plan, kinds=kinds)
        self.said: dict[str, dict[int, Signed]] = {}
        self.dealings: dict[int, ShareKeys] = {}
        self.uploads: dict[int, bytes] = {}

    @property
    def everybody(self) -> range:
        return range(self.plan.n)

    def tenant(self, index: int) -> SimulatedTenant:
        return self.tenants[self.plan.cohort[index]]

    def sign(self, index: int, body: Body, plan: RoundPlan | None = None) -> Signed:
        """A signature of a colluding tenant under anything at all."""
        return Signed.create(plan or self.plan, self.tenant(index).identity, body)

    # ------------------------------------------------------------------ talking to tenants

    def hear(self, index: int, messages: Iterable[bytes]) -> None:
        for data in messages:
            message = decode_message(data)
            if isinstance(message, ShareKeys):
                self.dealings[index] = message
                message = message.body
            assert isinstance(message, Signed)
            self.said.setdefault(message.label, {})[index] = message

    def tell(self, index: int, message: Downlink | bytes) -> None:
        data = message if isinstance(message, bytes) else encode(message)
        self.hear(index, self.tenant(index).receive(data))

    def run_to(self, last: Step, among: Iterable[int] | None = None) -> Coalition:
        """Everything done honestly, until all of `among` have finished step `last`."""
        for step in Step:
            if step <= last:
                self.everybody_honestly(step, among)
        return self

    def everybody_honestly(self, step: Step, among: Iterable[int] | None = None) -> None:
        present = list(self.everybody if among is None else among)
        for index in present:
            self.honestly(step, index, present)

    def honestly(self, step: Step, index: int, present: list[int]) -> None:
        match step:
            case Step.ADVERTISE_KEYS:
                self.hear(index, self.tenant(index).offer(self.plan.encode()))
            case Step.SHARE_KEYS:
                self.tell(index, self.directory(present))
            case Step.ACKNOWLEDGE:
                self.tell(index, self.delivery(index, present))
            case Step.MASKED_INPUT:
                self.tell(index, self.agreed(present))
                self.upload(index)
            case Step.CONSISTENCY_CHECK:
                self.tell(index, self.survivor_set(present))
            case Step.UNMASK:
                self.tell(index, self.quorum(present))

    def upload(self, index: int) -> None:
        tenant = self.tenant(index)
        self.hear(index, tenant.submit())
        self.uploads[index] = b"".join(tenant.running.upload())
        self.hear(index, tenant.finish_upload())

    # ------------------------------------------------------------------ what was said, bundled

    def signed(self, label: str, indices: Iterable[int]) -> tuple[Signed, ...]:
        return tuple(self.said[label][index] for index in indices)

    def directory(self, indices: Iterable[int]) -> KeyDirectory:
        return KeyDirectory(self.signed(AdvertiseKeys.LABEL, indices))

    def delivery(self, holder: int, dealers: Iterable[int]) -> ShareDelivery:
        chosen = list(dealers)
        bodies = tuple(self.dealings[dealer].body for dealer in chosen)
        dealt = (d for d in chosen if d != holder and holder in self.holders_of(d))
        return ShareDelivery(bodies, tuple(self.leaf(dealer, holder) for dealer in dealt))

    def holders_of(self, dealer: int) -> tuple[int, ...]:
        return self.dealings[dealer].body.read(ShareKeysBody).holders

    def leaf(self, dealer: int, holder: int) -> DeliveredLeaf:
        leaves = self.dealings[dealer].leaves
        place = [leaf.holder for leaf in leaves].index(holder)
        path = merkle.path([leaf_digest(leaf.outline) for leaf in leaves], place)
        return DeliveredLeaf(dealer, leaves[place], path)

    def agreed(self, indices: Iterable[int]) -> AgreedView:
        return AgreedView(self.signed(Acknowledge.LABEL, indices))

    def survivor_set(self, indices: Iterable[int]) -> SurvivorSet:
        return SurvivorSet(self.signed(UploadCommitment.LABEL, indices))

    def quorum(self, indices: Iterable[int]) -> Quorum:
        return Quorum(self.signed(Survivors.LABEL, indices))

    def sequence(self) -> Iterator[tuple[str, int]]:
        """(label, index) of everything that the honest round says, in order."""
        for label in BODIES:
            yield from ((label, index) for index in self.everybody)

    def feed(self, aggregator: Aggregator, message: tuple[str, int], again: bool = False) -> None:
        """Give an honest aggregator one message of the honest round, upload bytes included."""
        label, index = message
        name, signed = self.plan.cohort[index], self.said[label][index]
        ends_upload = label == UploadCommitment.LABEL and aggregator.step is Step.MASKED_INPUT
        if ends_upload and not (again and name not in aggregator.waiting):
            place = aggregator.committed(name)
            aggregator.absorb(name, place, self.uploads[index][place:])
        sent = self.dealings[index] if label == ShareKeysBody.LABEL else signed
        aggregator.receive(name, encode(sent), 0.0)

    def released(self) -> dict[int, Unmask]:
        """Every answer that an honest tenant gave."""
        return {i: one.read(Unmask) for i, one in self.said.get(Unmask.LABEL, {}).items()}

    def opened(self, colluders: Iterable[int]) -> set[tuple[int, int]]:
        """(dealer, kind) of every secret of which coordinator and colluders have t shares.

        They have what honest tenants released, and both shares that each colluder was dealt.
        """
        known: dict[tuple[int, int], set[int]] = {}
        for holder, body in self.released().items():
            for answer in body.answers:
                known.setdefault((answer.dealer, answer.kind), set()).add(holder)
        for dealer in self.dealings:
            for holder in set(self.holders_of(dealer)) & set(colluders):
                for kind in range(2):
                    known.setdefault((dealer, kind), set()).add(holder)
        return {what for what, by in known.items() if len(by) >= self.plan.share_threshold}

    def keeps_private(self, colluders: Iterable[int]) -> None:
        """Of no honest tenant can both its masks be taken off."""
        opened = self.opened(colluders)
        both = {dealer for dealer, _ in opened if {(dealer, 0), (dealer, 1)} <= opened}
        assert both <= set(colluders)

    def redealt(self, dealer: int, leaves: Iterable[Leaf]) -> ShareKeys:
        """Other leaves under a dealer's new signature."""
        chosen = tuple(leaves)
        body = self.dealings[dealer].body.read(ShareKeysBody)
        root = merkle.root([leaf_digest(leaf.outline) for leaf in chosen])
        holders = tuple(leaf.holder for leaf in chosen)
        changed = replace(body, holders=holders, leaves_root=root)
        return ShareKeys(self.sign(dealer, changed), chosen)


def nobody_honest_is_blamed(
    network: SimulatedNetwork, deviating: Iterable[str] = (), honest_coordinator: bool = True
) -> None:
    """Whoever is named with proof has deviated; everybody else's errors accuse nobody.

    For every attack: the aggregator's verdicts (`FaultyParticipant`, evidence of an exclusion) name
    deviating tenants and hold something that they signed; tenants call no honest coordinator
    faulty, and never another tenant.
    """
    check_blame(network, deviating)
    errors: list[Exception] = [one.error for one in network.refused if not one.envelope.up]
    errors += [tenant.failure for tenant in network.tenants.values() if tenant.failure]
    for error in errors:
        assert not isinstance(error, FaultyParticipant)
        assert not (honest_coordinator and isinstance(error, FaultyCoordinator))


class LyingAggregator(Aggregator):
    """Tells tenants something else than an honest aggregator would; subclasses say what."""

    def lie(self, recipient: int, message: Downlink) -> Downlink | bytes:
        return message

    def start(self, now: float) -> list[AggregatorOutput]:
        return self._lied(super().start(now))

    def receive(self, sender: str, message: bytes, now: float) -> list[AggregatorOutput]:
        return self._lied(super().receive(sender, message, now))

    def on_deadline(self, now: float) -> list[AggregatorOutput]:
        return self._lied(super().on_deadline(now))

    def _lied(self, outputs: list[AggregatorOutput]) -> list[AggregatorOutput]:
        return [self._changed(one) if isinstance(one, Dispatch) else one for one in outputs]

    def _changed(self, output: Dispatch) -> Dispatch:
        index = self.plan.index(output.recipient)
        message = decode_message(output.message)
        assert index is not None
        assert not isinstance(message, Signed | ShareKeys)
        lie = self.lie(index, message)
        return replace(output, parts=(lie if isinstance(lie, bytes) else encode(lie),))


def fresh_aggregator(plan: RoundPlan, n: int) -> Aggregator:
    """An honest aggregator that has begun."""
    aggregator = Aggregator(plan, cohort(n).roster, spool=MemorySpool())
    aggregator.start(0.0)
    return aggregator


@dataclass(frozen=True)
class Dealing:
    """How a deviating dealer deals; the defaults are what an honest one does.

    `sealed` and `committed` change the share (33 bytes) of (holder, kind) that is sealed, or that
    its commitment is to; `degree` adds to the polynomial's. `holders` chooses others than those
    drawn. `pad` is the pad that goes into a holder's box, `committed_pad` the one that its leaf
    commits to. `spoil` changes the finished leaves, before they are hashed and signed. The rest
    misplaces commitments and bundles.
    """

    sealed: Callable[[int, int, bytes], bytes] = lambda holder, kind, share: share
    committed: Callable[[int, int, bytes], bytes] = lambda holder, kind, share: share
    degree: int = 0
    other_secret: bool = False
    committed_holder: Callable[[int], int] = lambda holder: holder
    committed_kind: Callable[[int], int] = lambda kind: kind
    committed_dealer: int | None = None
    sealed_for: Callable[[int], int] = lambda holder: holder
    sealed_by: int | None = None
    sealed_in: bytes | None = None
    holders: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda drawn: drawn
    pad: Callable[[int, Pad], Pad] = lambda holder, pad: pad
    committed_pad: Callable[[int, Pad], Pad] = lambda holder, pad: pad
    spoil: Callable[[list[Leaf]], list[Leaf]] = lambda leaves: leaves

    def make(self, tenant: SimulatedTenant, directory: KeyDirectory) -> ShareKeys:
        """Deal to all of `directory` from the tenant's real secrets, and go on with that."""
        participant = tenant.running
        me, state = participant._me, participant._state
        assert isinstance(state, Advertised)
        keys = {one.sender: one.read(AdvertiseKeys) for one in directory.keys}
        holders = self.holders(tuple(one for one in state.drawn if one in keys))
        plan = me.setting.plan
        threshold = plan.share_threshold + self.degree
        dealt = scheme_of(plan).deal(
            plan, me.index, state.secrets, holders, threshold, tenant.randomness
        )
        dealer = _DeviatingDealer(self, tenant, me, state, keys)
        leaves = self.spoil([dealer.leaf(holder, dealt.shares[holder]) for holder in holders])
        root = merkle.root([leaf_digest(leaf.outline) for leaf in leaves])
        commitment = dealt.commitment(root)
        own = me.sign(ShareKeysBody(holders, bytes(32) if self.other_secret else commitment, root))
        kept, pads = tuple(dealer.kept), tuple(dealer.pads)
        participant._state = Dealt(state.secrets, directory, own, kept, pads)
        return ShareKeys(own, tuple(leaves))


@dataclass
class _DeviatingDealer:
    how: Dealing
    tenant: SimulatedTenant
    me: Self
    state: Advertised
    keys: Mapping[int, AdvertiseKeys]
    kept: list[Held] = field(default_factory=list)
    pads: list[DealtPad] = field(default_factory=list)

    def leaf(self, holder: int, shares: tuple[Share, ...]) -> Leaf:
        how, randomness = self.how, self.tenant.randomness
        values = [(kind, share.expose(), randomness(32)) for kind, share in enumerate(shares)]
        bundle = b"".join(how.sealed(holder, kind, value) + r for kind, value, r in values)
        commitments = tuple(
            share_commitment(
                self.me.setting.context,
                how.committed_kind(kind),
                self.me.index if how.committed_dealer is None else how.committed_dealer,
                how.committed_holder(holder),
                how.committed(holder, kind, value),
                opening,
            )
            for kind, value, opening in values
        )
        if holder == self.me.index:
            self.kept.append(Held(holder, _opened(self.me, bundle)))
            return Leaf(holder, b"", b"", commitments)
        encapsulation, sealed = self._seal(holder, bundle)
        return Leaf(holder, encapsulation, sealed, commitments, *self._pad(holder))

    def _seal(self, holder: int, bundle: bytes) -> tuple[bytes, bytes]:
        how, plan = self.how, self.me.setting.plan
        sender = self.me.index if how.sealed_by is None else how.sealed_by
        receiver = how.sealed_for(holder)
        return suite.seal(
            how.sealed_in or plan.context,
            Peer(sender, self.keys[sender]),
            Peer(receiver, self.keys[receiver]),
            suite.private_keys(plan.suite, self.state.secrets.channel),
            bundle,
            self.tenant.randomness,
        )

    def _pad(self, holder: int) -> tuple[bytes, bytes]:
        plan, index, how = self.me.setting.plan, self.me.index, self.how
        if not seals_pad(plan, index, holder):
            return b"", b""
        pad = how.pad(holder, suite.pad_of(plan.context, self.state.secrets.mask, index, holder))
        mine, theirs = Peer(index, self.keys[index]), Peer(holder, self.keys[holder])
        box, _ = suite.seal_pad(plan.context, mine, theirs, pad)
        committed = how.committed_pad(holder, pad)
        commitment = suite.pad_commitment(plan.context, index, holder, committed, box)
        self.pads.append(DealtPad(index, holder, pad, commitment))
        return box, commitment


# ---------------------------------------------------------------------------- deviating tenants


class Rewriting(SimulatedTenant):
    """Honest, but for what `rewrite` makes of its messages before they are signed."""

    def rewrite(self, body: object) -> object:
        return body

    def offer(self, plan: bytes) -> list[bytes]:
        self.joining = RoundPlan.decode(plan)
        return super().offer(plan)

    def execute(self, outputs):  # type: ignore[no-untyped-def]
        return [self._rewritten(message) for message in super().execute(outputs)]

    def _rewritten(self, data: bytes) -> bytes:
        message = decode_message(data)
        if not isinstance(message, Signed):
            return data
        kinds = (AdvertiseKeys, Acknowledge, UploadHeader, UploadCommitment, Survivors, Unmask)
        (kind,) = (one for one in kinds if message.label == one.LABEL)
        before = message.read(kind)
        after = self.rewrite(before)
        if after == before:
            return data
        signed = Signed.create(self.joining, self.identity, after)  # type: ignore[arg-type]
        state = self.participant and self.participant._state
        if isinstance(state, Acknowledged):  # a good liar remembers what it said
            self.running._state = replace(state, own=signed)
        return encode(signed)


def lies_at_unmask(change: Callable[[Unmask], Unmask]) -> type[Rewriting]:
    class LiesAtUnmask(Rewriting):
        def rewrite(self, body: object) -> object:
            return change(body) if isinstance(body, Unmask) else body

    return LiesAtUnmask


def deals(dealing: Dealing) -> type[SimulatedTenant]:
    class Deals(SimulatedTenant):
        def receive(self, message: bytes) -> list[bytes]:
            parsed = decode_message(message)
            if isinstance(parsed, KeyDirectory):
                made = encode(dealing.make(self, parsed))
                self._commit_dealing(message, made)
                return [made]
            return super().receive(message)

        def _commit_dealing(self, message: bytes, made: bytes) -> None:
            entry = Entry(Act.DEALT, sha256(message), made)
            self.ledger.commit(self.identity.public_key, self.running.plan.context, entry)

    return Deals
