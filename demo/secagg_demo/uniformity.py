"""What the coordinator held for one tenant, against the uniform distribution.

An upload must look like uniform numbers whatever the tenant encoded: words modulo 2^ring_bits
under scheme `masking`, residues below each prime under `ckks`. Pearson's chi-square over 256 equal
bins of a number's range (for words: its highest 8 bits), and over its lowest 8 bits, gives the
p-values; the same statistic on what the tenant encoded shows what a failure would look like. p is
itself uniform on [0, 1] for honest uploads, so one run in a hundred shows a p below 0.01: a large p
proves nothing, a tiny one would refute.

A prime of scheme `ckks` is 1 modulo 256, so one of the 256 bins is larger by one number in 2^10 or
more: far less than a test on this many numbers can see.

The bits are unpacked here by numpy alone, not by secagg's code, so that this is a second reading
of the wire format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chisquare

BINS = 256
_BLOCK = 1 << 16  # a multiple of 8, so every block of values begins at a whole byte


@dataclass(frozen=True, slots=True)
class RingWords:
    """An upload of scheme `masking`: `length` words of `bits` bits, then the weight."""

    length: int
    bits: int


@dataclass(frozen=True, slots=True)
class Residues:
    """An upload of scheme `ckks`: each polynomial is one plane of `degree` residues for each prime,
    bit-packed at its number of bits."""

    degree: int
    primes: tuple[int, ...]
    modulus_bits: tuple[int, ...]
    polynomials: int


Form = RingWords | Residues


@dataclass(frozen=True, slots=True)
class Plane:
    """Numbers that have to be uniform on [0, modulus)."""

    numbers: NDArray[np.uint64]
    modulus: int

    @property
    def fractions(self) -> NDArray[np.float64]:
        """The numbers in [0, 1)."""
        return self.numbers.astype(np.float64) / self.modulus


@dataclass(frozen=True, slots=True)
class Uniformity:
    """Chi-square against uniform, 255 degrees of freedom, and the 256 counts behind it.

    `by_plane` has the first test's p-value of each plane alone.
    """

    high_bits_p: float
    low_bits_p: float
    high_bits_chi_square: float
    counts: tuple[int, ...]
    by_plane: tuple[float, ...] = ()


def upload_bytes(form: Form) -> int:
    """The least length of an upload of this form."""
    match form:
        case RingWords(length, bits):
            return (length * bits + 7) // 8
        case Residues(degree, _, modulus_bits, polynomials):
            return polynomials * degree * sum(modulus_bits) // 8


def planes_of(data: bytes, form: Form) -> tuple[Plane, ...]:
    """What an upload holds."""
    match form:
        case RingWords(length, bits):
            return (Plane(unpack_words(data, bits, length), 1 << bits),)
        case Residues():
            return _residue_planes(data, form)


def levels_as_plane(levels: NDArray[np.int64], form: Form) -> Plane:
    """What an unprotected upload would hold: levels modulo 2^bits, or modulo the first prime."""
    modulus = 1 << form.bits if isinstance(form, RingWords) else form.primes[0]
    if isinstance(form, RingWords):
        return Plane(levels.astype(np.uint64) & np.uint64(modulus - 1), modulus)
    return Plane(np.mod(levels, modulus).astype(np.uint64), modulus)


def unpack_words(data: bytes | NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint64]:
    """(count,) words of `bits` bits, little-endian bit order, from the front of an upload."""
    stream = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
    places = np.uint64(1) << np.arange(bits, dtype=np.uint64)
    words = np.empty(count, np.uint64)
    for start in range(0, count, _BLOCK):
        many = min(_BLOCK, count - start)
        piece = stream[start * bits // 8 : (start + many) * bits // 8 + 1]
        laid = np.unpackbits(piece, count=many * bits, bitorder="little").reshape(many, bits)
        words[start : start + many] = laid.astype(np.uint64) @ places
    return words


def _residue_planes(data: bytes, form: Residues) -> tuple[Plane, ...]:
    """All polynomials' residues of each prime."""
    leaves = np.frombuffer(data, np.uint8).reshape(form.polynomials, -1)
    planes, at = [], 0
    for prime, bits in zip(form.primes, form.modulus_bits, strict=True):
        size = form.degree * bits // 8
        packed = leaves[:, at : at + size].reshape(-1)
        planes.append(Plane(unpack_words(packed, bits, form.polynomials * form.degree), prime))
        at += size
    return tuple(planes)


def against_uniform(words: NDArray[np.uint64], bits: int) -> Uniformity:
    """The test on words in [0, 2^bits)."""
    return planes_against_uniform([Plane(words, 1 << bits)])


def planes_against_uniform(planes: Sequence[Plane]) -> Uniformity:
    """The test on all numbers of all planes."""
    parts = [_bins(plane) for plane in planes]
    high = np.sum(parts, axis=0)
    low = np.sum([_count(plane.numbers & np.uint64(BINS - 1)) for plane in planes], axis=0)
    test = chisquare(high)
    return Uniformity(
        high_bits_p=float(test.pvalue),
        low_bits_p=float(chisquare(low).pvalue),
        high_bits_chi_square=float(test.statistic),
        counts=tuple(int(count) for count in high),
        by_plane=tuple(float(chisquare(part).pvalue) for part in parts),
    )


def _bins(plane: Plane) -> NDArray[np.int64]:
    if plane.modulus.bit_count() == 1:  # 256 times a word of 64 bits would overflow
        return _count(plane.numbers >> np.uint64(plane.modulus.bit_length() - 9))
    return _count(plane.numbers * np.uint64(BINS) // np.uint64(plane.modulus))


def _count(places: NDArray[np.uint64]) -> NDArray[np.int64]:
    return np.bincount(places.astype(np.int64), minlength=BINS).astype(np.int64)
