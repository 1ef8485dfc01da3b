"""From a leaf's integers to a polynomial and back: digits of coefficients, or SEAL's slots.

Values fill planes: number i of a leaf stands in plane i // width, column i % width. The last column
of the last polynomial carries the weight, as one integer over all planes.

    coefficients   `digits` planes of N columns: exact, and as dense as it gets
    slots          one plane of N/2 columns, encoded as SEAL does it: the sum is an ordinary CKKS
                   ciphertext on which SEAL and TenSEAL go on computing; about four times the bytes
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from secagg.ckks.ntt import Ring, ring
from secagg.ckks.parameters import Parameters
from secagg.ckks.residues import digits
from secagg.ckks.slots import slot_encoder
from secagg.encoding import Levels
from secagg.errors import UsageError
from secagg.plan import RoundPlan
from secagg.scheme import LeafPlace, Sum

if TYPE_CHECKING:
    from secagg.ckks.seal import SealContext

Planes = NDArray[Any]
"""(planes, columns) of integers."""


class Packing(Protocol):
    """See the module's docstring. Threads may share it."""

    def require(self) -> None:
        """Raise ConfigError if what decoding needs is not installed."""

    @property
    def dithers(self) -> bool:
        """Whether encoding rounds, and so needs a dither to keep what it rounds to itself."""

    def encode(
        self,
        levels: Levels,
        error: NDArray[Any],
        dither: NDArray[np.float64],
        place: LeafPlace,
        out: Sum,
    ) -> None:
        """m + e in NTT form, into `out` (L, N)."""

    def decode(
        self, total: Sum, place: LeafPlace, most_noise: int
    ) -> tuple[NDArray[np.int64], int]:
        """The (place.count,) values in m + e, and how many places are not what honest sums give.

        `total`, (L, N) in NTT form, is used up.
        """


def packing_of(plan: RoundPlan) -> Packing:
    """The packing that the plan names."""
    return Coefficients(plan) if parameters_of(plan).packing == "coefficients" else Slots(plan)


def parameters_of(plan: RoundPlan) -> Parameters:
    """The plan's parameters, which a plan of this scheme always has."""
    if plan.ckks is None:
        raise UsageError(f"scheme {plan.scheme!r} has no CKKS parameters")
    return plan.ckks


class Layout:
    """Where a leaf's values stand in planes."""

    def __init__(self, plan: RoundPlan) -> None:
        self.parameters = parameters = parameters_of(plan)
        self.shape = parameters.digits(plan.n, plan.ring_bits), parameters.width
        self._last = parameters.last_width
        self._digit_bits = plan.ring_bits

    def spread(self, levels: Levels, place: LeafPlace, dtype: type[np.generic]) -> Planes:
        """The planes of a leaf's values; a full leaf is not copied if it has the right type."""
        if len(levels) == self.shape[0] * self.shape[1] and not place.weighs:
            return levels.reshape(self.shape).astype(dtype, copy=False)
        planes = np.zeros(self.shape, dtype)
        width = self._last if place.weighs else self.shape[1]
        data = levels[: len(levels) - place.weighs]
        whole, rest = divmod(len(data), width)
        planes[:whole, :width] = data[: whole * width].reshape(whole, width)
        if rest:
            planes[whole, :rest] = data[whole * width :]
        if place.weighs:
            for plane, digit in enumerate(self._digits(int(levels[-1]))):
                planes[plane, self._last] = digit
        return planes

    def gather(self, planes: NDArray[np.int64], place: LeafPlace) -> tuple[NDArray[np.int64], int]:
        """The values in planes, and how many of the places that belong to nobody are not 0."""
        width, count = self._last if place.weighs else self.shape[1], place.count - place.weighs
        data = planes[:, :width].reshape(-1)
        stray = int(np.count_nonzero(data[count:]))
        if not place.weighs:
            return data[:count], stray
        column = planes[:, self._last].tolist()
        weight = sum(digit << (self._digit_bits * plane) for plane, digit in enumerate(column))
        # A weight beyond 64 bits is no sum of weights: out of range wherever it is cut.
        weight = max(-(2**63), min(weight, 2**63 - 1))
        return np.append(data[:count], np.int64(weight)), stray

    def _digits(self, weight: int) -> list[int]:
        """Base-2^g digits: in the sum they carry, as one integer does."""
        mask = (1 << self._digit_bits) - 1
        return [(weight >> (self._digit_bits * plane)) & mask for plane in range(self.shape[0])]


class Coefficients:
    """Exact integers in digits of coefficients, above a margin for the errors."""

    dithers = False

    def require(self) -> None:
        """Nothing."""

    def __init__(self, plan: RoundPlan) -> None:
        self._layout = Layout(plan)
        parameters = self._layout.parameters
        self._ring: Ring = ring(parameters.degree, parameters.primes)
        self._digits = digits(
            parameters.primes, plan.ring_bits, self._layout.shape[0], parameters.margin_bits(plan.n)
        )

    def encode(
        self,
        levels: Levels,
        error: NDArray[Any],
        dither: NDArray[np.float64],
        place: LeafPlace,
        out: Sum,
    ) -> None:
        """See `Packing`."""
        self._digits.encode(self._layout.spread(levels, place, np.int32), error, out)
        self._ring.forward(out)

    def decode(
        self, total: Sum, place: LeafPlace, most_noise: int
    ) -> tuple[NDArray[np.int64], int]:
        """See `Packing`."""
        self._ring.inverse(total)
        decoded = self._digits.decode(total)
        values, stray = self._layout.gather(decoded.values, place)
        loud = np.count_nonzero((decoded.noise > most_noise) | (decoded.noise < -most_noise))
        return values, decoded.overflows + stray + int(loud)


class Slots:
    """Integers in SEAL's slots, at a scale at which they can be rounded to again."""

    dithers = True

    def require(self) -> None:
        """TenSEAL."""
        seal_context(self._parameters)

    def __init__(self, plan: RoundPlan) -> None:
        self._layout = Layout(plan)
        parameters = self._layout.parameters
        self._scale = 2.0 ** parameters.scale_bits(plan.n)
        self._encoder = slot_encoder(parameters.degree, parameters.primes)
        self._parameters = parameters

    def encode(
        self,
        levels: Levels,
        error: NDArray[Any],
        dither: NDArray[np.float64],
        place: LeafPlace,
        out: Sum,
    ) -> None:
        """See `Packing`: as SEAL's encoder, but for the dither."""
        (slots,) = self._layout.spread(levels, place, np.float64)
        self._encoder.encode(slots, self._scale, error, out, dither)

    def decode(
        self, total: Sum, place: LeafPlace, most_noise: int
    ) -> tuple[NDArray[np.int64], int]:
        """See `Packing`; that errors are too large shows in the values, which are then anything."""
        slots = np.rint(seal_context(self._parameters).decode_slots(total, self._scale))
        wild = np.abs(slots) >= 2.0**62
        slots[wild] = 0
        values, stray = self._layout.gather(slots.astype(np.int64).reshape(1, -1), place)
        return values, stray + int(np.count_nonzero(wild))


@lru_cache(maxsize=8)
def seal_context(parameters: Parameters) -> SealContext:
    """SEAL's context over the parameters' primes."""
    from secagg.ckks.seal import SealContext

    return SealContext(parameters.degree, parameters.primes)
