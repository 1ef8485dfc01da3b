"""A coordinator that lies, and tenants that collude with it.

`Coalition` holds everything that a malicious coordinator has: every message that an honest tenant
ever sent, the link to each of them, and the identities of all tenants (a test says which of them
it means to be honest, by not signing in their names). Honest tenants are real participants behind
their real entry points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from secagg import merkle, suite
from secagg.aggregator import Aggregator
from secagg.checks import leaf_digest, share_commitment
from secagg.errors import Step
from secagg.masking import Masking
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
    decode_message,
)
from secagg.outputs import AggregatorOutput, Dispatch
from secagg.participant_steps import Dealt, Held
from secagg.plan import RoundPlan
from secagg.records import encode
from secagg.secret import MaskKeyShare, SelfMaskShare
from secagg.spool import MemorySpool
from secagg.suite import Peer
from secagg.testing import SimulatedTenant, cohort, make_tenants


class Coalition:
    """See the module's docstring. `said[label][index]` is what each tenant signed."""

    def __init__(
        self, n: int = 5, plan: RoundPlan | None = None, kinds: Mapping[str, type] | None = None
    ) -> None:
        self.members = cohort(n)
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
        present = list(self.everybody if among is None else among)
        for step in Step:
            if step <= last:
                for index in present:
                    self.honestly(step, index, present)
        return self

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
        return ShareDelivery(
            bodies, tuple(self.leaf(dealer, holder) for dealer in chosen if dealer != holder)
        )

    def leaf(self, dealer: int, holder: int) -> DeliveredLeaf:
        leaves = self.dealings[dealer].leaves
        place = [leaf.holder for leaf in leaves].index(holder)
        path = merkle.path([leaf_digest(leaf) for leaf in leaves], place)
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

    def redealt(self, dealer: int, leaves: Iterable[Leaf]) -> ShareKeys:
        """Other leaves under a dealer's new signature."""
        chosen = tuple(leaves)
        body = self.dealings[dealer].body.read(ShareKeysBody)
        root = merkle.root([leaf_digest(leaf) for leaf in chosen])
        return ShareKeys(self.sign(dealer, replace(body, leaves_root=root)), chosen)


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
        return replace(output, message=lie if isinstance(lie, bytes) else encode(lie))


def fresh_aggregator(plan: RoundPlan, n: int) -> Aggregator:
    """An honest aggregator that has begun."""
    aggregator = Aggregator(plan, cohort(n).roster, spool=MemorySpool())
    aggregator.start(0.0)
    return aggregator


@dataclass(frozen=True)
class Dealing:
    """How a deviating dealer deals; the defaults are what an honest one does.

    `sealed` and `committed` change the share (33 bytes) of (holder, kind) that is sealed, or that
    its commitment is to; `degree` adds to the polynomial's; the rest misplaces commitments and
    bundles.
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

    def make(self, tenant: SimulatedTenant, directory: KeyDirectory) -> ShareKeys:
        """Deal to all of `directory` from the tenant's real secrets, and go on with that."""
        participant = tenant.running
        me, state = participant._me, participant._state
        secrets = state.secrets  # type: ignore[union-attr]
        keys = {one.sender: one.read(AdvertiseKeys) for one in directory.keys}
        threshold = me.setting.plan.share_threshold + self.degree
        shares = Masking().deal(secrets, tuple(keys), threshold, tenant.randomness)
        leaves, kept = [], b""
        for holder in keys:
            openings = [tenant.randomness(32) for _ in range(2)]
            values = [share.expose() for share in shares[holder]]
            bundle = b"".join(
                self.sealed(holder, kind, value) + opening
                for kind, (value, opening) in enumerate(zip(values, openings, strict=True))
            )
            kept = bundle if holder == me.index else kept
            encapsulation, box = self._seal(
                me.index, holder, keys, me.setting, secrets, bundle, tenant
            )
            commitments = tuple(
                share_commitment(
                    me.setting.context,
                    self.committed_kind(kind),
                    me.index if self.committed_dealer is None else self.committed_dealer,
                    self.committed_holder(holder),
                    self.committed(holder, kind, value),
                    opening,
                )
                for kind, (value, opening) in enumerate(zip(values, openings, strict=True))
            )
            leaves.append(Leaf(holder, encapsulation, box, commitments))
        commitment = Masking().secret_commitment(me.setting.plan, me.index, secrets)
        root = merkle.root([leaf_digest(leaf) for leaf in leaves])
        body = ShareKeysBody(tuple(keys), bytes(32) if self.other_secret else commitment, root)
        own = me.sign(body)
        held = Held(
            me.index, SelfMaskShare(kept[:33]), kept[33:65], MaskKeyShare(kept[65:98]), kept[98:]
        )
        participant._state = Dealt(secrets, directory, own, held)
        return ShareKeys(own, tuple(leaves))

    def _seal(self, dealer, holder, keys, setting, secrets, bundle, tenant):  # type: ignore[no-untyped-def]
        if holder == dealer:
            return b"", b""
        sender = dealer if self.sealed_by is None else self.sealed_by
        receiver = self.sealed_for(holder)
        return suite.seal(
            self.sealed_in or setting.context, Peer(sender, keys[sender]),
            Peer(receiver, keys[receiver]), suite.channel_private(secrets.channel), bundle,
            tenant.randomness,
        )  # fmt: skip
