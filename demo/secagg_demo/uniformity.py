"""What the coordinator held for one tenant, against the uniform distribution on the ring.

A masked upload must look like uniform words modulo 2^ring_bits whatever the tenant encoded.
Pearson's chi-square over 256 equal bins of a word, once for its highest 8 bits and once for its
lowest 8, gives the p-values; the same statistic on what the tenant encoded shows what a failure
would look like. p is itself uniform on [0, 1] for honest masks, so one run in a hundred shows a p
below 0.01: a large p proves nothing, a tiny one would refute.

The bits are unpacked here by numpy alone, not by secagg's code, so that this is a second reading
of the wire format.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chisquare

BINS = 256
_BLOCK = 1 << 16  # a multiple of 8, so every block of values begins at a whole byte


@dataclass(frozen=True, slots=True)
class Uniformity:
    """Chi-square against uniform, 255 degrees of freedom, and the 256 counts behind it."""

    high_bits_p: float
    low_bits_p: float
    high_bits_chi_square: float
    counts: tuple[int, ...]


def unpack_words(data: bytes, bits: int, count: int) -> NDArray[np.uint64]:
    """(count,) words of `bits` bits, little-endian bit order, from the front of an upload."""
    stream = np.frombuffer(data, np.uint8)
    places = np.uint64(1) << np.arange(bits, dtype=np.uint64)
    words = np.empty(count, np.uint64)
    for start in range(0, count, _BLOCK):
        many = min(_BLOCK, count - start)
        piece = stream[start * bits // 8 : (start + many) * bits // 8 + 1]
        laid = np.unpackbits(piece, count=many * bits, bitorder="little").reshape(many, bits)
        words[start : start + many] = laid.astype(np.uint64) @ places
    return words


def against_uniform(words: NDArray[np.uint64], bits: int) -> Uniformity:
    """The test on words in [0, 2^bits)."""
    high = np.bincount((words >> np.uint64(bits - 8)).astype(np.int64), minlength=BINS)
    low = np.bincount((words & np.uint64(255)).astype(np.int64), minlength=BINS)
    test = chisquare(high)
    return Uniformity(
        high_bits_p=float(test.pvalue),
        low_bits_p=float(chisquare(low).pvalue),
        high_bits_chi_square=float(test.statistic),
        counts=tuple(int(count) for count in high),
    )


def levels_as_words(levels: NDArray[np.int64], bits: int) -> NDArray[np.uint64]:
    """What an unmasked upload would hold: two's complement modulo 2^bits."""
    return levels.astype(np.uint64) & np.uint64((1 << bits) - 1)
