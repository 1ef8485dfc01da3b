"""The public polynomials a_0, a_1, ... of a round, which everybody expands from its context.

Format. One AES-256 key for a round: HKDF-SHA256 (RFC 5869) without salt, 32 bytes; the input is
the round's context, and the info is the canonical encoding (secagg.canonical) of the tags
"secagg/1 ckks" and "public_polynomials". The keystream of (polynomial j, plane l) is
AES-256-CTR (NIST SP 800-38A) from the initial block

    0^32 || j as 32 bits || l as 32 bits || 2 as 32 bits,    all big-endian,

counting in the last 32 bits. It is read as little-endian 32-bit words from its beginning. Of each
word the low b bits are kept, b being the bits of prime q_l; what is not below q_l is dropped. The
first N values that are left are the residues of a_j mod q_l, **in NTT form**, in their order: a
uniform polynomial has a uniform transform, so nobody transforms it.

Source: rejection as in NIST SP 800-90A, appendix A.5.1. As in `secagg.prg` the keystream comes
from AES-256-GCM over zeros, nonce 0^32 || j || l, which writes the same bytes.

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
_WORD: Final = np.dtype("<u4")
_RUN: Final = 64
"""Words that are copied together when none of them is dropped."""


class PublicPolynomials:
    """The public polynomials of one round. Threads may share it for different polynomials."""

    __slots__ = ("_cipher", "_degree", "_draws", "_primes", "_spare")

    def __init__(self, context: bytes, degree: int, primes: tuple[int, ...]) -> None:
        for prime in primes:
            if prime.bit_length() > MAX_PRIME_BITS:
                raise ConfigError(f"{prime} has more than {MAX_PRIME_BITS} bits")
        info = Writer().tag(_LABEL).tag(_PURPOSE).finish()
        self._cipher = AESGCM(HKDF(SHA256(), 32, None, info).derive(context))
        self._degree = degree
        self._primes = primes
        self._draws = tuple(_draw(degree, prime) for prime in primes)
        self._spare: list[tuple[memoryview, NDArray[np.uint8]]] = []

    def expand(self, number: int, out: Residues) -> None:
        """Write polynomial `number` to (L, N) `out`, in NTT form."""
        try:
            zeros, stream = self._spare.pop()
        except IndexError:  # one for each thread that expands at this moment
            zeros, stream = _rooms(max(self._draws))
        for plane, (prime, draw) in enumerate(zip(self._primes, self._draws, strict=True)):
            nonce = bytes(4) + number.to_bytes(4) + plane.to_bytes(4)
            while not self._fill(nonce, prime, zeros[: 4 * draw], stream, out[plane]):
                draw *= 2  # the same words from the beginning, and as many more
                if 4 * draw > len(zeros):
                    zeros, stream = _rooms(draw)
        self._spare.append((zeros, stream))

    def _fill(
        self,
        nonce: bytes,
        prime: int,
        zeros: memoryview,
        stream: NDArray[np.uint8],
        out: NDArray[np.uint32],
    ) -> bool:
        """Whether as many bytes of keystream as `zeros` has were enough."""
        self._cipher.encrypt_into(nonce, zeros, None, stream.data[: len(zeros) + _TAG_BYTES])
        words = stream[: len(zeros)].view(_WORD)
        mask = np.uint32((1 << prime.bit_length()) - 1)
        return int(_keep(words, mask, np.uint32(prime), out)) == len(out)


def _rooms(words: int) -> tuple[memoryview, NDArray[np.uint8]]:
    """Zeros, and room for as much keystream and a tag behind it."""
    return memoryview(bytes(4 * words)), np.empty(4 * words + _TAG_BYTES, np.uint8)


def _draw(degree: int, prime: int) -> int:
    """Words to draw: as many as are needed on average, and ten standard deviations."""
    kept = prime / (1 << prime.bit_length())
    return math.ceil((degree + 10 * math.sqrt(degree * (1 - kept))) / kept) + 10


@kernel
def _keep(
    words: NDArray[np.uint32], mask: np.uint32, prime: np.uint32, out: NDArray[np.uint32]
) -> int:
    """The masked words below the prime, in order, until `out` is full; how many were written."""
    kept, place = 0, 0
    while kept < len(out) and place < len(words):
        run = words[place : min(place + _RUN, len(words), place + len(out) - kept)]
        to, dropped = out[kept : kept + len(run)], 0
        for i in range(len(run)):
            value = np.uint32(run[i] & mask)
            to[i] = value
            if value >= prime:
                dropped += 1
        if dropped:
            at = 0
            for i in range(len(run)):
                value = np.uint32(run[i] & mask)
                to[at] = value  # at <= i: what is overwritten has been read
                if value < prime:
                    at += 1
        kept += len(run) - dropped
        place += len(run)
    return kept
