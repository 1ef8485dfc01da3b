"""Real numbers into slots: what SEAL's CKKSEncoder does, without SEAL and twenty times as fast.

A polynomial m has a value at each primitive 2N-th root of unity; slot j is the value at the root's
power 3^j, as SEAL orders them. For real slots the N values are conjugate in pairs and equal, so

    m_k = (2 / N) sum_{t < N/2} z_t cos(pi (2t + 1) k / N),    m_{N-k} = -m_k,

a discrete cosine transform, which one real FFT of N/2 values computes (Makhoul, "A Fast Cosine
Transform in One and Two Dimensions", IEEE Trans. ASSP 28 (1980)). Multiplied by the scale and
rounded, that is the plaintext of Cheon, Kim, Kim, Song (ASIACRYPT 2017), section 3.2.

SEAL's bindings hand out a plaintext one word at a time, which takes most of their time; tenants
also need no TenSEAL this way.

Rounding is a function of the values, and a sum of roundings would tell more than the sum of values;
so a dither is added first: see parameters.py. Deliberately not here: complex slots, and decoding,
which is done once a sum and by SEAL (seal.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from secagg.ckks.jit import kernel
from secagg.ckks.ntt import Residues, Ring, ring
from secagg.ckks.parameters import DITHER_SIGMA
from secagg.errors import UsageError
from secagg.prg import TAG_BYTES, Keystream, stream_key
from secagg.secret import Seed

_ROOT_OF_SLOTS: Final = 3
_LARGEST: Final = 2.0**62
"""Coefficients, with an error added, are signed 64-bit integers."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SlotEncoder:
    """Threads may share it."""

    ring: Ring
    _taken: NDArray[np.intp]  # (N/2,) slots in the order in which the FFT wants them
    _turns: NDArray[np.complex128]  # (N/4 + 1,)
    _limit: float

    def encode(
        self,
        values: NDArray[np.float64],
        scale: float,
        error: NDArray[Any],
        out: Residues,
        dither: NDArray[np.float64] | None = None,
    ) -> None:
        """m + e in NTT form, into `out` (L, N); e is `error`, (N,) small integers.

        `values`: (N/2,), each below Q / 2 at this scale, and so is every coefficient. `dither`,
        (N,), is added before m is rounded; without it m is SEAL's. The same arguments give the same
        residues on the same machine, as after a restart.

        Raises:
            UsageError: a value is not finite, or does not fit at this scale.
        """
        coefficients = self._coefficients(values, scale, dither)
        coefficients += error
        _reduce(coefficients, self.ring.moduli, out)
        self.ring.forward(out)

    def _coefficients(
        self, values: NDArray[np.float64], scale: float, dither: NDArray[np.float64] | None
    ) -> NDArray[np.int64]:
        half, degree = len(self._taken), self.ring.degree
        if values.shape != (half,):
            raise UsageError(f"a polynomial takes {half} slots, not {values.shape}")
        if not np.abs(values).max() * scale < self._limit:  # NaN is not below it either
            raise UsageError("values are not finite, or too large for the scale and the primes")
        turned = np.fft.rfft(values[self._taken]) * self._turns
        turned *= 2 * scale / degree
        real = np.zeros(degree)
        real[: half // 2 + 1] = turned.real
        real[half // 2 + 1 : half] = -turned.imag[1 : half // 2][::-1]
        real[half + 1 :] = -real[1:half][::-1]
        if dither is not None:
            real += dither
        return np.rint(real).astype(np.int64)


@lru_cache(maxsize=8)
def slot_encoder(degree: int, primes: tuple[int, ...]) -> SlotEncoder:
    """The encoder of a ring."""
    half = degree // 2
    exponents = np.ones(1, np.int64)
    while len(exponents) < half:
        step = pow(_ROOT_OF_SLOTS, len(exponents), 2 * degree)
        exponents = np.concatenate((exponents, exponents * step % (2 * degree)))
    places = (exponents - 1) // 2
    places = np.minimum(places, degree - 1 - places)  # a root or its conjugate
    slots = np.empty(half, np.intp)
    slots[places] = np.arange(half)
    taken = np.concatenate((slots[::2], slots[1::2][::-1]))
    turns = np.exp(-1j * np.pi * np.arange(half // 2 + 1) / degree)
    limit = min(_LARGEST, math.prod(primes) / 2)
    return SlotEncoder(ring(degree, primes), taken, turns, limit)


class DitherStream:
    """Real Gaussians of width DITHER_SIGMA, the same after every restart on the same machine.

    Polynomial j takes the first 8 N bytes of chunk j of its keystream: two words make two numbers
    (Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958), none beyond
    DITHER_TAIL. The scheme's hardness does not rest on them but on the errors of gaussian.py.
    """

    __slots__ = ("_keystream", "_scratch")

    def __init__(self, seed: Seed, *, context: bytes, degree: int) -> None:
        key = stream_key(
            seed, label="secagg/ckks-dither", context=context, purpose="dither", vector=0
        )
        self._keystream = Keystream(key)
        self._scratch = np.empty(8 * degree + TAG_BYTES, np.uint8)

    def write(self, number: int, out: NDArray[np.float64]) -> None:
        """Put the numbers of polynomial `number` into `out`, (degree,)."""
        words = self._keystream.write(number, 8 * len(out), self._scratch)
        _box_muller(words.view("<u8"), out)


@kernel
def _box_muller(words: NDArray[np.uint64], out: NDArray[np.float64]) -> None:
    for i in range(0, len(out), 2):
        above_zero = np.float64((words[i] >> np.uint64(11)) + np.uint64(1)) * 2.0**-53
        radius = DITHER_SIGMA * math.sqrt(-2.0 * math.log(above_zero))
        turn = 2.0 * math.pi * np.float64(words[i + 1] >> np.uint64(11)) * 2.0**-53
        out[i] = radius * math.cos(turn)
        out[i + 1] = radius * math.sin(turn)


@kernel
def _reduce(coefficients: NDArray[np.int64], moduli: Residues, out: Residues) -> None:
    for prime in range(len(moduli)):
        q = np.int64(moduli[prime])
        for i in range(len(coefficients)):
            out[prime, i] = coefficients[i] % q
