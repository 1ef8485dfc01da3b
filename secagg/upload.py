"""One participant's upload: encode, protect and pack, one leaf at a time.

    float input -> (w / max_weight) * x, clipped -> stochastic rounding -> protection -> bits

Memory beyond the input is O(leaf). Every leaf can be recomputed on its own, and gives the same
bytes as long as input, rounding seed and masks are the same, so a broken connection resumes at any
byte. The weight travels as one more value, protected like the others.
"""

from __future__ import annotations

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from secagg.encoding import Levels, Room, RoundingStream, Values, require_finite
from secagg.errors import UsageError
from secagg.identity import sha256
from secagg.plan import RoundPlan
from secagg.scheme import LeafPlace, Protector, leaf_places
from secagg.secret import RoundingSeed

_BLOCK = 1 << 20


def input_digests(plan: RoundPlan, vector: Values, weight: int) -> tuple[bytes, bytes]:
    """What is spent, and what a restart has to submit again, after checking that both fit the plan.

    The first covers the values alone, as float32: another weight or another float type does not
    make a delta fresh (C31). The second covers type and weight too.

    Raises:
        UsageError: another shape or dtype, values that are not finite, a weight out of range.
    """
    if vector.ndim != 1 or vector.dtype not in (np.float32, np.float64):
        raise UsageError("an input is a flat float32 or float64 vector; flatten it by the layout")
    if len(vector) != plan.layout.size:
        raise UsageError(f"the input has {len(vector)} values and the layout {plan.layout.size}")
    if not 0 < weight <= plan.max_weight:
        raise UsageError(f"a weight of {weight} is outside 1 to {plan.max_weight}; cap it")
    require_finite(vector)
    values = blake3(derive_key_context="secagg/1 spent input")
    with np.errstate(over="ignore"):
        for start in range(0, len(vector), _BLOCK):
            block = vector[start : start + _BLOCK]
            values.update(np.ascontiguousarray(block, np.float32).view(np.uint8).data)
    spent = values.digest()
    return spent, sha256(b"%s %d " % (vector.dtype.str.encode(), weight), spent)


class Upload:
    """The leaves of one upload; `vector` is read as they are made and never copied."""

    def __init__(
        self,
        plan: RoundPlan,
        vector: Values,
        weight: int,
        rounding: RoundingSeed,
        protector: Protector,
    ) -> None:
        self._plan = plan
        self._vector = vector
        self._weight = weight
        self._rounding = RoundingStream(rounding, plan.context, vector=0)
        self._protector: Protector | None = protector
        self.places = leaf_places(plan)
        self._room = Room(max(place.count for place in self.places))

    def leaf(self, number: int) -> bytes:
        """The packed, protected bytes of one leaf."""
        place = self.places[number]
        if self._protector is None:
            raise UsageError("the upload is committed: its masks are gone")
        return self._protector.leaf(self.levels(place), place)

    def forget_masks(self) -> None:
        """Drop what protects; what was encoded can still be asked for."""
        self._protector = None

    def levels(self, place: LeafPlace) -> Levels:
        """The (place.count,) integers that one leaf hides; the next call overwrites them."""
        if not place.weighs:
            return self._data_levels(place)
        return np.append(self._data_levels(place), np.int64(self._weight))

    @property
    def factor(self) -> float:
        """Weight before quantisation: w / max_weight."""
        return self._weight / self._plan.max_weight

    @property
    def saturated(self) -> int:
        """How many coordinates the clip cuts: known to this participant alone."""
        return self._plan.quantiser.saturated(self._vector, self.factor)

    def encoded_levels(self) -> NDArray[np.int64]:
        """All levels of vector 0, (d,) int64: the plaintext that the sum adds up. Local only."""
        out = np.empty(self._plan.layout.size, np.int64)
        for place in self.places:
            part = out[place.data]
            part[:] = self.levels(place)[: len(part)]
        return out

    def write_residual(self, out: NDArray[np.float32]) -> None:
        """contribution - what was sent, into `out` (d,) float32, for error feedback."""
        scale = self._plan.quantiser.scale
        for place in self.places:
            sent = self._data_levels(place) * scale
            out[place.data] = self._vector[place.data] * self.factor - sent

    def _data_levels(self, place: LeafPlace) -> Levels:
        values = self._vector[place.data]
        uniform = self._rounding.words(place.chunk, len(values))
        return self._plan.quantiser.levels(values, self.factor, uniform, self._room)
