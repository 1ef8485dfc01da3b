"""From real numbers to ring elements and back: clip, scale, round stochastically, count modulo.

A contribution is clip(factor * value, -C, C) / scale, rounded up or down at random so that its
expectation is exact, then taken modulo 2^ring_bits in two's complement. The ring is wide enough
for the sum of n such levels with guard bits to spare, so the sum never wraps and opens exactly.

What quantising loses (rounding and clipping) a tenant can take from `Participant.write_residual`
and add to its next contribution: Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019.

Deliberately not here: clip and weights (the round plan has them), rotations, and DP noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from secagg.errors import ConfigError, UsageError
from secagg.prg import CHUNK_BYTES, TAG_BYTES, Keystream, Words, stream_key, word_dtype
from secagg.secret import RoundingSeed

Values = NDArray[np.floating[Any]]
Levels = NDArray[np.signedinteger[Any]]

MIN_GUARD_BITS: Final = 4

_BLOCK: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Quantiser:
    """A public, symmetric grid: levels -max_level..max_level over [-clip, clip].

    `value_bits` (4 to 32) holds a level with its sign.
    """

    clip: float
    value_bits: int

    def __post_init__(self) -> None:
        if not 4 <= self.value_bits <= 32:
            raise ConfigError(f"quantiser: value_bits is {self.value_bits}; choose 4 to 32")
        if not (math.isfinite(self.clip) and 1e-30 <= self.clip <= 1e30):
            raise ConfigError(f"quantiser: clip is {self.clip}; choose a positive finite number")

    @property
    def max_level(self) -> int:
        """The level of `clip`."""
        return int(2 ** (self.value_bits - 1) - 1)

    @property
    def scale(self) -> float:
        """The distance of neighbouring levels."""
        return self.clip / self.max_level

    def levels(
        self,
        values: Values,
        factor: float,
        uniform: NDArray[np.uint32],
        room: Room | None = None,
    ) -> Levels:
        """Stochastic rounding of clip(factor * values, -clip, clip) / scale: (m,) int32.

        `values`: (m,) float32 or float64; `uniform`: (m,) uint32 random words, fresh for each
        value. A level is floor(x + u), with x and u in steps of 2^-b of a level, b = min(32, 50 -
        value_bits): both ends and whole levels are exact, no result leaves [-max_level,
        max_level], and the bias is at most 2^-(b + 1) of a level. With a `room` the result lies in
        it, until the next call.

        Raises:
            UsageError: NaN or infinite values, or a factor outside 0..1.
        """
        _require_share(factor)
        if not np.isfinite(farthest := _farthest(values)):
            require_finite(values)
        room = room or Room(len(values))
        bits = min(32, 50 - self.value_bits)
        # A double in [2^(52-b), 2^(53-b)) counts in steps of 2^-b: adding x to the middle of that
        # range leaves x in fixed point in the low bits, at a fifth of the cost of a conversion.
        middle = np.float64(1.5 * 2.0 ** (52 - bits))
        steps = np.float64(self.max_level / self.clip * factor)
        x, levels = room.of(len(values))
        x[:] = values
        with np.errstate(over="ignore"):  # what overflows a double is beyond the clip anyway
            x *= steps
            beyond = farthest * steps > self.max_level
        if beyond:
            np.clip(x, -self.max_level, self.max_level, out=x)
        x += middle
        fixed = x.view(np.int64)
        fixed += uniform if bits == 32 else uniform >> np.uint32(32 - bits)
        fixed >>= bits
        levels[:] = fixed
        levels -= (middle.view(np.int64) >> bits).astype(np.int32)
        return levels

    def saturated(self, values: Values, factor: float) -> int:
        """How many coordinates of factor * values lie beyond the clip, and so lose more."""
        total = 0
        for start in range(0, len(values), _BLOCK):
            block = np.multiply(values[start : start + _BLOCK], factor, dtype=np.float64)
            total += int(np.count_nonzero(np.abs(block, out=block) > self.clip))
        return total

    def decode(self, level_sum: NDArray[np.int64]) -> NDArray[np.float64]:
        """The real numbers behind a sum of levels: (m,) float64."""
        return np.multiply(level_sum, self.scale, dtype=np.float64)


class Room:
    """Where `Quantiser.levels` works, for at most `most` values: used again, it costs nothing."""

    __slots__ = ("_exact", "_levels")

    def __init__(self, most: int) -> None:
        self._exact = np.empty(most, np.float64)
        self._levels = np.empty(most, np.int32)

    def of(self, count: int) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        """Room for `count` values."""
        return self._exact[:count], self._levels[:count]


def _farthest(values: Values) -> np.float64:
    """The largest magnitude; not finite if any value is not, since min and max let NaN through."""
    return np.float64(max(-np.min(values, initial=0), np.max(values, initial=0)))


def require_finite(values: Values) -> None:
    """Refuse a vector with NaN or infinite coordinates, naming their number alone.

    Raises:
        UsageError: there are some.
    """
    blocks = [values[start : start + _BLOCK] for start in range(0, len(values), _BLOCK)]
    if all(np.isfinite(_farthest(block)) for block in blocks):
        return
    bad = len(values) - sum(int(np.isfinite(block).sum()) for block in blocks)
    raise UsageError(f"{bad} of {len(values)} values are NaN or infinite; train with finite ones")


def _require_share(factor: float) -> None:
    if not 0 <= factor <= 1:
        raise UsageError(f"a factor of {factor} is outside 0..1; no weight exceeds max_weight")


class RoundingStream:
    """Random words for stochastic rounding, the same again after a restart from the seed.

    Chunk c of coordinates owns chunks 2c and 2c + 1 of the keystream with purpose "rounding":
    one 32-bit word a coordinate, for up to 131,072 coordinates, so the address of a coordinate
    depends on its chunk and place alone.
    """

    __slots__ = ("_keystream", "_scratch")

    def __init__(self, seed: RoundingSeed, context: bytes, vector: int) -> None:
        self._keystream = Keystream(
            stream_key(
                seed, label="secagg/rounding", context=context, purpose="rounding", vector=vector
            )
        )
        self._scratch = np.empty(2 * CHUNK_BYTES + TAG_BYTES, np.uint8)

    def words(self, chunk: int, count: int) -> NDArray[np.uint32]:
        """(count,) uint32 for the chunk-th chunk; a view that the next call overwrites."""
        if not 0 <= count <= CHUNK_BYTES // 2:
            raise UsageError(f"a chunk has at most {CHUNK_BYTES // 2} coordinates, not {count}")
        first = min(4 * count, CHUNK_BYTES)
        self._keystream.write(2 * chunk, first, self._scratch)
        if rest := 4 * count - first:
            self._keystream.write(2 * chunk + 1, rest, self._scratch[CHUNK_BYTES:])
        return self._scratch[: 4 * count].view("<u4")


def ring_bits_needed(value_bits: int, n: int, guard_bits: int) -> int:
    """Ring width in which n values of `value_bits` bits cannot overflow, guard bits included.

    Raises:
        ConfigError: no value to add, fewer than 4 guard bits, or more than 64 bits in all.
    """
    if n < 1 or value_bits < 1 or guard_bits < MIN_GUARD_BITS:
        raise ConfigError(
            f"ring: needs n and value_bits of at least 1 and {MIN_GUARD_BITS} guard bits; "
            f"got n = {n}, value_bits = {value_bits}, guard_bits = {guard_bits}"
        )
    ring_bits = value_bits + (n - 1).bit_length() + guard_bits
    if ring_bits > 64:
        raise ConfigError(
            f"ring: {n} values of {value_bits} bits with {guard_bits} guard bits need {ring_bits} "
            "bits and 64 are the most; quantise to fewer bits"
        )
    return ring_bits


def to_ring(levels: Levels, ring_bits: int) -> Words:
    """Two's complement of `levels` in `word_dtype(ring_bits)`; the bits above are dropped later.

    `levels`: (m,) signed, in [-2^(ring_bits-1), 2^(ring_bits-1)). Where they are as wide as the
    word, the result is a view of them.
    """
    dtype = word_dtype(ring_bits)
    return levels.view(dtype) if levels.itemsize == dtype.itemsize else levels.astype(dtype)


def from_ring(
    words: Words, ring_bits: int, out: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """The signed values in [-2^(ring_bits-1), 2^(ring_bits-1)) that are `words` mod 2^ring_bits.

    With `out`, (len(words),), they are put there.
    """
    spare = 64 - ring_bits
    signed = np.empty(len(words), np.int64) if out is None else out
    centred = signed.view(np.uint64)
    centred[:] = words
    centred <<= np.uint64(spare)
    signed >>= spare
    return signed
