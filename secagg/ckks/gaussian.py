"""Discrete Gaussian samples: the secrets and errors of scheme `ckks`.

D(x) is proportional to exp(-x^2 / (2 SIGMA^2)) over the integers from -TAIL to TAIL. What is cut
off has a probability of 2^-94.5 under the Gaussian over all integers: that is the statistical
distance of one sample, to which the table below adds less than 2^-121.

A sample takes 16 bytes of keystream as one little-endian integer of 128 bits. The top bit is the
sign; the 127 bits below are u. Its magnitude is the number of thresholds that are at most u:
THRESHOLDS[k] = round(2^127 P[|x| <= k]), k from 0 to TAIL - 1. The table is computed in decimal
arithmetic with 60 digits, whose exponential is correctly rounded, so every machine has the
same; no float is ever involved, and no rounded continuous Gaussian.

Constant time: every sample is compared with every threshold, in the same order, by arithmetic
alone; no branch and no address depends on keystream.

Source: inversion of the cumulative table as in Peikert, "An Efficient and Parallel Gaussian Sampler
for Lattices" (CRYPTO 2010); a table that is read in full for every sample, as in FrodoKEM's
Frodo.Sample (Alkim et al., "FrodoKEM", submission to NIST, 2017 on).

Deliberately not here: other widths or centres, and where the seed comes from.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from itertools import accumulate
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from secagg.ckks.jit import kernel
from secagg.ckks.parameters import SIGMA, TAIL
from secagg.errors import UsageError
from secagg.prg import CHUNK_BYTES, TAG_BYTES, Keystream, stream_key
from secagg.secret import Seed

SAMPLE_BYTES: Final = 16
MAGNITUDE_BITS: Final = 127

Purpose = Literal["secret", "errors"]
Samples = NDArray[np.signedinteger[Any]]

_BLOCK: Final = 512
_DIGITS: Final = 60


def thresholds() -> tuple[int, ...]:
    """round(2^127 P[|x| <= k]) for k = 0 .. TAIL - 1."""
    with localcontext() as context:
        context.prec = _DIGITS
        width = Decimal(str(SIGMA))
        density = [(-Decimal(k * k) / (2 * width * width)).exp() for k in range(TAIL + 1)]
        up_to = list(accumulate([density[0], *(2 * value for value in density[1:])]))
        unit = Decimal(1 << MAGNITUDE_BITS)
        return tuple(int((value / up_to[-1] * unit).to_integral_value()) for value in up_to[:-1])


THRESHOLDS: Final = thresholds()
_HIGH: Final = np.array([threshold >> 64 for threshold in THRESHOLDS], np.int64)
_LOW: Final = np.array([threshold & (1 << 64) - 1 for threshold in THRESHOLDS], np.uint64)


@kernel
def _sample_pairs(
    out: Samples, pairs: NDArray[np.uint64], tops: NDArray[np.int64], lows: NDArray[np.uint64]
) -> None:
    # u >= t, of two words each, is high(u) - [low(u) < low(t)] >= high(t); the high words have 63
    # bits, so that nothing overflows. Three thresholds a pass keep the block's loads few.
    low = np.empty(_BLOCK, np.uint64)
    high = np.empty(_BLOCK, np.int64)
    count = np.empty(_BLOCK, np.int64)
    for start in range(0, len(out), _BLOCK):
        samples = out[start : start + _BLOCK]
        keystream = pairs[start : start + _BLOCK]
        for i in range(len(samples)):
            low[i] = keystream[i, 0]
            high[i] = keystream[i, 1] & np.uint64(0x7FFF_FFFF_FFFF_FFFF)
            count[i] = 0
        for k in range(0, len(tops), 3):
            low_a, low_b, low_c = lows[k], lows[k + 1], lows[k + 2]
            top_a, top_b, top_c = tops[k], tops[k + 1], tops[k + 2]
            for i in range(len(samples)):
                count[i] += (
                    np.int64(high[i] - (low[i] < low_a) >= top_a)
                    + np.int64(high[i] - (low[i] < low_b) >= top_b)
                    + np.int64(high[i] - (low[i] < low_c) >= top_c)
                )
        for i in range(len(samples)):
            sign = np.int64(keystream[i, 1] >> np.uint64(63))
            samples[i] = (count[i] ^ -sign) + sign


def sample_into(out: Samples, words: NDArray[np.uint64]) -> None:
    """Fill `out`, (N,) int8 or int32, with the samples of `words`, (2N,) uint64 of keystream.

    Raises:
        UsageError: `words` is not twice as long as `out`.
    """
    if len(words) != 2 * len(out):
        raise UsageError(f"{len(out)} samples take {2 * len(out)} words and not {len(words)}")
    _sample_pairs(out, words.reshape(-1, 2), _HIGH, _LOW)


class GaussianStream:
    """The Gaussian polynomials of one seed, context and purpose, the same after every restart.

    Polynomial j takes the first 16 N bytes of chunk j of the keystream, so any of them can be had
    on its own. Not to be shared by threads: it has one room for keystream.
    """

    __slots__ = ("_degree", "_keystream", "_scratch")

    def __init__(self, seed: Seed, *, context: bytes, purpose: Purpose, degree: int) -> None:
        if not 0 < degree <= CHUNK_BYTES // SAMPLE_BYTES:
            raise UsageError(f"a chunk of keystream has no samples for degree {degree}")
        key = stream_key(seed, label="secagg/gaussian", context=context, purpose=purpose, vector=0)
        self._keystream = Keystream(key)
        self._degree = degree
        self._scratch = np.empty(SAMPLE_BYTES * degree + TAG_BYTES, np.uint8)

    def write(self, number: int, out: Samples) -> None:
        """Put the coefficients of polynomial `number` into `out`: (degree,) int8 or int32.

        Raises:
            UsageError: `out` has another length.
        """
        if len(out) != self._degree:
            raise UsageError(f"a polynomial has {self._degree} coefficients and not {len(out)}")
        stream = self._keystream.write(number, SAMPLE_BYTES * self._degree, self._scratch)
        sample_into(out, stream.view("<u8"))
