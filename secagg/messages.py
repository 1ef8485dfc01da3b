"""The messages of a round: what is said, by whom, in which step.

Participants send `Signed` records (and `ShareKeys`, whose leaves hang under a signed Merkle root).
The aggregator has no key of its own: what it sends back are those same signed records, bundled,
so that it can only withhold, never invent. Field order is wire order (see `records.py`).

    step                participant sends                 aggregator returns
    advertise_keys      AdvertiseKeys                     KeyDirectory        U1
    share_keys          ShareKeysBody + Leaf per holder   ShareDelivery       bodies, own leaves
    acknowledge         Acknowledge                       AgreedView          U2
    masked_input        UploadHeader, chunks,
                        UploadCommitment                  SurvivorSet         U3
    consistency_check   Survivors                         Quorum
    unmask              Unmask                            (the sum)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar, cast, get_args

from secagg.errors import MalformedMessage, Step
from secagg.identity import NO_CONTEXT, Identity, labelled_hash, sha256
from secagg.plan import RoundPlan
from secagg.records import (
    U8,
    U32,
    U64,
    Digest,
    Kept,
    Key32,
    ShareValue,
    Signature,
    decode,
    encode,
)

_COUNT_BYTES = 4  # in front of a tuple's items (records.py)


@dataclass(frozen=True, slots=True)
class AdvertiseKeys:
    """Step 0: fresh public keys. The KEM keys are empty in suite `x25519`, the mask keys in scheme
    `ckks`."""

    channel_key: Key32
    mask_key: bytes
    channel_kem: bytes = b""
    mask_kem: bytes = b""

    STEP: ClassVar[Step] = Step.ADVERTISE_KEYS
    LABEL: ClassVar[str] = "advertise_keys"


@dataclass(frozen=True, slots=True)
class Leaf(Kept):
    """Step 1: what one dealer hands one holder, under the dealer's Merkle root.

    `commitments` has one entry per share kind, in the scheme's order. `sealed` is empty in the
    dealer's own leaf (it keeps its own share). `pad_box` and `pad_commitment` belong to hybrid
    suites, and there to the pairs whose pad this dealer draws; else they are empty.
    """

    holder: U32
    encapsulation: bytes
    sealed: bytes
    commitments: tuple[Digest, ...]
    pad_box: bytes = b""
    pad_commitment: bytes = b""

    @property
    def outline(self) -> LeafOutline:
        """What the dealer's Merkle tree covers."""
        return LeafOutline(
            self.holder,
            self.commitments,
            self.pad_commitment,
            labelled_hash("bundle", NO_CONTEXT, self.encapsulation, self.sealed),
            box_digest(self.pad_box),
        )


def box_digest(box: bytes) -> bytes:
    """What a leaf's outline says about its pad box."""
    return labelled_hash("pad box", NO_CONTEXT, box)


@dataclass(frozen=True, slots=True)
class LeafOutline(Kept):
    """A leaf with digests in place of what is sealed: enough to check an opened share by.

    Leaves are thousands of bytes in hybrid suites, and a transcript has one for every share.
    """

    holder: U32
    commitments: tuple[Digest, ...]
    pad_commitment: bytes
    bundle_digest: Digest
    box_digest: Digest


@dataclass(frozen=True, slots=True)
class ShareKeysBody:
    """Step 1: the signed part. `secret_commitment` fixes what is dealt: a digest of the self-mask
    seed (`masking`), or the polynomials by which holders check their shares of a key (`ckks`).

    `holders` are those members of U1 that hold its shares, in index order: all of them on the
    complete graph, those of its own drawing on a sparse one, else the committee.
    """

    holders: tuple[U32, ...]
    secret_commitment: bytes
    leaves_root: Digest

    STEP: ClassVar[Step] = Step.SHARE_KEYS
    LABEL: ClassVar[str] = "share_keys"


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Step 2: which U1 and which dealings the holder was shown, and whose shares it refuses.

    `dealings_digest` covers every dealer's signed body, in index order. A refused dealer is a
    complaint, not a proof.
    """

    directory_digest: Digest
    dealings_digest: Digest
    refused: tuple[U32, ...]

    STEP: ClassVar[Step] = Step.ACKNOWLEDGE
    LABEL: ClassVar[str] = "acknowledge"


@dataclass(frozen=True, slots=True)
class UploadHeader:
    """Step 3: announces an upload of `length` packed bytes under a view."""

    view: Digest
    length: U64

    STEP: ClassVar[Step] = Step.MASKED_INPUT
    LABEL: ClassVar[str] = "upload_header"


@dataclass(frozen=True, slots=True)
class UploadCommitment:
    """Step 3: ends an upload; `root` is the Merkle root (RFC 6962) over its leaves."""

    view: Digest
    root: Digest
    length: U64

    STEP: ClassVar[Step] = Step.MASKED_INPUT
    LABEL: ClassVar[str] = "upload_commitment"


@dataclass(frozen=True, slots=True)
class Survivor:
    """One member of U3 and the root of its upload."""

    index: U32
    root: Digest


@dataclass(frozen=True, slots=True)
class Survivors:
    """Step 4: the one U3 that this participant will help to open.

    `members_digest` covers the `Survivor` of every member, in index order (`checks.Agreement`).
    """

    view: Digest
    members_digest: Digest

    STEP: ClassVar[Step] = Step.CONSISTENCY_CHECK
    LABEL: ClassVar[str] = "consistency_check"


@dataclass(frozen=True, slots=True)
class Answer:
    """Step 5: one opened share. `kind` is its position in the scheme's share kinds."""

    dealer: U32
    kind: U8
    share: ShareValue
    opening: Digest


@dataclass(frozen=True, slots=True)
class Unmask:
    """Step 5: exactly one kind of share for each dealer in U2 whose shares its sender holds; in
    scheme `ckks` no single share but one sum, over U3, of those that its sender holds."""

    view: Digest
    answers: tuple[Answer, ...]
    key_sum: bytes = b""

    STEP: ClassVar[Step] = Step.UNMASK
    LABEL: ClassVar[str] = "unmask"


Body = (
    AdvertiseKeys
    | ShareKeysBody
    | Acknowledge
    | UploadHeader
    | UploadCommitment
    | Survivors
    | Unmask
)
BODIES: dict[str, type[Body]] = {kind.LABEL: kind for kind in get_args(Body)}
BodyT = TypeVar("BodyT", bound=Body)


@dataclass(frozen=True, slots=True)
class Signed(Kept):
    """A body under its sender's Ed25519 signature; `sender` is the index in the cohort."""

    label: str
    sender: U32
    body: bytes
    signature: Signature

    @classmethod
    def create(cls, plan: RoundPlan, identity: Identity, body: Body) -> Signed:
        """Sign `body` for this plan."""
        data = encode(body)
        signature = identity.sign(plan.suite, body.LABEL, plan.context, data)
        return cls(body.LABEL, cast(int, plan.index(identity.tenant)), data, signature)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the whole record, signature included."""
        return sha256(encode(self))

    def read(self, kind: type[BodyT]) -> BodyT:
        """The body, which must be of type `kind`."""
        if self.label != kind.LABEL:
            raise MalformedMessage(
                f"expected {kind.LABEL}, got {self.label[:32]!r}", step=kind.STEP
            )
        return decode(kind, self.body)


@dataclass(frozen=True, slots=True)
class ShareKeys:
    """Step 1, as sent: the signed body and its leaves, in the order of its holders."""

    body: Signed
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True, slots=True)
class Dealing:
    """Step 1, as a transcript keeps it: the signed body and the outlines of its leaves."""

    body: Signed
    leaves: tuple[LeafOutline, ...]

    def by_holder(self) -> dict[int, LeafOutline]:
        """The outlines by their holders."""
        return {leaf.holder: leaf for leaf in self.leaves}


@dataclass(frozen=True, slots=True)
class PadBox:
    """One sealed pad, of a dropout or for one, with which the sum was opened."""

    dealer: U32
    holder: U32
    box: bytes


@dataclass(frozen=True, slots=True)
class PadBoxes:
    """The pads of all pairs of a survivor and a dropout; empty in suite `x25519`."""

    boxes: tuple[PadBox, ...]


@dataclass(frozen=True, slots=True)
class KeyDirectory:
    """U1: everybody's signed keys, in index order."""

    keys: tuple[Signed, ...]


@dataclass(frozen=True, slots=True)
class DeliveredLeaf:
    """One dealer's leaf for the receiving holder, with its Merkle path."""

    dealer: U32
    leaf: Leaf
    path: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class ShareDelivery:
    """Every dealer's signed body, and the receiving holder's own leaves."""

    bodies: tuple[Signed, ...]
    leaves: tuple[DeliveredLeaf, ...]


def share_delivery_parts(
    bodies: tuple[Signed, ...], leaves: Mapping[int, Sequence[DeliveredLeaf]]
) -> Iterator[tuple[int, tuple[bytes, bytes]]]:
    """Every holder's `ShareDelivery` in two parts, of which the first is the same for all."""
    empty = encode(ShareDelivery((), ()))
    shared = encode(ShareDelivery(bodies, ()))[:-_COUNT_BYTES]
    for holder, own in leaves.items():
        yield holder, (shared, encode(ShareDelivery((), tuple(own)))[len(empty) - _COUNT_BYTES :])


@dataclass(frozen=True, slots=True)
class AgreedView:
    """U2: the signed acknowledgements of those who stay, in index order."""

    acknowledgements: tuple[Signed, ...]


@dataclass(frozen=True, slots=True)
class SurvivorSet:
    """U3: the signed upload commitments, in index order."""

    commitments: tuple[Signed, ...]


@dataclass(frozen=True, slots=True)
class Quorum:
    """Signatures of members of U3 over one and the same `Survivors`."""

    signatures: tuple[Signed, ...]


Uplink = Signed | ShareKeys
Downlink = KeyDirectory | ShareDelivery | AgreedView | SurvivorSet | Quorum
Archived = Dealing | PadBoxes
Message = Uplink | Downlink | Archived
_MESSAGES: dict[bytes, type[Message]] = {kind.__name__.encode(): kind for kind in get_args(Message)}


def decode_message(data: bytes) -> Message:
    """The message in `data`, of whichever type its tag says.

    Raises:
        MalformedMessage: not exactly one message in canonical bytes.
    """
    kind = _MESSAGES.get(data[5 : 5 + int.from_bytes(data[1:5])])
    if kind is None:
        raise MalformedMessage("these bytes are no message of secagg/1")
    return decode(kind, data)


def downlink_step(message: Downlink) -> Step:
    """The step that this downlink message ends."""
    return _ENDS[type(message)]


_ENDS: dict[type[Downlink], Step] = {
    KeyDirectory: Step.ADVERTISE_KEYS,
    ShareDelivery: Step.SHARE_KEYS,
    AgreedView: Step.ACKNOWLEDGE,
    SurvivorSet: Step.MASKED_INPUT,
    Quorum: Step.CONSISTENCY_CHECK,
}
