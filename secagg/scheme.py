"""What a scheme supplies to the one state machine: what is shared, how a vector is protected, how
the sum is opened. Everything else (keys, views, survivors, ledger, blame) is the machine's.

`masking` is built; a scheme with other secrets (one-time CKKS keys) implements the same protocol
and is added to `scheme_of`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple, Protocol

from secagg.edges import Edges
from secagg.messages import AdvertiseKeys, Answer
from secagg.packing import packed_size
from secagg.plan import RoundPlan
from secagg.prg import Words, chunk_coordinates
from secagg.records import U32, Digest
from secagg.secret import (
    ChannelSeed,
    MaskSeed,
    Pad,
    PairwiseSeed,
    Randomness,
    SelfMaskSeed,
    Share,
)


@dataclass(frozen=True, slots=True)
class RoundSecrets:
    """One participant's secrets of one round, drawn fresh and independently."""

    channel: ChannelSeed
    mask: MaskSeed
    self_mask: SelfMaskSeed

    @classmethod
    def draw(cls, randomness: Randomness) -> RoundSecrets:
        """Fresh secrets."""
        return cls(
            ChannelSeed.draw(randomness), MaskSeed.draw(randomness), SelfMaskSeed.draw(randomness)
        )


@dataclass(frozen=True, slots=True)
class SharedSecrets:
    """What is left of the secrets once the bundles are opened: the channel seed is gone."""

    mask: MaskSeed
    self_mask: SelfMaskSeed


@dataclass(frozen=True, slots=True)
class Pairwise:
    """s_ij and the other end's index."""

    other: U32
    seed: PairwiseSeed


@dataclass(frozen=True, slots=True)
class ProtectionSecrets:
    """What protecting a vector still needs once U2 is known: the mask key is not among it."""

    self_mask: SelfMaskSeed
    pairwise: tuple[Pairwise, ...]


@dataclass(frozen=True, slots=True)
class DealtPad:
    """What one box between two participants holds; see `suite.py` for when there are boxes."""

    dealer: U32
    holder: U32
    pad: Pad
    commitment: Digest


class Opened(NamedTuple):
    """A share with the random opening of its commitment."""

    share: Share
    opening: bytes


@dataclass(frozen=True, slots=True)
class LeafPlace:
    """Which coordinates one upload leaf holds: one PRG chunk of one vector."""

    vector: int
    chunk: int
    start: int
    count: int
    bits: int
    size: int


@lru_cache(maxsize=8)
def leaf_places(plan: RoundPlan) -> tuple[LeafPlace, ...]:
    """The upload's leaves, in order: vector after vector, chunk after chunk."""
    return tuple(
        LeafPlace(vector, start // step, start, count, bits, packed_size(count, bits))
        for vector, (length, bits) in enumerate(plan.vectors)
        for step in (chunk_coordinates(bits),)
        for start in range(0, length, step)
        for count in (min(step, length - start),)
    )


def upload_bytes(plan: RoundPlan) -> int:
    """Packed length of one upload."""
    return sum(place.size for place in leaf_places(plan))


class Protector(Protocol):
    """Protects one participant's words in place, leaf by leaf, in any order."""

    def protect(self, words: Words, place: LeafPlace) -> None:
        """Turn plaintext ring words into what may leave."""


class Opener(Protocol):
    """Takes protection off a sum of uploads, leaf by leaf, in any order."""

    def open(self, words: Words, place: LeafPlace) -> None:
        """Turn the summed words into the plaintext sum, modulo the ring."""


@dataclass(frozen=True, slots=True)
class Opening:
    """Everything that opens one sum; the same at an aggregator and at whoever recomputes.

    By member of U2: `keys`, and `commitments` to self-mask seeds. `shares` by dealer and holder.
    `boxes` by dealer and holder, with the commitments to their pads: those between a survivor and a
    dropout.
    """

    keys: Mapping[int, AdvertiseKeys]
    commitments: Mapping[int, bytes]
    edges: Edges
    survivors: frozenset[int]
    shares: Mapping[int, Mapping[int, Share]]
    boxes: Mapping[tuple[int, int], SealedPad]


class SealedPad(NamedTuple):
    """A pad's box and the commitment in its leaf."""

    box: bytes
    commitment: bytes


class Scheme(Protocol):
    """See the module's docstring."""

    share_kinds: ClassVar[Sequence[type[Share]]]

    def deal(
        self, secrets: RoundSecrets, holders: Sequence[int], threshold: int, randomness: Randomness
    ) -> dict[int, tuple[Share, ...]]:
        """One share of each kind for each holder."""

    def secret_commitment(self, plan: RoundPlan, index: int, secrets: RoundSecrets) -> bytes:
        """What the dealer's signed body commits to (32 bytes)."""

    def protection(
        self,
        plan: RoundPlan,
        index: int,
        secrets: SharedSecrets,
        keys: Mapping[int, AdvertiseKeys],
        edges: Edges,
        pads: Mapping[tuple[int, int], DealtPad],
    ) -> ProtectionSecrets:
        """What step 3 needs of this participant's secrets, U2 being known.

        `pads`, by dealer and holder: those that this participant has dealt or was dealt.
        """

    def protector(self, plan: RoundPlan, index: int, secrets: ProtectionSecrets) -> Protector:
        """What protects this participant's upload."""

    def answers(
        self, survivors: frozenset[int], held: Mapping[int, Sequence[Opened]]
    ) -> tuple[Answer, ...]:
        """What is released for each held dealer in U2: one kind of share, never two."""

    def expected_kind(self, dealer: int, survivors: frozenset[int]) -> int:
        """The one kind of share that may be released for a dealer."""

    def opener(self, plan: RoundPlan, opening: Opening) -> Opener:
        """From t valid shares of each dealer: what takes the protection off.

        Raises:
            FaultyParticipant: valid shares rebuild something else than the dealer committed to.
        """


def scheme_of(plan: RoundPlan) -> Scheme:
    """The scheme that the plan names."""
    from secagg.masking import Masking

    return {"masking": Masking}[plan.scheme]()
