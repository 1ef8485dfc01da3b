"""Two published sums under a standing CKKS key are the key.

Li and Micciancio, "On the Security of Homomorphic Encryption on Approximate Numbers", EUROCRYPT
2021: what CKKS decrypts to contains the ciphertext's error, and the error is a linear equation in
the key. This script attacks TenSEAL as it is used for federated averaging. It sees what every
onlooker of a server sees that publishes its results: ciphertexts, and decrypted sums as floats.

The algebra. A ciphertext (c0, c1) decrypts to the polynomial m = c0 + c1 s mod q, of which
TenSEAL publishes the real parts of the slots. They determine m(X) + m(1/X), twice the part of m
that is symmetric under X -> 1/X, and doubles are precise enough to round it to its integers:

    r = m(X) + m(1/X) = c0(X) + c0(1/X) + c1(X) s(X) + c1(1/X) s(1/X)  mod q

At each root of X^N + 1 that is one equation in the two unknowns s(X) and s(1/X). Two sums give
two equations. One prime of the chain is enough, since the key's coefficients are -1, 0 and 1.

Run it: python docs/attacks/published_sums.py
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tenseal as ts
from numpy.typing import NDArray
from tenseal import sealapi
from tenseal.sealapi import util

from secagg.ckks.seal import SealContext, words_of

DEGREE, BITS, SCALE, CLIENTS = 8192, [60, 40, 40, 60], 2.0**40, 4
Field = NDArray[Any]
"""Python integers mod q, so that no product overflows."""


@dataclass(frozen=True)
class Published:
    """What an onlooker keeps of one round."""

    encrypted: ts.CKKSVector
    decrypted: list[float]


def average(context: ts.Context, updates: NDArray[np.float64]) -> Published:
    """One round of the recipe: clients encrypt, the server adds, the sum is decrypted."""
    total, *others = [ts.ckks_vector(context, update.tolist()) for update in updates]
    for vector in others:
        total = total.add(vector)
    return Published(total, total.decrypt(context.secret_key()))


class Attacker:
    """Knows the parameters, which are public, and no key."""

    def __init__(self) -> None:
        *primes, key_prime = [m.value() for m in sealapi.CoeffModulus.Create(DEGREE, BITS)]
        self.seal = SealContext(DEGREE, primes, key_prime)
        self.plane = 1
        self.q = primes[self.plane]

    def equation(self, seen: Published) -> tuple[Field, Field]:
        """(c1, r - c0(X) - c0(1/X)) at every root."""
        (encrypted,) = self.seal.from_tenseal(seen.encrypted)
        c0, c1 = words_of(encrypted)[:, self.plane].astype(object)
        return c1, (self.symmetric(seen.decrypted) - c0 - inverted(c0)) % self.q

    def symmetric(self, decrypted: list[float]) -> Field:
        """r: the polynomial of integers whose slots are twice what was published."""
        plain = sealapi.Plaintext()
        level = self.seal.seal.first_parms_id()
        sealapi.CKKSEncoder(self.seal.seal).encode(decrypted, level, 2 * SCALE, plain)
        start = self.plane * DEGREE
        return np.array([plain.data(i) for i in range(start, start + DEGREE)], object)

    def key(self, first: Published, second: Published) -> NDArray[np.int32]:
        (a, u), (b, v) = self.equation(first), self.equation(second)
        determinant = (a * inverted(b) - b * inverted(a)) % self.q
        numerator = (u * inverted(b) - v * inverted(a)) % self.q
        at_roots = numerator * [pow(d, -1, self.q) for d in determinant] % self.q
        key = self.coefficients(at_roots)
        return np.where(key > self.q // 2, key - self.q, key).astype(np.int64).astype(np.int32)

    def coefficients(self, at_roots: Field) -> Field:
        """The inverse transform, in SEAL's order, stage by stage."""
        log2 = DEGREE.bit_length() - 1
        root = util.NTTTables(log2, sealapi.Modulus(self.q)).get_root()
        x, blocks = at_roots, DEGREE // 2
        while blocks:
            exponents = [-bits_reversed(blocks + i, log2) for i in range(blocks)]
            back = np.array([pow(root, k, self.q) for k in exponents], object)[:, None]
            left, right = x.reshape(blocks, 2, -1).swapaxes(0, 1)
            x = np.stack([left + right, (left - right) * back], axis=1).ravel() % self.q
            blocks //= 2
        return x * pow(DEGREE, -1, self.q) % self.q


def inverted(at_roots: Field) -> Field:
    """p(1/X) of p(X): in SEAL's order of the roots, that is the reverse."""
    return at_roots[::-1]


def bits_reversed(number: int, bits: int) -> int:
    """`number` of so many bits, read backwards."""
    return int(f"{number:0{bits}b}"[::-1], 2)


def words(key: ts.enc_context.SecretKey) -> list[int]:
    """The key as SEAL holds it."""
    plain = key.data.data()
    return [plain.data(i) for i in range(plain.coeff_count())]


def main() -> bool:
    """Whether the attack succeeds."""
    print(f"{CLIENTS} clients average updates under one TenSEAL key; two decrypted sums appear.")
    context = ts.context(ts.SCHEME_TYPE.CKKS, DEGREE, coeff_mod_bit_sizes=BITS)
    context.global_scale = SCALE
    rng = np.random.default_rng(2)
    rounds = rng.normal(0, 1, (3, CLIENTS, DEGREE // 2))
    first, second = average(context, rounds[0]), average(context, rounds[1])

    print("The onlooker solves two linear equations at each of 8192 roots:")
    attacker = Attacker()
    key = attacker.key(first, second)
    print(f"  the key's coefficients lie between {key.min()} and {key.max()}")

    stolen = attacker.seal.tenseal_context(key, SCALE).secret_key()
    same = words(stolen) == words(context.secret_key())
    print(f"  it is the secret key, word for word: {same}")

    victim = ts.ckks_vector(context, rounds[2][0].tolist())
    error = np.abs(np.array(victim.decrypt(stolen)) - rounds[2][0]).max()
    print(f"  a client's next upload, opened with it: off by at most {error:.1e}")
    return same and bool(error < 1e-6)


if __name__ == "__main__":
    main()
