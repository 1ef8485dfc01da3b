"""One upload as it arrives at the aggregator, and its way into the sum.

`Incoming` hashes leaves as bytes come, whatever the size of the pieces. `Accumulator` is the one
vector of the plan's length that an aggregator keeps: verified uploads are added to it leaf by
leaf, and what protects their sum is taken off in place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from secagg.errors import MalformedMessage, Step
from secagg.merkle import BulkLeaf
from secagg.packing import Packer
from secagg.plan import RoundPlan
from secagg.prg import Words, chunk_coordinates, word_dtype
from secagg.result import Result, read_sum
from secagg.scheme import LeafPlace, Opener, leaf_places

_UPLOAD = Step.MASKED_INPUT

Each = Callable[[Callable[[LeafPlace], None], Iterable[LeafPlace]], Iterator[None]]
"""`map`, or the `map` of an executor with threads: does the same to many leaves."""


@dataclass(slots=True)
class Incoming:
    """One running upload: leaf hashes as bytes arrive, whatever the size of the pieces."""

    places: tuple[LeafPlace, ...]
    hashes: list[bytes] = field(default_factory=list)
    received: int = 0
    filled: int = 0
    leaf: BulkLeaf = field(default_factory=BulkLeaf)

    def check(self, data: bytes | memoryview) -> list[tuple[memoryview, bool]]:
        """`data` cut at leaf borders: (piece, whether it ends its leaf). Changes nothing (C17).

        Raises:
            MalformedMessage: too long, or bits are set after a vector's last value.
        """
        pieces: list[tuple[memoryview, bool]] = []
        rest, number, filled = memoryview(data), len(self.hashes), self.filled
        while rest:
            if number == len(self.places):
                raise MalformedMessage("the upload is longer than its header", step=_UPLOAD)
            place = self.places[number]
            piece, rest = rest[: place.size - filled], rest[place.size - filled :]
            ends = filled + len(piece) == place.size
            used = place.count * place.bits % 8
            if ends and used and piece[-1] >> used:
                raise MalformedMessage("bits after the last value are not 0", step=_UPLOAD)
            pieces.append((piece, ends))
            number, filled = (number + 1, 0) if ends else (number, filled + len(piece))
        return pieces

    def take(self, pieces: list[tuple[memoryview, bool]]) -> None:
        """Hash pieces that `check` has cut."""
        for piece, ends in pieces:
            self.leaf.update(piece)
            self.received += len(piece)
            self.filled += len(piece)
            if ends:
                self.hashes.append(self.leaf.hash())
                self.leaf, self.filled = BulkLeaf(), 0


class Accumulator:
    """The sum of verified uploads, as ring words."""

    def __init__(self, plan: RoundPlan) -> None:
        self._plan = plan
        self._words = [np.zeros(length, word_dtype(bits)) for length, bits in plan.vectors]
        self._packers = [Packer(bits, chunk_coordinates(bits)) for _, bits in plan.vectors]

    def add(self, leaves: Iterable[bytes | memoryview]) -> None:
        """Add one upload, given leaf by leaf."""
        for place, leaf in zip(leaf_places(self._plan), leaves, strict=True):
            self._packers[place.vector].add(self._slice(place), leaf)

    def open(self, opener: Opener, survivors: tuple[str, ...], each: Each = map) -> Result:
        """Take the protection off, once, and decode. Leaves do not depend on each other.

        Raises:
            FaultyParticipantOrCoordinator: see `read_sum`.
        """
        opened = each(lambda place: opener.open(self._slice(place), place), leaf_places(self._plan))
        deque(opened, maxlen=0)
        return read_sum(self._plan, survivors, self._words)

    def _slice(self, place: LeafPlace) -> Words:
        return self._words[place.vector][place.start : place.start + place.count]
