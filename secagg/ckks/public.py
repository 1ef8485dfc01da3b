"""The public polynomials a_0, a_1, ... of a round, which everybody expands from its context.

Format. One AES-256 key for a round: HKDF-SHA256 (RFC 5869) without salt, 32 bytes; the input is
the round's context, and the info is the canonical encoding (secagg.canonical) of the tags
"secagg/1 ckks" and "public_polynomials". The keystream of polynomial j is AES-256-CTR (NIST
SP 800-38A) from the initial block

    0^64 || j as 32 bits || 2 as 32 bits,    all big-endian,

counting in the last 32 bits. It is read as little-endian 32-bit words from its beginning. They
make the planes one after another. For a plane, whose prime q has b bits, the low b bits of each
word are kept, and what is not below q is dropped; the first N values that are left are the plane,
and the next plane begins with the word after the last of them. Value i of a plane is residue i of
a_j mod q in NTT form: a uniform polynomial has a uniform transform, so nobody transforms it.

Source: rejection as in NIST SP 800-90A, appendix A.5.1. As in `secagg.prg` the keystream comes
from AES-256-GCM over zeros, nonce 0^64 || j, which writes the same bytes. How many words are drawn
at once is no part of the format: when they were too few, twice as many are drawn from the
beginning.

Not here: secrets. Nothing in this module is one.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from secagg.canonical import Writer
from secagg.ckks.jit import kernel
from secagg.ckks.ntt import MAX_PRIME_BITS, Residues
from secagg.errors import ConfigError

_LABEL: Final = "secagg/1 ckks"
_PURPOSE: Final = "public_polynomials"
_TAG_BYTES: Final = 16
_ONE: Final = np.uint64(1)
_WORD: Final = np.dtype("<u4")
_RUN: Final = 64
"""Words that are copied together when none of them is dropped."""


class PublicPolynomials:
    """The public polynomials of one round. Threads may share it for different polynomials."""

    __slots__ = ("_cipher", "_draw", "_masks", "_primes", "_spare")

    def __init__(self, context: bytes, degree: int, primes: tuple[int, ...]) -> None:
        for prime in primes:
            if prime.bit_length() > MAX_PRIME_BITS:
                raise ConfigError(f"{prime} has more than {MAX_PRIME_BITS} bits")
        info = Writer().tag(_LABEL).tag(_PURPOSE).finish()
        self._cipher = AESGCM(HKDF(SHA256(), 32, None, info).derive(context))
        self._primes = np.array(primes, np.uint32)
        self._masks = np.array([(1 << prime.bit_length()) - 1 for prime in primes], np.uint32)
        self._draw = sum(_words(degree, prime) for prime in primes)
        self._spare: list[_Room] = []

    def expand(self, number: int, out: Residues) -> None:
        """Write polynomial `number` to (L, N) `out`, in NTT form."""
        try:
            room = self._spare.pop()
        except IndexError:  # one for each thread that expands at this moment
            room = _Room(self._draw)
        while not self._filled(number, room, out):
            room = _Room(2 * len(room.words))
        self._spare.append(room)

    def _filled(self, number: int, room: _Room, out: Residues) -> bool:
        """Whether as many words as `room` has were enough."""
        self._cipher.encrypt_into(bytes(8) + number.to_bytes(4), room.zeros, None, room.stream)
        return int(_keep(room.words, self._masks, self._primes, out)) == len(self._primes)


class _Room:
    """Zeros, and room for as much keystream and a tag behind it."""

    __slots__ = ("stream", "words", "zeros")

    def __init__(self, words: int) -> None:
        self.zeros = memoryview(bytes(4 * words))
        stream = np.empty(4 * words + _TAG_BYTES, np.uint8)
        self.stream = stream.data
        self.words = stream[: 4 * words].view(_WORD)


def _words(degree: int, prime: int) -> int:
    """Words to draw for a plane: the average that is needed, and six standard deviations."""
    kept = prime / (1 << prime.bit_length())
    return math.ceil((degree + 6 * math.sqrt(degree * (1 - kept))) / kept) + 6


@kernel
def _keep(
    words: NDArray[np.uint32],
    masks: NDArray[np.uint32],
    primes: NDArray[np.uint32],
    out: Residues,
) -> int:
    """Fill the planes of `out` with masked words below their primes; how many planes are full.

    Unsigned places are not wrapped by the compiler, so that it can vectorise the runs.
    """
    place, run, drawn = np.uint64(0), np.uint64(_RUN), np.uint64(len(words))
    for plane in range(len(primes)):
        mask, prime, to = masks[plane], primes[plane], out[plane]
        kept, size = np.uint64(0), np.uint64(len(to))
        while kept < size:
            left = min(drawn - place, size - kept)
            if left == np.uint64(0):
                return plane
            dropped = 0
            if left >= run:
                for i in range(_RUN):
                    value = np.uint32(words[place + np.uint64(i)] & mask)
                    to[kept + np.uint64(i)] = value
                    if value >= prime:
                        dropped += 1
            if dropped or left < run:
                end = place + min(left, run)
                while place < end:
                    value = np.uint32(words[place] & mask)
                    place += _ONE
                    to[kept] = value  # never beyond the plane: a run has as many words as are left
                    if value < prime:
                        kept += _ONE
            else:
                place += run
                kept += run
    return len(primes)
