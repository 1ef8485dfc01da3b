"""What a scheme supplies to the one state machine: what is shared, how a vector is protected, how
the sum is opened. Everything else (keys, views, survivors, ledger, blame) is the machine's.

    masking   pairwise masks that cancel in the sum, and a self mask          secagg/masking.py
    ckks      one-time CKKS keys that add up as the ciphertexts do            secagg/ckks/scheme.py
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from secagg.edges import Edges
from secagg.encoding import Levels
from secagg.messages import AdvertiseKeys, ShareKeysBody, Unmask
from secagg.plan import RoundPlan
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


@dataclass(frozen=True, slots=True)
class Opened:
    """A share with the random opening of its commitment."""

    share: Share
    opening: Digest


class DealtShares(Protocol):
    """The shares of one dealer's secrets."""

    @property
    def shares(self) -> Mapping[int, tuple[Share, ...]]:
        """By holder: one share of each kind."""

    def commitment(self, leaves_root: bytes) -> bytes:
        """What the signed body says about them; the leaves are fixed by then."""


@dataclass(frozen=True, slots=True)
class LeafPlace:
    """Which values one upload leaf holds: one PRG chunk of one vector, or one polynomial.

    `count` values, of which the last is the weight if the leaf `weighs`; the others are those of
    the delta from `start` on. `bits` is the width of a value's ring, `size` the leaf's length in
    bytes; the `spare` high bits of its last byte are zero.
    """

    vector: int
    chunk: int
    start: int
    count: int
    bits: int
    size: int
    weighs: bool = False
    spare: int = 0

    @property
    def data(self) -> slice:
        """Where its values of the delta lie in the delta."""
        return slice(self.start, self.start + self.count - self.weighs)


def leaf_places(plan: RoundPlan) -> tuple[LeafPlace, ...]:
    """The upload's leaves, in order; the weight is the last value of the last one."""
    return _places(plan)


@lru_cache(maxsize=8)
def _places(plan: RoundPlan) -> tuple[LeafPlace, ...]:
    return scheme_of(plan).places(plan)


def upload_bytes(plan: RoundPlan) -> int:
    """Packed length of one upload."""
    return sum(place.size for place in leaf_places(plan))


class Protector(Protocol):
    """Protects one participant's values, leaf by leaf, in any order."""

    def leaf(self, levels: Levels, place: LeafPlace) -> bytes:
        """The packed leaf that may leave, from the (place.count,) plain values."""


Sum = NDArray[Any]
"""The sum of one leaf over uploads, as its scheme keeps it."""


class Opener(Protocol):
    """Takes protection off sums of leaves, in any order; threads may share it."""

    @property
    def left_out(self) -> tuple[int, ...]:
        """Whose answers were found wrong among the others, and were not used."""

    def open(self, total: Sum, place: LeafPlace) -> tuple[NDArray[np.int64], int]:
        """The (place.count,) summed values, and how many marks of a wrong sum were found (C27).

        `total` is used up.
        """


class LeafSums(Protocol):
    """Adds up the leaves of one plan's uploads."""

    def zero(self, place: LeafPlace) -> Sum:
        """A sum over nothing."""

    def add(self, total: Sum, leaf: bytes | memoryview, place: LeafPlace) -> None:
        """Add one upload's leaf.

        Raises:
            MalformedMessage: it is no leaf of such an upload; `total` is as it was.
        """

    def take_out(self, total: Sum, leaf: bytes | memoryview, place: LeafPlace) -> None:
        """Subtract a leaf that was added."""


@dataclass(frozen=True, slots=True)
class Opening:
    """Everything that opens one sum; the same at an aggregator and at whoever recomputes.

    By member of U2: `keys`, and `commitments` to what it dealt. `shares` by dealer and holder
    (`masking`), or `sums` of shares by holder (`ckks`). `boxes` by dealer and holder, with the
    commitments to their pads: those between a survivor and a dropout.
    """

    keys: Mapping[int, AdvertiseKeys]
    commitments: Mapping[int, bytes]
    edges: Edges
    survivors: frozenset[int]
    shares: Mapping[int, Mapping[int, Share]]
    sums: Mapping[int, bytes]
    boxes: Mapping[tuple[int, int], SealedPad]


class SealedPad(NamedTuple):
    """A pad's box and the commitment in its leaf."""

    box: bytes
    commitment: bytes


class Scheme(Protocol):
    """See the module's docstring."""

    share_kinds: ClassVar[Sequence[type[Share]]]
    has_mask_keys: ClassVar[bool]
    answers_are_proven: ClassVar[bool]
    """Whether what is released can be checked alone: if not, a leaf is opened on trial first."""

    def places(self, plan: RoundPlan) -> tuple[LeafPlace, ...]:
        """See `leaf_places`."""

    def share_bytes(self, plan: RoundPlan) -> int:
        """Length of one share of any kind."""

    def commitment_bytes(self, plan: RoundPlan) -> int:
        """Length of `ShareKeysBody.secret_commitment`."""

    def deal(
        self,
        plan: RoundPlan,
        index: int,
        secrets: RoundSecrets,
        holders: Sequence[int],
        threshold: int,
        randomness: Randomness,
    ) -> DealtShares:
        """One share of each kind for each holder."""

    def check_shares(
        self,
        plan: RoundPlan,
        dealer: int,
        holder: int,
        body: ShareKeysBody,
        shares: Sequence[Share],
    ) -> None:
        """What a holder checks of its shares beside their commitments (C11, C42).

        Raises:
            MalformedMessage: they are no shares, or not of the secret that the body commits to.
        """

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

    def leaf_sums(self, plan: RoundPlan) -> LeafSums:
        """What adds uploads up."""

    def answer(
        self,
        plan: RoundPlan,
        view: bytes,
        survivors: frozenset[int],
        held: Mapping[int, Sequence[Opened]],
    ) -> Unmask:
        """What is released of the shares of dealers in U2, once and for this U3 alone.

        Raises:
            ProtocolError: shares of a member of U3 are missing (C43).
        """

    def check_sum_of_shares(self, plan: RoundPlan, holds: bool, key_sum: bytes) -> None:
        """An answer has the form that it must have; empty from those who hold nothing (C25).

        Raises:
            MalformedMessage: it has not.
        """

    def expected_kind(self, dealer: int, survivors: frozenset[int]) -> int:
        """The one kind of share of a dealer that may be released."""

    def released(self, members: Sequence[int], shares: Mapping[int, Sized], sums: Sized) -> int:
        """How many shares have been released of the dealer in U2 of which there are fewest: t open.

        `shares` by dealer, `sums` by holder, as in `Opening`.
        """

    def candidates(self, plan: RoundPlan, opening: Opening) -> Iterator[Opener]:
        """What may take the protection off, the likeliest first: one, where answers are proven.

        Raises:
            FaultyParticipant: see `opener`.
        """

    def opener(self, plan: RoundPlan, opening: Opening) -> Opener:
        """From t valid shares of each dealer, or t sums: what takes the protection off.

        Raises:
            FaultyParticipant: valid shares rebuild something else than the dealer committed to.
            FaultyParticipantOrCoordinator: what was released is not of one polynomial.
        """


def scheme_of(plan: RoundPlan) -> Scheme:
    """The scheme that the plan names."""
    if plan.scheme == "ckks":
        from secagg.ckks.scheme import Ckks

        return Ckks()
    from secagg.masking import Masking

    return Masking()
