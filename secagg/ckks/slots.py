"""Real numbers into slots: what SEAL's CKKSEncoder does, without SEAL and twenty times as fast.

A polynomial m has a value at each primitive 2N-th root of unity; slot j is the value at the root's
power 3^j, as SEAL orders them. For real slots the N values are conjugate in pairs and equal, so

    m_k = (2 / N) sum_{t < N/2} z_t cos(pi (2t + 1) k / N),    m_{N-k} = -m_k,

a discrete cosine transform, which one real FFT of N/2 values computes (Makhoul, "A Fast Cosine
Transform in One and Two Dimensions", IEEE Trans. ASSP 28 (1980)). Multiplied by the scale and
rounded, that is the plaintext of Cheon, Kim, Kim, Song (ASIACRYPT 2017), section 3.2.

SEAL's bindings hand out a plaintext one word at a time, which takes most of their time; tenants
also need no TenSEAL this way. Deliberately not here: complex slots, and decoding, which is done
once a sum and by SEAL (seal.py).
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
from secagg.errors import UsageError

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
        self, values: NDArray[np.float64], scale: float, error: NDArray[Any], out: Residues
    ) -> None:
        """m + e in NTT form, into `out` (L, N); e is `error`, (N,) small integers.

        `values`: (N/2,), each below Q / 2 at this scale, and so is every coefficient. The same
        values give the same residues on the same machine, as after a restart.

        Raises:
            UsageError: a value is not finite, or does not fit at this scale.
        """
        coefficients = self._coefficients(values, scale)
        coefficients += error
        _reduce(coefficients, self.ring.moduli, out)
        self.ring.forward(out)

    def _coefficients(self, values: NDArray[np.float64], scale: float) -> NDArray[np.int64]:
        half, degree = len(self._taken), self.ring.degree
        if values.shape != (half,):
            raise UsageError(f"a polynomial takes {half} slots, not {values.shape}")
        if not np.abs(values).max() * scale < self._limit:  # NaN is not below it either
            raise UsageError("values are not finite, or too large for the scale and the primes")
        turned = np.fft.rfft(values[self._taken]) * self._turns
        turned *= 2 * scale / degree
        real = np.empty(half)
        real[: half // 2 + 1] = turned.real
        real[half // 2 + 1 :] = -turned.imag[1 : half // 2][::-1]
        coefficients = np.zeros(degree, np.int64)
        np.rint(real, out=real)
        coefficients[:half] = real
        coefficients[half + 1 :] = -coefficients[1:half][::-1]
        return coefficients


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


@kernel
def _reduce(coefficients: NDArray[np.int64], moduli: Residues, out: Residues) -> None:
    for prime in range(len(moduli)):
        q = np.int64(moduli[prime])
        for i in range(len(coefficients)):
            out[prime, i] = coefficients[i] % q
