"""What one core of this machine can do: keystream, addition, hashing, and fixed costs of a peer.

No aggregation can mask faster than the keystream is made and added, and none signs, verifies or
agrees on a key in less than these. Rates are GB/s (10^9 bytes), by process CPU time, medians of
short turns; fixed costs are microseconds. Nothing of `secagg` is imported.

  python limits.py
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable

import cryptography
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_KIB = 1 << 10
_LARGE = 128 << 20
_TURN_S = 0.01
_TURNS = 5

Act = Callable[[], object]


def per_call_s(act: Act) -> float:
    """CPU seconds of one call: median over turns of some 10 ms each."""
    act()
    calls = 1
    while (taken := _turn(act, calls)) < _TURN_S:
        calls = max(2 * calls, int(calls * _TURN_S / max(taken, 1e-5)))
    return statistics.median(_turn(act, calls) / calls for _ in range(_TURNS))


def _turn(act: Act, calls: int) -> float:
    before = time.process_time()
    for _ in range(calls):
        act()
    return time.process_time() - before


def gb_s(act: Act, size: int) -> float:
    """Rate of an act over `size` bytes."""
    return round(size / per_call_s(act) / 1e9, 3)


def keystream() -> dict[str, float]:
    """Streams over zeros, in pieces of a size."""
    rates = {}
    for kib in (64, 256, 1024):
        size = kib * _KIB
        zeros, out = bytes(size), bytearray(size + 16)
        for bits in (128, 256):
            cipher = Cipher(algorithms.AES(os.urandom(bits // 8)), modes.CTR(bytes(16)))
            stream = cipher.encryptor()
            rates[f"aes{bits}_ctr_{kib}_kib"] = gb_s(lambda: stream.update_into(zeros, out), size)  # noqa: B023
        gcm = AESGCM(os.urandom(32))
        rates[f"aes256_gcm_{kib}_kib"] = gb_s(
            lambda: gcm.encrypt_into(bytes(12), zeros, None, out),  # noqa: B023
            size,
        )
    size = 256 * _KIB
    zeros, out = bytes(size), bytearray(size + 16)
    chacha = Cipher(algorithms.ChaCha20(os.urandom(32), bytes(16)), None).encryptor()
    rates["chacha20_256_kib"] = gb_s(lambda: chacha.update_into(zeros, out), size)
    return rates


def memory() -> dict[str, float]:
    """Addition of 32-bit words in and out of cache, and memory that is touched the first time."""
    small, other = np.ones(1 << 16, np.uint32), np.ones(1 << 16, np.uint32)
    large, another = np.ones(_LARGE // 4, np.uint32), np.ones(_LARGE // 4, np.uint32)
    return {
        "add_in_place_256_kib": gb_s(lambda: np.add(small, other, out=small), small.nbytes),
        "add_in_place_128_mib": gb_s(lambda: np.add(large, another, out=large), large.nbytes),
        "copy_128_mib": gb_s(lambda: np.copyto(large, another), large.nbytes),
        "new_128_mib": gb_s(lambda: np.full(_LARGE // 4, 1, np.uint32), large.nbytes),
    }


def hashing() -> dict[str, float]:
    """Over 256 KiB, which is one leaf of an upload."""
    data = bytes(256 * _KIB)
    names = ("sha256", "sha512", "blake2b")
    return {name: gb_s(lambda: hashlib.new(name, data).digest(), len(data)) for name in names}  # noqa: B023


def fixed_costs() -> dict[str, float]:
    """Microseconds a call."""
    x25519, ed25519 = X25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    mlkem, peer = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate().public_key()
    signature, verifier = ed25519.sign(b"message"), ed25519.public_key()
    encapsulator = mlkem.public_key()
    _, ciphertext = encapsulator.encapsulate()
    secret, gcm = os.urandom(32), AESGCM(os.urandom(32))
    acts: dict[str, Act] = {
        "x25519_keygen": X25519PrivateKey.generate,
        "x25519_exchange": lambda: x25519.exchange(peer),
        "mlkem768_keygen": MLKEM768PrivateKey.generate,
        "mlkem768_encapsulate": encapsulator.encapsulate,
        "mlkem768_decapsulate": lambda: mlkem.decapsulate(ciphertext),
        "ed25519_sign": lambda: ed25519.sign(b"message"),
        "ed25519_verify": lambda: verifier.verify(signature, b"message"),
        "hkdf_sha256": lambda: HKDF(SHA256(), 32, None, b"").derive(secret),
        "aes256_gcm_130_bytes": lambda: gcm.encrypt(bytes(12), bytes(130), None),
        "aes256_ctr_new_stream": lambda: Cipher(
            algorithms.AES(secret), modes.CTR(bytes(16))
        ).encryptor(),
    }
    return {name: round(per_call_s(act) * 1e6, 2) for name, act in acts.items()}


def main() -> None:
    """Measure and print one JSON object."""
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    facts = {
        "keystream_gb_s": keystream(),
        "memory_gb_s": memory(),
        "hash_gb_s": hashing(),
        "fixed_us": fixed_costs(),
        "cryptography": cryptography.__version__,
        "numpy": np.__version__,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
