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

from dataclasses import dataclass

from secagg import checks, merkle, suite
from secagg.checks import OPENING_BYTES, Setting, View
from secagg.errors import FaultyCoordinator, ProtocolError, Step
from secagg.identity import Identity, sha256
from secagg.messages import (
    Acknowledge,
    AgreedView,
    DeliveredLeaf,
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
    Verdict,
)
from secagg.records import U32, U64, Digest, encode
from secagg.scheme import Opened, ProtectionSecrets, RoundSecrets, scheme_of, upload_bytes
from secagg.secret import MaskKeyShare, Randomness, RoundingSeed, SelfMaskShare, Share
from secagg.shamir import parse_share
from secagg.suite import Peer


@dataclass(frozen=True, slots=True)
class Held:
    """The shares that this participant holds of one dealer, with their openings."""

    dealer: U32
    self_mask: SelfMaskShare
    self_mask_opening: Digest
    mask_key: MaskKeyShare
    mask_key_opening: Digest

    def opened(self) -> tuple[Opened, Opened]:
        """In the scheme's order of kinds."""
        return (
            Opened(self.self_mask, self.self_mask_opening),
            Opened(self.mask_key, self.mask_key_opening),
        )


@dataclass(frozen=True, slots=True)
class Advertised:
    """After step 0: secrets drawn, public keys sent."""

    secrets: RoundSecrets
    own: Signed


@dataclass(frozen=True, slots=True)
class Dealt:
    """After step 1: shares sealed and sent; the own share is kept here."""

    secrets: RoundSecrets
    directory: KeyDirectory
    own: Signed
    kept: Held


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """After step 2: holds shares of every dealer that it accepted."""

    protection: ProtectionSecrets
    directory: KeyDirectory
    bodies: tuple[Signed, ...]
    held: tuple[Held, ...]
    own: Signed


@dataclass(frozen=True, slots=True)
class Agreed:
    """Before step 3: U2 and the view are fixed; waits for the input.

    No act stands in the ledger yet, so the digest of the message that was agreed to is kept here.
    """

    request: Digest
    protection: ProtectionSecrets
    directory: KeyDirectory
    members: tuple[U32, ...]
    view: Digest
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

    members: tuple[U32, ...]
    view: Digest
    root: Digest
    held: tuple[Held, ...]


@dataclass(frozen=True, slots=True)
class Confirmed:
    """After step 4: has signed the one U3 that it will help to open."""

    uploaded: Uploaded
    survivors: Survivors


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
    """Step 0: draw this round's secrets and advertise their public keys."""
    secrets = RoundSecrets.draw(randomness)
    own = me.sign(suite.advertise(secrets.channel, secrets.mask))
    return Advertised(secrets, own), own


def share_keys(
    me: Self, state: Advertised, directory: KeyDirectory, randomness: Randomness
) -> tuple[Dealt, ShareKeys]:
    """Step 1: check U1, then deal one sealed share of each secret to each of its members."""
    plan, keys = me.setting.plan, checks.read_directory(me.setting, directory).keys
    if state.own not in directory.keys:
        raise FaultyCoordinator(
            "U1 lacks this participant's own keys, or shows others under its name",
            step=Step.ADVERTISE_KEYS,
        )  # C07
    scheme, holders = scheme_of(plan), tuple(keys)
    dealt = scheme.deal(state.secrets, holders, plan.share_threshold, randomness)
    channel = suite.channel_private(state.secrets.channel)
    leaves: list[Leaf] = []
    kept: Held | None = None
    for holder in holders:
        opened = tuple(Opened(share, randomness(OPENING_BYTES)) for share in dealt[holder])
        bundle = _bundle(opened)
        encapsulation = sealed = b""
        if holder == me.index:
            kept = _held(me.index, bundle)
        else:
            encapsulation, sealed = suite.seal(
                plan.context, Peer(me.index, keys[me.index]), Peer(holder, keys[holder]),
                channel, bundle, randomness,
            )  # fmt: skip
        leaves.append(
            Leaf(holder, encapsulation, sealed, _commitments(me, me.index, holder, opened))
        )
    body = ShareKeysBody(
        holders,
        scheme.secret_commitment(plan, me.index, state.secrets),
        merkle.root([checks.leaf_digest(leaf) for leaf in leaves]),
    )
    own = me.sign(body)
    assert kept is not None  # noqa: S101  the own index is in U1: checked above
    return Dealt(state.secrets, directory, own, kept), ShareKeys(own, tuple(leaves))


def acknowledge(me: Self, state: Dealt, delivery: ShareDelivery) -> tuple[Acknowledged, Signed]:
    """Step 2: open what every dealer dealt, and say which dealers' shares are right."""
    directory = checks.read_directory(me.setting, state.directory)
    bodies = checks.verify_all(me.setting, delivery.bodies, ShareKeysBody)
    checks.check_delivery(directory, bodies, delivery)
    if state.own not in delivery.bodies:
        raise FaultyCoordinator(
            "the delivery lacks this participant's own dealing, or changed it",
            step=Step.SHARE_KEYS,
        )  # C10
    leaves = {delivered.dealer: delivered for delivered in delivery.leaves}
    held = {me.index: state.kept}
    channel = suite.channel_private(state.secrets.channel)
    for dealer in bodies.keys() - {me.index}:
        opened = _open_leaf(me, channel, directory, dealer, bodies[dealer], leaves.get(dealer))
        if opened is not None:
            held[dealer] = opened
    verdicts = tuple(
        Verdict(signed.sender, signed.digest, signed.sender in held) for signed in delivery.bodies
    )
    own = me.sign(Acknowledge(directory.digest, verdicts))
    protection = ProtectionSecrets(state.secrets.mask, state.secrets.self_mask)
    kept = tuple(held[dealer] for dealer in sorted(held))
    return Acknowledged(protection, state.directory, delivery.bodies, kept, own), own


def agree(me: Self, state: Acknowledged, agreed: AgreedView) -> Agreed:
    """Before step 3: check U2 and fix the view that every member must share."""
    if state.own not in agreed.acknowledgements:
        raise FaultyCoordinator(
            "U2 lacks this participant's own acknowledgement, or changed it", step=Step.ACKNOWLEDGE
        )  # C15
    own = state.own.read(Acknowledge)
    bodies = {signed.sender: signed for signed in state.bodies}
    view = checks.read_agreed_view(
        me.setting, state.directory, own.directory_digest, bodies, agreed
    )
    held = tuple(one for one in state.held if one.dealer in view.members)
    request = sha256(encode(agreed))  # encodings are canonical: the digest of what was received
    return Agreed(request, state.protection, state.directory, view.members, view.digest, held)


def begin_upload(
    me: Self, state: Agreed, input_digest: bytes, weight: int, randomness: Randomness
) -> tuple[Uploading, Signed]:
    """Step 3, first part: bind to one input and one rounding, and announce the upload."""
    header = me.sign(UploadHeader(state.view, upload_bytes(me.setting.plan)))
    return Uploading(state, input_digest, weight, RoundingSeed.draw(randomness)), header


def commit_upload(me: Self, state: Uploading, root: bytes) -> tuple[Uploaded, Signed]:
    """Step 3, last part: sign what was uploaded; the seeds of its masks are dropped."""
    agreed = state.agreed
    commitment = UploadCommitment(agreed.view, root, upload_bytes(me.setting.plan))
    return Uploaded(agreed.members, agreed.view, root, agreed.held), me.sign(commitment)


def consistency_check(
    me: Self, state: Uploaded, survivor_set: SurvivorSet
) -> tuple[Confirmed, Signed]:
    """Step 4: sign U3 if everybody in it shares this view. At most once per round."""
    view = View(state.members, state.view)
    survivors = checks.read_survivors(me.setting, view, survivor_set, upload_bytes(me.setting.plan))
    roots = {survivor.index: survivor.root for survivor in survivors.members}
    if roots.get(me.index) != state.root:
        raise FaultyCoordinator(
            "U3 lacks this participant, or shows another upload under its name",
            step=Step.MASKED_INPUT,
        )  # C22
    return Confirmed(state, survivors), me.sign(survivors)


def unmask(me: Self, state: Confirmed, quorum: Quorum) -> tuple[Answered, Signed]:
    """Step 5: after a quorum over the same U3, open one kind of share of each dealer in U2."""
    checks.read_quorum(me.setting, state.survivors, quorum)
    survivors = frozenset(survivor.index for survivor in state.survivors.members)
    held = {one.dealer: one.opened() for one in state.uploaded.held}
    answers = scheme_of(me.setting.plan).answers(state.uploaded.members, survivors, held)
    return Answered(state.uploaded.view), me.sign(Unmask(state.uploaded.view, answers))


def _bundle(opened: tuple[Opened, ...]) -> bytes:
    return b"".join(one.share.expose() + one.opening for one in opened)


def bundle_bytes() -> int:
    """Length of a share bundle's plaintext."""
    return 2 * (Share.LENGTH + OPENING_BYTES)


def _held(dealer: int, bundle: bytes) -> Held:
    share, end = Share.LENGTH, Share.LENGTH + OPENING_BYTES
    return Held(
        dealer,
        parse_share(bundle[:share], SelfMaskShare),
        bundle[share:end],
        parse_share(bundle[end : end + share], MaskKeyShare),
        bundle[end + share :],
    )


def _commitments(
    me: Self, dealer: int, holder: int, opened: tuple[Opened, ...]
) -> tuple[bytes, ...]:
    return tuple(
        checks.share_commitment(
            me.setting.context, kind, dealer, holder, one.share.expose(), one.opening
        )
        for kind, one in enumerate(opened)
    )


def _open_leaf(
    me: Self,
    channel: suite.PrivateKey,
    directory: checks.Directory,
    dealer: int,
    body: ShareKeysBody,
    delivered: DeliveredLeaf | None,
) -> Held | None:
    """The dealer's shares, or None: that is a complaint, and says nothing about who is at fault."""
    if delivered is None:
        return None
    leaf, keys = delivered.leaf, directory.keys
    try:
        checks.check_leaf(leaf, len(scheme_of(me.setting.plan).share_kinds), bundle_bytes())
        checks.check_path(body, leaf, delivered.path, me.index)
        bundle = suite.open_sealed(
            me.setting.context, Peer(dealer, keys[dealer]), Peer(me.index, keys[me.index]),
            channel, leaf.encapsulation, leaf.sealed,
        )  # fmt: skip
        held = _held(dealer, bundle)
    except ProtocolError:
        return None
    if _commitments(me, dealer, me.index, held.opened()) != leaf.commitments:  # C11
        return None
    return held
