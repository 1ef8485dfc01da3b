"""One upload as it arrives at the aggregator, and its way into the sum.

`Incoming` hashes leaves as bytes come, whatever the size of the pieces. `Accumulator` is the one
vector of the plan's length that an aggregator keeps: verified uploads are added to it leaf by
leaf, and what protects their sum is taken off in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from secagg.errors import MalformedMessage, Step
from secagg.merkle import BulkLeaf
from secagg.plan import RoundPlan
from secagg.result import Result, count_beyond, require_within
from secagg.scheme import LeafPlace, Opener, leaf_places, scheme_of

_UPLOAD = Step.MASKED_INPUT

Each = Callable[[Callable[[LeafPlace], int], Iterable[LeafPlace]], Iterator[int]]
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
            if ends and place.spare and piece[-1] >> (8 - place.spare):
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
    """The sum of verified uploads, leaf by leaf."""

    def __init__(self, plan: RoundPlan) -> None:
        self._plan = plan
        self._places = leaf_places(plan)
        self._sums = scheme_of(plan).leaf_sums(plan)
        self._totals = {place: self._sums.zero(place) for place in self._places}

    def add(self, leaves: Callable[[], Iterable[bytes | memoryview]]) -> None:
        """Add one upload: `leaves` begins to read it, again if need be.

        Raises:
            MalformedMessage: a leaf is no leaf of such an upload (C44); the sum is as it was.
        """
        added = 0
        try:
            for place, leaf in zip(self._places, leaves(), strict=True):
                self._sums.add(self._totals[place], leaf, place)
                added += 1
        except MalformedMessage:
            for place, leaf in zip(self._places[:added], leaves(), strict=False):
                self._sums.take_out(self._totals[place], leaf, place)
            raise

    def opens(self, opener: Opener, survivors: int) -> bool:
        """Whether the first leaf opens to what honest survivors can sum to. Changes nothing."""
        place = self._places[0]
        values, marks = opener.open(self._totals[place].copy(), place)
        return not marks + count_beyond(self._plan, survivors, place, values)

    def open(self, opener: Opener, survivors: tuple[str, ...], each: Each = map) -> Result:
        """Take the protection off, once. Leaves do not depend on each other.

        Raises:
            FaultyParticipantOrCoordinator: a value is beyond what honest ones sum to (C27).
        """
        plan, levels = self._plan, np.empty(self._plan.layout.size, np.int64)
        weights: list[int] = []

        def open_leaf(place: LeafPlace) -> int:
            values, marks = opener.open(self._totals.pop(place), place)
            levels[place.data] = values[: place.count - place.weighs]
            weights.extend(values[place.count - place.weighs :].tolist())
            return marks + count_beyond(plan, len(survivors), place, values)

        require_within(sum(each(open_leaf, self._places)))
        return Result(survivors, levels, weights[0], plan.quantiser, plan.max_weight)
