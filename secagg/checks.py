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
from secagg.errors import ConfigError, MalformedMessage, ProtocolError
from secagg.identity import Roster, labelled_hash
from secagg.messages import (
    Acknowledge,
    AdvertiseKeys,
    AgreedView,
    Body,
    BodyT,
    KeyDirectory,
    Leaf,
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
from secagg.suite import TAG_BYTES, check_public_keys

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
    for advertised in keys.values():
        check_public_keys(advertised)
    publics = [key for one in keys.values() for key in (one.channel_key, one.mask_key)]
    if len(set(publics)) != len(publics):
        raise ProtocolError("two participants advertise one key", step=AdvertiseKeys.STEP)  # C06
    return Directory(keys, labelled_hash("directory", setting.context, encode(directory)))


def read_share_keys(
    setting: Setting, directory: Directory, message: ShareKeys, kinds: int, sealed_bytes: int
) -> ShareKeysBody:
    """A dealer's body and all its leaves, as the aggregator sees them (C08, C09)."""
    body = verify(setting, message.body, ShareKeysBody)
    if message.body.sender not in directory.keys:
        raise ProtocolError("a dealer is outside U1", step=ShareKeysBody.STEP)
    check_dealing(directory, body)
    if tuple(leaf.holder for leaf in message.leaves) != body.holders:
        raise MalformedMessage("leaves and holders differ", step=ShareKeysBody.STEP)
    for leaf in message.leaves:
        own = leaf.holder == message.body.sender
        check_leaf(leaf, kinds, 0 if own else sealed_bytes)
    if merkle.root([leaf_digest(leaf) for leaf in message.leaves]) != body.leaves_root:
        raise MalformedMessage("the leaves do not hang under their root", step=ShareKeysBody.STEP)
    return body


def check_dealing(directory: Directory, body: ShareKeysBody) -> None:
    """On the complete graph a dealer deals to all of U1, itself included (C08)."""
    if body.holders != tuple(directory.keys):
        raise ProtocolError("the holders are not U1", step=ShareKeysBody.STEP)


def check_delivery(
    directory: Directory, bodies: Mapping[int, ShareKeysBody], delivery: ShareDelivery
) -> None:
    """Dealers are in U1 and dealt to U1; leaves are unique, in order and of dealers (C08)."""
    if not bodies.keys() <= directory.keys.keys():
        raise ProtocolError("a dealer is outside U1", step=ShareKeysBody.STEP)
    for body in bodies.values():
        check_dealing(directory, body)
    dealers = [delivered.dealer for delivered in delivery.leaves]
    if dealers != sorted(set(dealers)) or not set(dealers) <= bodies.keys():
        raise MalformedMessage("leaves are not unique and in order", step=ShareKeysBody.STEP)


def check_leaf(leaf: Leaf, kinds: int, sealed_bytes: int) -> None:
    """A leaf has the one size that the scheme gives it (C09)."""
    sealed = sealed_bytes + TAG_BYTES if sealed_bytes else 0
    if (
        len(leaf.commitments) != kinds
        or len(leaf.sealed) != sealed
        or len(leaf.encapsulation) != (32 if sealed_bytes else 0)
        or leaf.pad_box
        or leaf.pad_commitment
    ):
        raise MalformedMessage("a leaf has another size than its scheme", step=ShareKeysBody.STEP)


def leaf_digest(leaf: Leaf) -> bytes:
    """The Merkle leaf hash of a share leaf (RFC 6962)."""
    return merkle.leaf_hash(encode(leaf))


def check_path(body: ShareKeysBody, leaf: Leaf, path: Sequence[bytes], holder: int) -> None:
    """The leaf is this holder's and hangs under the dealer's signed root (C09)."""
    place = body.holders.index(holder)
    digest = leaf_digest(leaf)
    if leaf.holder != holder or not merkle.verify_path(
        digest, place, len(body.holders), path, body.leaves_root
    ):
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
    """U2 and everything that its members must agree on before they upload."""

    members: tuple[int, ...]
    digest: bytes


def read_agreed_view(
    setting: Setting,
    directory: KeyDirectory,
    directory_digest: bytes,
    bodies: Mapping[int, Signed],
    agreed: AgreedView,
) -> View:
    """U2: every member acknowledged every member's body, all over one U1 (C12 to C14)."""
    acknowledgements = verify_all(setting, agreed.acknowledgements, Acknowledge)
    members = tuple(acknowledgements)
    require_size(setting, len(members), Acknowledge, "U2")
    if not set(members) <= set(bodies):
        raise ProtocolError("U2 has a member that dealt no shares", step=Acknowledge.STEP)  # C12
    digests = {member: bodies[member].digest for member in members}
    for holder, acknowledgement in acknowledgements.items():
        if acknowledgement.directory_digest != directory_digest:
            raise ProtocolError(
                f"participant {holder} was shown another U1", step=Acknowledge.STEP
            )  # C13
        accepted = {v.dealer: v.body_digest for v in acknowledgement.verdicts if v.ok}
        if any(accepted.get(dealer) != digest for dealer, digest in digests.items()):
            raise ProtocolError(
                f"participant {holder} has not acknowledged every member of U2",
                step=Acknowledge.STEP,
            )  # C14
    return View(members, view_digest(setting, directory, bodies, agreed))


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


def read_survivors(setting: Setting, view: View, survivors: SurvivorSet, size: int) -> Survivors:
    """U3: signed, same view, inside U2, large enough to open (C18 to C21)."""
    commitments = verify_all(setting, survivors.commitments, UploadCommitment)
    for sender, commitment in commitments.items():
        check_commitment(view.digest, commitment, size, sender)
    if not set(commitments) <= set(view.members):
        raise ProtocolError("a survivor is outside U2", step=UploadCommitment.STEP)  # C19
    # C20; and C21: on the complete graph each member of U3 holds a share of each member of U2, and
    # `least` is at least t.
    require_size(setting, len(commitments), UploadCommitment, "U3")
    members = tuple(Survivor(index, one.root) for index, one in commitments.items())
    return Survivors(view.digest, members)


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


def read_quorum(setting: Setting, expected: Survivors, quorum: Quorum) -> tuple[int, ...]:
    """q signatures of members of U3 over this very U3 (C23); returns the signers."""
    signatures = verify_all(setting, quorum.signatures, Survivors)
    members = {survivor.index for survivor in expected.members}
    if not set(signatures) <= members:
        raise ProtocolError("a signer is outside U3", step=Survivors.STEP)
    if any(signed != expected for signed in signatures.values()):
        raise ProtocolError("a signature is over another U3", step=Survivors.STEP)
    if len(signatures) < setting.plan.quorum:
        raise ProtocolError(
            f"{len(signatures)} signatures are below the quorum of {setting.plan.quorum}",
            step=Survivors.STEP,
        )
    return tuple(signatures)


def check_answers(
    setting: Setting,
    directory: Directory,
    view: View,
    survivors: Survivors,
    dealings: Mapping[int, ShareKeys],
    holder: int,
    body: Unmask,
) -> None:
    """One share for each dealer in U2: of the kind that U3 asks for, as it was committed to (C25).

    Raises:
        ProtocolError: `holder`, who signed `body`, is faulty.
    """
    scheme, members = scheme_of(setting.plan), frozenset(one.index for one in survivors.members)
    expected = tuple((dealer, scheme.expected_kind(dealer, members)) for dealer in view.members)
    given = tuple((answer.dealer, answer.kind) for answer in body.answers)
    if body.view != view.digest or given != expected:
        raise ProtocolError(
            "it answered for other dealers or kinds than U3 asks for", step=Unmask.STEP
        )
    place = tuple(directory.keys).index(holder)
    for answer in body.answers:
        committed = dealings[answer.dealer].leaves[place].commitments[answer.kind]
        if committed != share_commitment(
            setting.context, answer.kind, answer.dealer, holder, answer.share, answer.opening
        ):
            raise ProtocolError(
                f"its share of participant {answer.dealer} is not the one dealt to it",
                step=Unmask.STEP,
            )
