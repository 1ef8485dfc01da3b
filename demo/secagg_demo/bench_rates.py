"""How fast masks are made and added, beside what AES-256-CTR alone can do on this core now.

Both are measured in turns, so that whatever else the machine does meets both alike.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secagg.prg import CHUNK_BYTES, Keystream, add_masks, new_scratch
from secagg.secret import StreamKey

_CHUNKS = 64
_TURNS = 41


@dataclass(frozen=True, slots=True)
class Rates:
    """GB/s (10^9 bytes) of keystream."""

    keystream_gb_s: float
    """Made, and added to the words of one chunk."""
    aes_ctr_gb_s: float
    """`cryptography`'s AES-256-CTR, update_into, 256 KiB at a time."""


def measure_rates() -> Rates:
    """Medians of process CPU time over turns of 16 MiB each."""
    masks, plain = _mask_chunk(), _aes_chunk()
    turns = [(_rate(masks), _rate(plain)) for _ in range(_TURNS)]
    return Rates(*(statistics.median(column) for column in zip(*turns, strict=True)))


def _rate(chunk: Callable[[], object]) -> float:
    before = time.process_time()
    for _ in range(_CHUNKS):
        chunk()
    return _CHUNKS * CHUNK_BYTES / (time.process_time() - before) / 1e9


def _mask_chunk() -> Callable[[], object]:
    keystream, scratch = Keystream(StreamKey.draw(os.urandom)), new_scratch()
    words = np.zeros(CHUNK_BYTES // 4, np.uint32)
    return lambda: add_masks(words, 1, [keystream], [], scratch)


def _aes_chunk() -> Callable[[], object]:
    encryptor = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
    zeros, out = bytes(CHUNK_BYTES), bytearray(CHUNK_BYTES)
    return lambda: encryptor.update_into(zeros, out)
