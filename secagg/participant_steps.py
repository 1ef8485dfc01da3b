"""The participant's side of a round: six steps as pure functions over frozen states.

    Advertised --KeyDirectory--> Dealt --ShareDelivery--> Acknowledged --AgreedView--> Agreed
      --submit--> Uploading --finish--> Uploaded --SurvivorSet--> Confirmed --Quorum--> Answered

Each function takes the state before, the aggregator's message and, where something is drawn,
randomness; it returns the state after and what to send. A state holds only what later steps need:
the channel seed ends with step 2, the mask seeds end with the upload. Errors leave the state as it
was, because nothing here changes anything.

Deliberately not here: the ledger, sealing, and what stops a caller that replays an old state
(`participant.py`); the checks that the aggregator makes as well (`checks.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from secagg import checks, merkle, suite
from secagg.checks import OPENING_BYTES, Agreement, Setting, View
from secagg.edges import Edges, draw, seals_pad
from secagg.errors import FaultyCoordinator, ProtocolError, Step
from secagg.identity import Identity, sha256
from secagg.messages import (
    Acknowledge,
    AdvertiseKeys,
    AgreedView,
    DeliveredLeaf,
    KeyDirectory,
    Leaf,
    Quorum,
    ShareDelivery,
    ShareKeys,
    ShareKeysBody,
    Signed,
    Survivor,
    SurvivorSet,
    UploadCommitment,
    UploadHeader,
)
from secagg.records import U32, U64, Digest, encode
from secagg.scheme import (
    DealtPad,
    Opened,
    ProtectionSecrets,
    RoundSecrets,
    SharedSecrets,
    scheme_of,
    upload_bytes,
)
from secagg.secret import Randomness, RoundingSeed, Share
from secagg.suite import Peer


@dataclass(frozen=True, slots=True)
class Held:
    """The shares that this participant holds of one dealer, with their openings."""

    dealer: U32
    opened: tuple[Opened, ...]
    """One of each kind, in the scheme's order."""


@dataclass(frozen=True, slots=True)
class Advertised:
    """After step 0: secrets and holders drawn, public keys sent.

    The holders are drawn before anybody knows U1, so that nobody can choose them by choosing U1.
    """

    secrets: RoundSecrets
    drawn: tuple[U32, ...]
    own: Signed


@dataclass(frozen=True, slots=True)
class Dealt:
    """After step 1: shares sealed and sent; the own share, where there is one, is kept here."""

    secrets: RoundSecrets
    directory: KeyDirectory
    own: Signed
    kept: tuple[Held, ...]
    pads: tuple[DealtPad, ...]


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """After step 2: holds shares of every dealer that it accepted."""

    secrets: SharedSecrets
    directory: KeyDirectory
    bodies: tuple[Signed, ...]
    held: tuple[Held, ...]
    pads: tuple[DealtPad, ...]
    own: Signed


@dataclass(frozen=True, slots=True)
class HoldersOf:
    """Who holds a dealer's shares."""

    dealer: U32
    holders: tuple[U32, ...]


@dataclass(frozen=True, slots=True)
class U2:
    """The view that was agreed on, as later steps need it."""

    digest: Digest
    graph: tuple[HoldersOf, ...]

    @classmethod
    def of(cls, view: View) -> U2:
        """To be kept in a state."""
        holders = view.edges.holders
        return cls(
            view.digest, tuple(HoldersOf(one, tuple(sorted(held))) for one, held in holders.items())
        )

    @property
    def view(self) -> View:
        """As the checks take it."""
        return View(self.digest, Edges({one.dealer: frozenset(one.holders) for one in self.graph}))


@dataclass(frozen=True, slots=True)
class Agreed:
    """Before step 3: U2 and the view are fixed; waits for the input.

    No act stands in the ledger yet, so the digest of the message that was agreed to is kept here.
    """

    request: Digest
    protection: ProtectionSecrets
    agreed: U2
    held: tuple[Held, ...]


@dataclass(frozen=True, slots=True)
class Uploading:
    """In step 3: bound to one input and one rounding."""

    agreed: Agreed
    input_digest: Digest
    weight: U64
    rounding: RoundingSeed


@dataclass(frozen=True, slots=True)
class Uploaded:
    """After step 3: the mask seeds are gone; shares of others remain."""

    agreed: U2
    root: Digest
    held: tuple[Held, ...]


@dataclass(frozen=True, slots=True)
class Confirmed:
    """After step 4: has signed the one U3 that it will help to open."""

    uploaded: Uploaded
    survivors: tuple[Survivor, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """After step 5: nothing secret is left."""

    view: Digest


State = Advertised | Dealt | Acknowledged | Agreed | Uploading | Uploaded | Confirmed | Answered


@dataclass(frozen=True, slots=True)
class Self:
    """Who takes the steps, and in which round."""

    setting: Setting
    identity: Identity
    index: int

    def sign(self, body: object) -> Signed:
        """Sign a body for this round."""
        signed = Signed.create(self.setting.plan, self.identity, body)  # type: ignore[arg-type]
        self.setting.verified.add(signed.digest)
        return signed


def advertise_keys(me: Self, randomness: Randomness) -> tuple[Advertised, Signed]:
    """Step 0: draw this round's secrets and holders, and advertise the public keys."""
    plan, secrets = me.setting.plan, RoundSecrets.draw(randomness)
    mask = secrets.mask if scheme_of(plan).has_mask_keys else None
    own = me.sign(suite.advertise(plan.suite, secrets.channel, mask))
    return Advertised(secrets, draw(plan, me.index, randomness), own), own


def share_keys(
    me: Self, state: Advertised, directory: KeyDirectory, randomness: Randomness
) -> tuple[Dealt, ShareKeys]:
    """Step 1: check U1, then deal one sealed share of each secret to each of its holders."""
    plan, keys = me.setting.plan, checks.read_directory(me.setting, directory).keys
    if state.own not in directory.keys:
        raise FaultyCoordinator(
            "U1 lacks this participant's own keys, or shows others under its name",
            step=Step.ADVERTISE_KEYS,
        )  # C07
    scheme, holders = scheme_of(plan), tuple(one for one in state.drawn if one in keys)
    if len(holders) < plan.share_threshold:
        raise ProtocolError(
            f"{len(holders)} of the drawn holders are in U1 and {plan.share_threshold} are needed",
            step=Step.ADVERTISE_KEYS,
        )  # C08
    threshold = plan.share_threshold
    dealt = scheme.deal(plan, me.index, state.secrets, holders, threshold, randomness)
    dealer = _Dealer(me, state.secrets, keys, randomness)
    leaves = [dealer.leaf(holder, dealt.shares[holder]) for holder in holders]
    root = merkle.root([checks.leaf_digest(leaf.outline) for leaf in leaves])
    own = me.sign(ShareKeysBody(holders, dealt.commitment(root), root))
    kept, pads = tuple(dealer.kept), tuple(dealer.pads)
    return Dealt(state.secrets, directory, own, kept, pads), ShareKeys(own, tuple(leaves))


class _Dealer:
    """Makes the leaves of one dealing; collects what the dealer itself keeps."""

    def __init__(
        self,
        me: Self,
        secrets: RoundSecrets,
        keys: Mapping[int, AdvertiseKeys],
        randomness: Randomness,
    ) -> None:
        self.kept: list[Held] = []
        self.pads: list[DealtPad] = []
        self._me, self._secrets, self._keys = me, secrets, keys
        self._randomness = randomness
        self._channel = suite.private_keys(me.setting.plan.suite, secrets.channel)

    def leaf(self, holder: int, shares: tuple[Share, ...]) -> Leaf:
        """One holder's shares, committed to and sealed; and its pad where this dealer draws it."""
        me, randomness = self._me, self._randomness
        opened = tuple(Opened(share, randomness(OPENING_BYTES)) for share in shares)
        commitments = _commitments(me, me.index, holder, opened)
        if holder == me.index:
            self.kept.append(Held(holder, opened))
            return Leaf(holder, b"", b"", commitments)
        mine, theirs = Peer(me.index, self._keys[me.index]), Peer(holder, self._keys[holder])
        encapsulation, sealed = suite.seal(
            me.setting.context, mine, theirs, self._channel, _bundle(opened), randomness
        )
        return Leaf(holder, encapsulation, sealed, commitments, *self._pad(mine, theirs))

    def _pad(self, mine: Peer, theirs: Peer) -> tuple[bytes, bytes]:
        plan = self._me.setting.plan
        if not seals_pad(plan, mine.index, theirs.index):
            return b"", b""
        pad = suite.pad_of(plan.context, self._secrets.mask, mine.index, theirs.index)
        box, commitment = suite.seal_pad(plan.context, mine, theirs, pad)
        self.pads.append(DealtPad(mine.index, theirs.index, pad, commitment))
        return box, commitment


def acknowledge(me: Self, state: Dealt, delivery: ShareDelivery) -> tuple[Acknowledged, Signed]:
    """Step 2: open what every dealer dealt, and say which dealers' shares are wrong or missing."""
    plan, directory = me.setting.plan, checks.known_directory(me.setting, state.directory)
    bodies = checks.verify_all(me.setting, delivery.bodies, ShareKeysBody)
    checks.check_delivery(plan, directory, bodies, delivery)
    if state.own not in delivery.bodies:
        raise FaultyCoordinator(
            "the delivery lacks this participant's own dealing, or changed it",
            step=Step.SHARE_KEYS,
        )  # C10
    leaves = {delivered.dealer: delivered for delivered in delivery.leaves}
    held = {one.dealer: one for one in state.kept}
    pads = list(state.pads)
    holder = _Holder(me, state.secrets, directory.keys)
    dealers = [dealer for dealer in bodies if me.index in bodies[dealer].holders]
    for dealer in dealers:
        if dealer != me.index:
            opened = holder.open(dealer, bodies[dealer], leaves.get(dealer))
            if opened is not None:
                held[dealer] = opened[0]
                pads += opened[1]
    refused = tuple(dealer for dealer in dealers if dealer not in held)
    digest = checks.dealings_digest(me.setting, delivery.bodies)
    own = me.sign(Acknowledge(directory.digest, digest, refused))
    shared = SharedSecrets(state.secrets.mask, state.secrets.self_mask)
    kept = tuple(held[dealer] for dealer in sorted(held))
    return Acknowledged(shared, state.directory, delivery.bodies, kept, tuple(pads), own), own


class _Holder:
    """Opens the leaves that others dealt to this participant."""

    def __init__(self, me: Self, secrets: RoundSecrets, keys: Mapping[int, AdvertiseKeys]) -> None:
        self._me, self._keys = me, keys
        self._channel = suite.private_keys(me.setting.plan.suite, secrets.channel)
        self._mask_seed = secrets.mask

    @cached_property
    def _mask(self) -> suite.PrivateKeys:
        return suite.private_keys(self._me.setting.plan.suite, self._mask_seed)

    def open(
        self, dealer: int, body: ShareKeysBody, delivered: DeliveredLeaf | None
    ) -> tuple[Held, tuple[DealtPad, ...]] | None:
        """The dealer's shares and pad, or None: a complaint, which says nothing about whose fault
        it is."""
        if delivered is None:
            return None
        me, leaf = self._me, delivered.leaf
        mine, theirs = Peer(me.index, self._keys[me.index]), Peer(dealer, self._keys[dealer])
        try:
            checks.check_leaf(me.setting.plan, dealer, leaf)
            checks.check_path(body, leaf, delivered.path, me.index)
            bundle = suite.open_sealed(
                me.setting.context, theirs, mine, self._channel, leaf.encapsulation, leaf.sealed
            )
            opened = _opened(me, bundle)
            if _commitments(me, dealer, me.index, opened) != leaf.commitments:  # C11
                return None
            shares = [one.share for one in opened]
            scheme_of(me.setting.plan).check_shares(me.setting.plan, dealer, me.index, body, shares)
            pads = self._pad(theirs, mine, leaf)
        except ProtocolError:
            return None
        return Held(dealer, opened), pads

    def _pad(self, theirs: Peer, mine: Peer, leaf: Leaf) -> tuple[DealtPad, ...]:
        """C39: what the box holds is what the leaf commits to."""
        if not leaf.pad_box:
            return ()
        pad = suite.open_pad(
            self._me.setting.context, theirs, mine, self._mask, leaf.pad_box, leaf.pad_commitment
        )
        return (DealtPad(theirs.index, mine.index, pad, leaf.pad_commitment),)


def agree(me: Self, state: Acknowledged, agreed: AgreedView) -> Agreed:
    """Before step 3: check U2, fix the view that every member must share, and derive the masks."""
    if state.own not in agreed.acknowledgements:
        raise FaultyCoordinator(
            "U2 lacks this participant's own acknowledgement, or changed it", step=Step.ACKNOWLEDGE
        )  # C15
    plan, own = me.setting.plan, state.own.read(Acknowledge)
    bodies = {signed.sender: signed for signed in state.bodies}
    view = checks.read_agreed_view(
        me.setting, state.directory, own.directory_digest, bodies, agreed
    )
    protection = scheme_of(plan).protection(
        plan,
        me.index,
        state.secrets,
        {signed.sender: signed.read(AdvertiseKeys) for signed in state.directory.keys},
        view.edges,
        {(pad.dealer, pad.holder): pad for pad in state.pads},
    )
    held = tuple(one for one in state.held if one.dealer in view.edges.holders)
    request = sha256(encode(agreed))  # encodings are canonical: the digest of what was received
    return Agreed(request, protection, U2.of(view), held)


def begin_upload(
    me: Self, state: Agreed, input_digest: bytes, weight: int, randomness: Randomness
) -> tuple[Uploading, Signed]:
    """Step 3, first part: bind to one input and one rounding, and announce the upload."""
    header = me.sign(UploadHeader(state.agreed.digest, upload_bytes(me.setting.plan)))
    return Uploading(state, input_digest, weight, RoundingSeed.draw(randomness)), header


def commit_upload(me: Self, state: Uploading, root: bytes) -> tuple[Uploaded, Signed]:
    """Step 3, last part: sign what was uploaded; the seeds of its masks are dropped."""
    agreed, held = state.agreed.agreed, state.agreed.held
    commitment = UploadCommitment(agreed.digest, root, upload_bytes(me.setting.plan))
    return Uploaded(agreed, root, held), me.sign(commitment)


def consistency_check(
    me: Self, state: Uploaded, survivor_set: SurvivorSet
) -> tuple[Confirmed, Signed]:
    """Step 4: sign U3 if everybody in it shares this view. At most once per round."""
    size = upload_bytes(me.setting.plan)
    survivors = checks.read_survivors(me.setting, state.agreed.view, survivor_set, size)
    roots = {survivor.index: survivor.root for survivor in survivors.members}
    if roots.get(me.index) != state.root:
        raise FaultyCoordinator(
            "U3 lacks this participant, or shows another upload under its name",
            step=Step.MASKED_INPUT,
        )  # C22
    _require_shares(me, state, survivors.indices)
    return Confirmed(state, survivors.members), me.sign(survivors.body)


def _require_shares(me: Self, state: Uploaded, survivors: frozenset[int]) -> None:
    """Whoever will release a sum holds a share of everybody in U3 (C43).

    Sums over different sets would subtract to what opens a single tenant.
    """
    plan = me.setting.plan
    if scheme_of(plan).answers_are_proven or me.index not in plan.same_holders:
        return
    if missing := survivors - {one.dealer for one in state.held}:
        raise ProtocolError(
            f"this participant holds no share of participants {sorted(missing)} of U3",
            step=Step.MASKED_INPUT,
        )


def unmask(me: Self, state: Confirmed, quorum: Quorum) -> tuple[Answered, Signed]:
    """Step 5: after a quorum over the same U3, open one kind of share of each held dealer in U2."""
    view = state.uploaded.agreed.digest
    survivors = Agreement.over(me.setting, view, state.survivors)
    checks.read_quorum(me.setting, survivors, quorum)
    plan, held = me.setting.plan, {one.dealer: one.opened for one in state.uploaded.held}
    answer = scheme_of(plan).answer(plan, view, survivors.indices, held)
    return Answered(view), me.sign(answer)


def _bundle(opened: tuple[Opened, ...]) -> bytes:
    return b"".join(one.share.expose() + one.opening for one in opened)


def _opened(me: Self, bundle: bytes) -> tuple[Opened, ...]:
    scheme, rest, opened = scheme_of(me.setting.plan), bundle, []
    size = scheme.share_bytes(me.setting.plan)
    for kind in scheme.share_kinds:
        share, opening, rest = (
            rest[:size], rest[size : size + OPENING_BYTES], rest[size + OPENING_BYTES :],
        )  # fmt: skip
        opened.append(Opened(kind(share), opening))
    return tuple(opened)


def _commitments(
    me: Self, dealer: int, holder: int, opened: tuple[Opened, ...]
) -> tuple[bytes, ...]:
    return tuple(
        checks.share_commitment(
            me.setting.context, kind, dealer, holder, one.share.expose(), one.opening
        )
        for kind, one in enumerate(opened)
    )
