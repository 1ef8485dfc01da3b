"""The transform is SEAL's, bit by bit, and multiplies as X^N = -1 demands."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from secagg.ckks.ntt import Residues, Ring, ring
from secagg.errors import ConfigError

SMALL = [8, 16, 32, 64, 128]


def primes_for(degree: int, sizes: list[int]) -> tuple[int, ...]:
    """For each size in bits the largest prime that is 1 mod 2 * degree and not used yet."""
    sympy = pytest.importorskip("sympy")
    found: list[int] = []
    for bits in sizes:
        prime = ((1 << bits) - 2) // (2 * degree) * 2 * degree + 1
        while prime in found or not sympy.isprime(prime):
            prime -= 2 * degree
        found.append(prime)
    return tuple(found)


def random_residues(of: Ring, seed: int) -> Residues:
    """Uniform residues, with zeros and the largest ones among them."""
    source = np.random.default_rng(seed)
    planes = [source.integers(0, prime, of.degree) for prime in of.primes]
    residues = np.stack(planes).astype(np.uint32)
    residues[:, :2] = 0
    residues[:, -3:] = of.moduli[:, None] - 1
    return residues


def schoolbook(a: list[int], b: list[int], prime: int) -> list[int]:
    product = [0] * len(a)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            wrapped, place = divmod(i + j, len(a))
            product[place] += -x * y if wrapped else x * y
    return [value % prime for value in product]


@pytest.mark.parametrize("degree", [2048, 4096, 8192, 16384])
def test_forward_and_inverse_are_seals_bit_by_bit(degree: int) -> None:
    sealapi = pytest.importorskip("tenseal.sealapi")

    util = sealapi._sealapi_cpp.util

    for prime in primes_for(degree, [30, 30, 29, 25, 20]):
        here = ring(degree, (prime,))
        tables = util.CreateNTTTables(degree.bit_length() - 1, [sealapi.Modulus(prime)])
        residues = random_residues(here, prime)
        theirs = util.ntt_negacyclic_harvey(residues[0].tolist(), tables.get())
        ours = residues.copy()
        here.forward(ours)
        assert ours[0].tolist() == theirs
        here.inverse(ours)
        assert np.array_equal(ours, residues)


@pytest.mark.parametrize("degree", SMALL)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_product_is_the_schoolbook_negacyclic_product(degree: int, seed: int) -> None:
    here = ring(degree, primes_for(degree, [30, 22, 30]))
    a, b, c = (random_residues(here, seed + k) for k in range(3))
    transformed = [one.copy() for one in (a, b, c)]
    for one in transformed:
        here.forward(one)
    for sign, factor in ((1, here.factor), (-1, here.negative_factor)):
        out = transformed[2].copy()
        here.multiply_add(out, transformed[0], factor(transformed[1]))
        assert (out < here.moduli[:, None]).all()
        here.inverse(out)
        for plane, prime in enumerate(here.primes):
            product = schoolbook(a[plane].tolist(), b[plane].tolist(), prime)
            wanted = [
                (start + sign * value) % prime
                for start, value in zip(c[plane].tolist(), product, strict=True)
            ]
            assert out[plane].tolist() == wanted


@pytest.mark.parametrize("degree", [*SMALL, 256, 512, 1024, 2048, 4096, 8192, 16384])
def test_inverse_undoes_forward_and_lazy_input_changes_nothing(degree: int) -> None:
    here = ring(degree, primes_for(degree, [30, 30, 24]))
    residues = random_residues(here, degree)
    forward = residues.copy()
    here.forward(forward)
    assert (forward < here.moduli[:, None]).all()
    lazy = residues + 3 * here.moduli[:, None]
    here.forward(lazy)
    assert np.array_equal(lazy, forward)
    back = forward + here.moduli[:, None]
    here.inverse(back)
    assert np.array_equal(back, residues)


def test_value_i_belongs_to_an_odd_power_of_the_smallest_root() -> None:
    degree = 16
    (prime,) = primes_for(degree, [20])
    root = next(x for x in range(2, prime) if pow(x, degree, prime) == prime - 1)
    here = ring(degree, (prime,))
    coefficients = random_residues(here, 5)
    values = coefficients.copy()
    here.forward(values)
    for i in range(degree):
        point = pow(root, 2 * int(f"{i:04b}"[::-1], 2) + 1, prime)
        wanted = sum(int(c) * pow(point, k, prime) for k, c in enumerate(coefficients[0]))
        assert int(values[0, i]) == wanted % prime


@pytest.mark.parametrize(
    ("degree", "prime"), [(12, 97), (4, 97), (16, 101), (8, 2**31 - 2**27 + 1)]
)
def test_a_ring_without_a_transform_is_refused(degree: int, prime: int) -> None:
    with pytest.raises(ConfigError):
        ring(degree, (prime,))


def test_a_ring_and_a_factor_print_no_residues() -> None:
    here = ring(8, primes_for(8, [20]))
    assert "<U4" not in repr(here.factor(here.new()))
    assert "array" not in repr(here.factor(here.new()))


WITHOUT_COMPILER = """
import hashlib, sys
import numpy as np
from secagg.ckks.ntt import ring
from secagg.ckks.public import PublicPolynomials
from secagg.ckks.residues import digits, wire

primes, sizes = tuple(map(int, sys.argv[1].split())), (30, 30, 29)
digest = hashlib.sha256()
for degree in (8, 16, 32, 128):
    here, packed = ring(degree, primes), wire(degree, primes, sizes)
    public, total = here.new(), np.zeros((3, degree), np.uint32)
    PublicPolynomials(b"context", degree, primes).expand(1, public)
    for low, high in ((-1000, 1000), (-(2**31), 2**31)):
        source = np.random.default_rng(degree)
        levels = source.integers(low, high, (2, degree)).astype(np.int32)
        coefficients = here.new()
        digits(primes, 34, 2, 17).encode(levels, np.full(degree, -51, np.int8), coefficients)
        here.forward(coefficients)
        here.multiply_add(coefficients, public, here.negative_factor(coefficients))
        packed.add(total, packed.pack(coefficients))
    packed.subtract(total, packed.pack(public))
    here.inverse(total)
    decoded = digits(primes, 34, 2, 17).decode(total)
    for array in (public, total, decoded.values, decoded.noise):
        digest.update(array.tobytes())
print(digest.hexdigest())
"""


def test_the_loops_are_ordinary_python_too_and_overflow_nowhere() -> None:
    primes = " ".join(map(str, primes_for(128, [30, 30, 29])))
    digests = {
        subprocess.run(
            [sys.executable, "-W", "error", "-c", WITHOUT_COMPILER, primes],
            env={**os.environ, "NUMBA_DISABLE_JIT": disabled},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for disabled in "01"
    }
    assert len(digests) == 1
