"""The checks that every verifier of a round makes, whichever side it is on.

Participants, the aggregator and whoever verifies a transcript call the same functions, so that
they cannot disagree about what a valid round is. Each check carries its number in
docs/protocol.md. Functions are pure; they raise `ProtocolError` and change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from secagg import merkle
from secagg.edges import Edges, seals_pad
from secagg.errors import ConfigError, MalformedMessage, ProtocolError
from secagg.identity import Roster, labelled_hash
from secagg.messages import (
    Acknowledge,
    AdvertiseKeys,
    AgreedView,
    Body,
    BodyT,
    Dealing,
    KeyDirectory,
    Leaf,
    LeafOutline,
    Quorum,
    ShareDelivery,
    ShareKeys,
    ShareKeysBody,
    Signed,
    Survivor,
    Survivors,
    SurvivorSet,
    Unmask,
    UploadCommitment,
)
from secagg.plan import RoundPlan
from secagg.records import encode
from secagg.scheme import scheme_of
from secagg.suite import TAG_BYTES, check_public_keys, encapsulation_bytes, pad_box_bytes

OPENING_BYTES = 32


@dataclass(frozen=True, slots=True)
class Setting:
    """What both sides of a round know from its beginning: a plan within its roster (C38).

    `verified` has the digests of signed records that this party has verified, or signed itself: no
    signature is verified again in every bundle that carries it.
    """

    plan: RoundPlan
    roster: Roster
    verified: set[bytes] = field(default_factory=set, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.plan.roster_digest != self.roster.digest:
            raise ConfigError("plan: it was made for another roster")
        if strangers := [name for name in self.plan.cohort if name not in self.roster]:
            raise ConfigError(f"plan: {strangers[:5]} of the cohort are not in the roster")
        if self.plan.committee != self.roster.committee:
            raise ConfigError("plan: its committee is not the roster's")

    @property
    def context(self) -> bytes:
        """See `RoundPlan.context`."""
        return self.plan.context


class Directory(NamedTuple):
    """U1 with everybody's keys, and the digest that acknowledgements name."""

    keys: Mapping[int, AdvertiseKeys]
    digest: bytes


def verify(setting: Setting, signed: Signed, kind: type[BodyT]) -> BodyT:
    """The body of `signed`, if a member of the cohort signed it in this round (C02, C03)."""
    plan = setting.plan
    if signed.sender >= plan.n:
        raise MalformedMessage(
            f"sender {signed.sender} is outside the cohort of {plan.n}", step=kind.STEP
        )
    body, digest = signed.read(kind), signed.digest
    if digest in setting.verified:
        return body
    member = setting.roster[plan.cohort[signed.sender]]
    if not member.verify(plan.suite, kind.LABEL, plan.context, signed.body, signed.signature):
        raise ProtocolError(
            f"{kind.LABEL} of {member.tenant!r} is not signed by the key in the pinned roster "
            "for this round",
            step=kind.STEP,
        )
    setting.verified.add(digest)
    return body


def verify_all(setting: Setting, records: Iterable[Signed], kind: type[BodyT]) -> dict[int, BodyT]:
    """Bodies by sender; senders must rise strictly (C04: unique and in index order)."""
    bodies: dict[int, BodyT] = {}
    last = -1
    for signed in records:
        if signed.sender <= last:
            raise MalformedMessage(
                f"{kind.LABEL}: senders are not unique and in index order", step=kind.STEP
            )
        last = signed.sender
        bodies[last] = verify(setting, signed, kind)
    return bodies


def require_size(setting: Setting, have: int, kind: type[Body], name: str) -> None:
    """|U1|, |U2| and |U3| are at least max(q, min_survivors, t) (C05)."""
    if have < setting.plan.least:
        raise ProtocolError(
            f"{name} has {have} members and the plan needs {setting.plan.least}", step=kind.STEP
        )


def read_directory(setting: Setting, directory: KeyDirectory) -> Directory:
    """U1: signed, unique, in order, large enough, every key sound (C02 to C06)."""
    keys = verify_all(setting, directory.keys, AdvertiseKeys)
    require_size(setting, len(keys), AdvertiseKeys, "U1")
    masks = scheme_of(setting.plan).has_mask_keys
    for advertised in keys.values():
        check_public_keys(setting.plan.suite, advertised, masks)
    publics = [key for one in keys.values() for key in public_halves(one)]
    if len(set(publics)) != len(publics):
        raise ProtocolError("two participants advertise one key", step=AdvertiseKeys.STEP)  # C06
    return known_directory(setting, directory)


def known_directory(setting: Setting, directory: KeyDirectory) -> Directory:
    """A directory that this party has checked before, or has put together of checked keys."""
    keys = {signed.sender: signed.read(AdvertiseKeys) for signed in directory.keys}
    return Directory(keys, labelled_hash("directory", setting.context, encode(directory)))


def public_halves(keys: AdvertiseKeys) -> tuple[bytes, ...]:
    """Every public key in a message: none may stand in two places."""
    halves = (keys.channel_key, keys.mask_key, keys.channel_kem, keys.mask_kem)
    return tuple(half for half in halves if half)


def read_share_keys(setting: Setting, directory: Directory, message: ShareKeys) -> Dealing:
    """A dealer's body and all its leaves, as the aggregator sees them (C08, C09)."""
    dealing = Dealing(message.body, tuple(leaf.outline for leaf in message.leaves))
    read_dealing(setting, directory, dealing)
    for leaf in message.leaves:
        check_leaf(setting.plan, message.body.sender, leaf)
    return dealing


def read_dealing(setting: Setting, directory: Directory, dealing: Dealing) -> ShareKeysBody:
    """A dealer's body and the outlines of all its leaves (C08, C09)."""
    body = verify(setting, dealing.body, ShareKeysBody)
    check_dealing(setting.plan, directory, dealing.body.sender, body)
    if tuple(leaf.holder for leaf in dealing.leaves) != body.holders:
        raise MalformedMessage("leaves and holders differ", step=ShareKeysBody.STEP)
    if merkle.root([leaf_digest(leaf) for leaf in dealing.leaves]) != body.leaves_root:
        raise MalformedMessage("the leaves do not hang under their root", step=ShareKeysBody.STEP)
    return body


def check_dealing(plan: RoundPlan, directory: Directory, dealer: int, body: ShareKeysBody) -> None:
    """The holders are U1 on the complete graph, the committee's part of U1 where there is one, else
    t to k others of U1, in order (C08).

    A dealer drew k, and no more of those can be missing here than are missing in U1: with fewer
    holders than that, one that falls silent could end the round.
    """
    if dealer not in directory.keys:
        raise ProtocolError("a dealer is outside U1", step=ShareKeysBody.STEP)
    holders = body.holders
    if len(body.secret_commitment) != scheme_of(plan).commitment_bytes(plan):  # C09
        raise MalformedMessage("the commitment has another size", step=ShareKeysBody.STEP)
    if plan.same_holders:
        if holders != tuple(one for one in plan.same_holders if one in directory.keys):
            raise ProtocolError(
                "the holders are not U1, or not the committee in it", step=ShareKeysBody.STEP
            )
        return
    missing = plan.n - len(directory.keys)
    fewest = max(plan.share_threshold, plan.share_count - missing)
    if (
        list(holders) != sorted(set(holders))
        or dealer in holders
        or not directory.keys.keys() >= set(holders)
        or not fewest <= len(holders) <= plan.share_count
    ):
        raise ProtocolError(
            f"participant {dealer} does not deal to {fewest} to {plan.share_count} others of U1, "
            "in order",
            step=ShareKeysBody.STEP,
        )


def check_delivery(
    plan: RoundPlan,
    directory: Directory,
    bodies: Mapping[int, ShareKeysBody],
    delivery: ShareDelivery,
) -> None:
    """Dealers are in U1 and dealt within it; leaves are unique, in order and of dealers (C08)."""
    for dealer, body in bodies.items():
        check_dealing(plan, directory, dealer, body)
    dealers = [delivered.dealer for delivered in delivery.leaves]
    if dealers != sorted(set(dealers)) or not set(dealers) <= bodies.keys():
        raise MalformedMessage("leaves are not unique and in order", step=ShareKeysBody.STEP)


def check_leaf(plan: RoundPlan, dealer: int, leaf: Leaf) -> None:
    """A leaf has the one size that scheme and suite give it (C09)."""
    pad = pad_box_bytes(plan.suite) if seals_pad(plan, dealer, leaf.holder) else 0
    own = leaf.holder == dealer
    if (
        len(leaf.commitments) != len(scheme_of(plan).share_kinds)
        or len(leaf.sealed) != (0 if own else bundle_bytes(plan) + TAG_BYTES)
        or len(leaf.encapsulation) != (0 if own else encapsulation_bytes(plan.suite))
        or len(leaf.pad_box) != pad
        or len(leaf.pad_commitment) != (merkle.HASH_BYTES if pad else 0)
    ):
        raise MalformedMessage("a leaf has another size than its scheme", step=ShareKeysBody.STEP)


def bundle_bytes(plan: RoundPlan) -> int:
    """Length of a share bundle's plaintext."""
    scheme = scheme_of(plan)
    return len(scheme.share_kinds) * (scheme.share_bytes(plan) + OPENING_BYTES)


def leaf_digest(leaf: LeafOutline) -> bytes:
    """The Merkle leaf hash of a share leaf (RFC 6962)."""
    return merkle.leaf_hash(encode(leaf))


def check_path(body: ShareKeysBody, leaf: Leaf, path: Sequence[bytes], holder: int) -> None:
    """The leaf is this holder's and hangs under the dealer's signed root (C09)."""
    if leaf.holder != holder or holder not in body.holders:
        raise MalformedMessage("a leaf of another holder", step=ShareKeysBody.STEP)
    place, digest = body.holders.index(holder), leaf_digest(leaf.outline)
    if not merkle.verify_path(digest, place, len(body.holders), path, body.leaves_root):
        raise MalformedMessage("a leaf does not hang under its root", step=ShareKeysBody.STEP)


def share_commitment(
    context: bytes, kind: int, dealer: int, holder: int, share: bytes, opening: bytes
) -> bytes:
    """H(label, context, kind, dealer, holder, share, r): hides and binds one share."""
    place = b"".join(number.to_bytes(4) for number in (kind, dealer, holder))
    return labelled_hash("share commitment", context, place, share, opening)


def secret_commitment(context: bytes, dealer: int, secret: bytes) -> bytes:
    """The dealer's commitment to its self-mask seed (32 uniform bytes need no opening)."""
    return labelled_hash("secret commitment", context, dealer.to_bytes(4), secret)


@dataclass(frozen=True, slots=True)
class View:
    """U2, who in it holds whose shares, and the digest of all that its members must agree on."""

    digest: bytes
    edges: Edges

    @property
    def members(self) -> tuple[int, ...]:
        """U2, in index order."""
        return tuple(self.edges.holders)


def dealings_digest(setting: Setting, bodies: Iterable[Signed]) -> bytes:
    """What an acknowledgement says about the dealings it was shown, in index order."""
    return labelled_hash("dealings", setting.context, b"".join(one.digest for one in bodies))


def read_agreed_view(
    setting: Setting,
    directory: KeyDirectory,
    directory_digest: bytes,
    bodies: Mapping[int, Signed],
    agreed: AgreedView,
) -> View:
    """U2: every member was shown one U1 and one set of dealings, and accepts it (C12 to C14)."""
    acknowledgements = verify_all(setting, agreed.acknowledgements, Acknowledge)
    members = tuple(acknowledgements)
    require_size(setting, len(members), Acknowledge, "U2")
    if not set(members) <= set(bodies):
        raise ProtocolError("U2 has a member that dealt no shares", step=Acknowledge.STEP)  # C12
    dealings = dealings_digest(setting, bodies.values())
    for holder, acknowledgement in acknowledgements.items():
        if acknowledgement.directory_digest != directory_digest:
            raise ProtocolError(
                f"participant {holder} was shown another U1", step=Acknowledge.STEP
            )  # C13
        if acknowledgement.dealings_digest != dealings or not acknowledgements.keys().isdisjoint(
            acknowledgement.refused
        ):
            raise ProtocolError(
                f"participant {holder} has not acknowledged every member of U2",
                step=Acknowledge.STEP,
            )  # C14
    holders = {member: bodies[member].read(ShareKeysBody).holders for member in members}
    edges = Edges.of(holders, members)
    require_holders(setting, edges, frozenset(members), Acknowledge)
    return View(view_digest(setting, directory, bodies, agreed), edges)


def require_holders(
    setting: Setting, edges: Edges, within: frozenset[int], kind: type[Body]
) -> None:
    """Every member of U2 has at least t holders among `within` (C21).

    On a sparse graph this also keeps any part of the honest survivors from being cut off.
    """
    if edges.fewest_holders(within) < setting.plan.share_threshold:
        raise ProtocolError(
            f"a member of U2 has {edges.fewest_holders(within)} holders among those who are left, "
            f"and {setting.plan.share_threshold} are needed",
            step=kind.STEP,
        )


def view_digest(
    setting: Setting, directory: KeyDirectory, bodies: Mapping[int, Signed], agreed: AgreedView
) -> bytes:
    """H(U1's signed keys, U2's signed bodies, U2's signed acknowledgements), in index order."""
    members = [signed.sender for signed in agreed.acknowledgements]
    return labelled_hash(
        "view",
        setting.context,
        encode(directory),
        b"".join(bodies[member].digest for member in members),
        encode(agreed),
    )


@dataclass(frozen=True, slots=True)
class Agreement:
    """U3 as it was read: its members with their roots, and the body that signs them."""

    members: tuple[Survivor, ...]
    body: Survivors

    @classmethod
    def over(cls, setting: Setting, view: bytes, members: tuple[Survivor, ...]) -> Agreement:
        """What is signed for these members under this view."""
        listed = b"".join(encode(member) for member in members)
        digest = labelled_hash("survivors", setting.context, listed)
        return cls(members, Survivors(view, digest))

    @property
    def indices(self) -> frozenset[int]:
        """U3."""
        return frozenset(member.index for member in self.members)


def read_survivors(setting: Setting, view: View, survivors: SurvivorSet, size: int) -> Agreement:
    """U3: signed, same view, inside U2, large enough to open (C18 to C21)."""
    commitments = verify_all(setting, survivors.commitments, UploadCommitment)
    for sender, commitment in commitments.items():
        check_commitment(view.digest, commitment, size, sender)
    if not set(commitments) <= set(view.members):
        raise ProtocolError("a survivor is outside U2", step=UploadCommitment.STEP)  # C19
    require_size(setting, len(commitments), UploadCommitment, "U3")  # C20
    require_holders(setting, view.edges, frozenset(commitments), UploadCommitment)
    members = tuple(Survivor(index, one.root) for index, one in commitments.items())
    return Agreement.over(setting, view.digest, members)


def check_commitment(view: bytes, commitment: UploadCommitment, size: int, sender: int) -> None:
    """An upload commitment names this view and the plan's length (C18)."""
    if commitment.view != view:
        raise ProtocolError(
            f"participant {sender} uploaded under another view", step=UploadCommitment.STEP
        )
    if commitment.length != size:
        raise ProtocolError(
            f"participant {sender} committed to {commitment.length} bytes instead of {size}",
            step=UploadCommitment.STEP,
        )


def read_quorum(setting: Setting, expected: Agreement, quorum: Quorum) -> tuple[int, ...]:
    """q signatures of members of U3 over this very U3 (C23); returns the signers."""
    signatures = verify_all(setting, quorum.signatures, Survivors)
    if not set(signatures) <= expected.indices:
        raise ProtocolError("a signer is outside U3", step=Survivors.STEP)
    if any(signed != expected.body for signed in signatures.values()):
        raise ProtocolError("a signature is over another U3", step=Survivors.STEP)
    if len(signatures) < setting.plan.quorum:
        raise ProtocolError(
            f"{len(signatures)} signatures are below the quorum of {setting.plan.quorum}",
            step=Survivors.STEP,
        )
    return tuple(signatures)


def check_answers(
    setting: Setting,
    view: View,
    survivors: Agreement,
    outlines: Mapping[int, Mapping[int, LeafOutline]],
    holder: int,
    body: Unmask,
) -> None:
    """One share for each dealer in U2 whose holder it is: of the kind that U3 asks for, as it was
    committed to; or one sum of shares, of the one size that it has (C25). `outlines` are by dealer
    and holder.

    Raises:
        ProtocolError: `holder`, who signed `body`, is faulty.
    """
    scheme, members = scheme_of(setting.plan), survivors.indices
    if not scheme.answers_are_proven:
        if body.view != view.digest or body.answers:
            raise ProtocolError("it answered with something else than a sum", step=Unmask.STEP)
        scheme.check_sum_of_shares(setting.plan, bool(view.edges.holds(holder)), body.key_sum)
        return
    if body.key_sum:
        raise ProtocolError("it answered with a sum of shares", step=Unmask.STEP)
    expected = tuple(
        (dealer, scheme.expected_kind(dealer, members)) for dealer in view.edges.holds(holder)
    )
    given = tuple((answer.dealer, answer.kind) for answer in body.answers)
    if body.view != view.digest or given != expected:
        raise ProtocolError(
            "it answered for other dealers or kinds than U3 asks for", step=Unmask.STEP
        )
    for answer in body.answers:
        committed = outlines[answer.dealer][holder].commitments[answer.kind]
        if committed != share_commitment(
            setting.context, answer.kind, answer.dealer, holder, answer.share, answer.opening
        ):
            raise ProtocolError(
                f"its share of participant {answer.dealer} is not the one dealt to it",
                step=Unmask.STEP,
            )
