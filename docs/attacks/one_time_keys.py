"""The same attackers against one-time keys that add up: they are left with the sum.

In scheme `ckks` participant i draws a key s_i for one round and sends c_i = -a s_i + e_i + m_i;
a is public. The round releases S, the sum of the keys of those whose ciphertexts were added, and
nothing else (docs/protocol.md). This script gives the attacker everything that a coordinator and
one colluding participant see, S included, and lets it try.

What it cannot show is that nobody could do better: that is the hardness of RLWE, with the sums of
keys and errors given away.

Run it: python docs/attacks/one_time_keys.py
"""

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secagg.ckks.gaussian import GaussianStream
from secagg.ckks.ntt import ring
from secagg.ckks.parameters import Parameters
from secagg.ckks.seal import Residues, SealContext
from secagg.secret import Seed

PARTICIPANTS, SCALE = 4, 2.0**40
RING = Parameters(8192, (30,) * 6, "slots")
SEAL = SealContext(RING.degree, RING.primes)
PRIMES = np.array(RING.primes, np.uint64)[:, None]


@dataclass(frozen=True)
class Round:
    """What is on the coordinator's disk: the public a, every upload, and the key of the sum."""

    a: Residues
    uploads: list[Residues]
    key_of_sum: NDArray[np.int32]
    colluders_key: NDArray[np.int32]


def transformed(coefficients: NDArray[np.int32]) -> NDArray[np.uint64]:
    """The NTT form modulo each prime."""
    residues = (coefficients.astype(np.int64) % PRIMES.astype(np.int64)).astype(np.uint32)
    ring(RING.degree, RING.primes).forward(residues)
    return residues.astype(np.uint64)


def added(polynomials: list[Residues]) -> Residues:
    """The sum modulo each prime."""
    total: NDArray[np.uint64] = np.sum(polynomials, axis=0, dtype=np.uint64) % PRIMES
    return total.astype(np.uint32)


def hold_round(number: int, updates: NDArray[np.float64]) -> Round:
    """Everybody encrypts under a fresh key; the sum of the keys is released."""
    public = np.random.default_rng(number)  # in a real round, expanded from the round's context
    a = np.array([public.integers(0, q, RING.degree) for q in RING.primes], np.uint32)
    uploads, keys = [], []
    for update in updates:
        seed, context = Seed(os.urandom(32)), number.to_bytes(32, "big")
        s, e = np.empty((2, RING.degree), np.int32)
        GaussianStream(seed, context=context, purpose="secret", degree=RING.degree).write(0, s)
        GaussianStream(seed, context=context, purpose="errors", degree=RING.degree).write(0, e)
        message = SEAL.encode_slots(update, SCALE) + transformed(e)
        uploads.append(((message + PRIMES - a * transformed(s) % PRIMES) % PRIMES).astype("u4"))
        keys.append(s)
    return Round(a, uploads, np.sum(keys, axis=0, dtype=np.int32), keys[-1])


def opened(seen: Round, uploads: list[Residues], key: NDArray[np.int32]) -> NDArray[np.float64]:
    """What SEAL decrypts the sum of `uploads` to."""
    return SEAL.decrypt(SEAL.ciphertext(added(uploads), seen.a, SCALE), SEAL.secret_key(key))


def is_noise(opened_values: NDArray[np.float64], truth: NDArray[np.float64]) -> bool:
    """Far from the truth in every slot, and correlated with it by chance alone (6 sigma)."""
    correlation = abs(np.corrcoef(opened_values, truth)[0, 1])
    distance = np.abs(opened_values - truth).min()
    print(f"  off by at least {distance:.0e} in every slot, correlation {correlation:.3f}")
    return bool(distance > 100 and correlation < 0.1)


def main() -> bool:
    """Whether the sum opens, and nothing else does."""
    print(f"{PARTICIPANTS} participants, each with a key of its own for this round; S is released.")
    updates = np.random.default_rng(3).normal(0, 1, (2, PARTICIPANTS, SEAL.slots))
    first, second = hold_round(1, updates[0]), hold_round(2, updates[1])
    total = opened(first, first.uploads, first.key_of_sum)
    error = np.abs(total - updates[0].sum(axis=0)).max()
    print(f"S opens the sum, as it should: off by at most {error:.1e}")

    victim, truth = [first.uploads[0]], updates[0][0]
    print("S on participant 0's upload alone:")
    alone = is_noise(opened(first, victim, first.key_of_sum), truth)
    print("the colluding participant's own key on it:")
    colluder = is_noise(opened(first, victim, first.colluders_key), truth)
    print("S less the colluder's key, which is the key of the three others' sum, on it:")
    less = is_noise(opened(first, victim, first.key_of_sum - first.colluders_key), truth)
    print("the next round's S on it (the keys are fresh):")
    later = is_noise(opened(first, victim, second.key_of_sum), truth)
    print("Decrypted sums give away S (docs/attacks/published_sums.py), which is public here.")
    return bool(error < 1e-6) and alone and colluder and less and later


if __name__ == "__main__":
    main()
