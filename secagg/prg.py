"""The pseudorandom generator of masks, and the loop that adds masks to a chunk of words.

One AES-256 key per (seed, context, purpose, vector), by HKDF-SHA256 (RFC 5869). Chunk i of its
keystream, 256 KiB, is AES-256-CTR (NIST SP 800-38A) from the initial block
12-byte big-endian i || 32-bit big-endian 2. AES-256-GCM over zeros with nonce i writes the same
bytes (SP 800-38D, section 7.1), and OpenSSL does that faster, tag included, than plain CTR: that
is how they are made here. Words are little-endian. Any chunk can be computed on its own.

Deliberately not here: authentication (the tag is thrown away), and reduction modulo
2^ring_bits, which packing does once for all masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from secagg.canonical import Writer
from secagg.errors import ConfigError, UsageError
from secagg.secret import Seed, StreamKey

CHUNK_BYTES: Final = 262_144
TAG_BYTES: Final = 16

_ZEROS: Final = memoryview(bytes(CHUNK_BYTES))

Words = NDArray[np.unsignedinteger[Any]]


def word_dtype(ring_bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The smallest little-endian word of 16, 32 or 64 bits that holds `ring_bits` (8 to 64)."""
    if not 8 <= ring_bits <= 64:
        raise ConfigError(f"a ring of {ring_bits} bits is not supported; choose 8 to 64")
    return np.dtype("<u2" if ring_bits <= 16 else "<u4" if ring_bits <= 32 else "<u8")


def chunk_coordinates(ring_bits: int) -> int:
    """Coordinates whose words fill one chunk of keystream."""
    return CHUNK_BYTES // word_dtype(ring_bits).itemsize


def stream_key(seed: Seed, *, label: str, context: bytes, purpose: str, vector: int) -> StreamKey:
    """The key of one keystream: HKDF-SHA256 without salt over the canonical (label, context,
    purpose, vector). Two calls that differ in any of them give independent keys.
    """
    info = Writer().tag(label).blob(context).tag(purpose).u32(vector).finish()
    return StreamKey(HKDF(SHA256(), StreamKey.LENGTH, None, info).derive(seed.expose()))


def new_scratch() -> NDArray[np.uint8]:
    """Room for one chunk of keystream and the tag behind it: (CHUNK_BYTES + 16,) uint8."""
    return np.empty(CHUNK_BYTES + TAG_BYTES, np.uint8)


class Keystream:
    """One vector's keystream; holds the key schedule and no position, so threads may share it."""

    __slots__ = ("_cipher",)

    def __init__(self, key: StreamKey) -> None:
        self._cipher = AESGCM(key.expose())

    def write(self, chunk: int, size: int, scratch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The first `size` bytes of a chunk, as a view into `scratch` (size + 16 bytes or more).

        The 16 bytes after them are overwritten with a tag that means nothing here.
        """
        if not 0 <= size <= CHUNK_BYTES:
            raise UsageError(f"a chunk has {CHUNK_BYTES} bytes of keystream and not {size}")
        room = scratch.data[: size + TAG_BYTES]
        self._cipher.encrypt_into(chunk.to_bytes(12), _ZEROS[:size], None, room)
        return scratch[:size]

    def fill(self, chunk: int, out: Words) -> None:
        """Fill a contiguous word array of at most CHUNK_BYTES bytes with a chunk's first words."""
        scratch = np.empty(out.nbytes + TAG_BYTES, np.uint8)
        out[...] = self.write(chunk, out.nbytes, scratch).view(out.dtype)


def add_masks(
    words: Words,
    chunk: int,
    plus: Sequence[Keystream],
    minus: Sequence[Keystream],
    scratch: NDArray[np.uint8],
) -> None:
    """Add the keystreams in `plus`, subtract those in `minus`, in place, modulo the word.

    `words`: (m,) of a `word_dtype`, m <= `chunk_coordinates`, the chunk-th of its vector;
    `scratch` comes from `new_scratch`. The caller reduces mod 2^ring_bits by packing.
    """
    for keystream in plus:
        np.add(words, keystream.write(chunk, words.nbytes, scratch).view(words.dtype), out=words)
    for keystream in minus:
        np.subtract(
            words, keystream.write(chunk, words.nbytes, scratch).view(words.dtype), out=words
        )
