"""Reproducible randomness for tests, and for tests alone.

Whoever knows the seed knows every secret of the round. The core takes `os.urandom` by default;
nothing outside tests, simulations and vector files may pass one of these.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


class SeededRandomness:
    """`Randomness` from SHAKE-256 over (name, call number): same name, same calls, same bytes."""

    __slots__ = ("_calls", "_name")

    def __init__(self, name: str) -> None:
        self._name = name.encode()
        self._calls = 0

    def __call__(self, length: int) -> bytes:
        """The next `length` bytes."""
        self._calls += 1
        block = b"secagg test randomness, never for secrets %d " % self._calls + self._name
        return hashlib.shake_256(block).digest(length)

    def below(self, limit: int) -> int:
        """An integer in 0..limit-1 (the bias below 2^-64 does not matter to tests)."""
        return int.from_bytes(self(16)) % limit

    def uniform(self, length: int, bound: float) -> NDArray[np.float32]:
        """(length,) float32 in [-bound, bound]."""
        words = np.frombuffer(self(4 * length), "<u4")
        return ((words / np.float64(2**31) - 1) * bound).astype(np.float32)
