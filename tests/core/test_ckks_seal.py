"""Sums of packing `slots` are SEAL's ciphertexts: SEAL and TenSEAL open them and go on."""

import math
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tenseal
from numpy.typing import NDArray
from tenseal import sealapi

from secagg.ckks import seal
from secagg.ckks.ntt import ring
from secagg.ckks.parameters import SIGMA, TAIL, Parameters
from secagg.ckks.seal import Residues, SealContext, words_of
from secagg.errors import ConfigError, UsageError

WIDE = Parameters(8192, (30,) * 6, "slots")
SMALL = Parameters(2048, (25, 25), "slots")
SCALE = 2.0**40


@dataclass(frozen=True)
class Summed:
    """What an aggregator holds of a round: the sums of c, of s and, here alone, of the values."""

    c: Residues
    a: Residues
    s: NDArray[np.int32]
    values: NDArray[np.float64]
    parts: list[tuple[Residues, NDArray[np.int32]]]


def uniform(parameters: Parameters, rng: np.random.Generator) -> Residues:
    planes = [rng.integers(0, q, parameters.degree) for q in parameters.primes]
    return np.array(planes, np.uint32)


def gaussian(degree: int, rng: np.random.Generator) -> NDArray[np.int32]:
    return np.rint(rng.normal(0, SIGMA, degree)).clip(-TAIL, TAIL).astype(np.int32)


def in_ntt_form(parameters: Parameters, coefficients: NDArray[np.int32]) -> NDArray[np.uint64]:
    primes = np.array(parameters.primes, np.int64)[:, None]
    residues = (coefficients.astype(np.int64) % primes).astype(np.uint32)
    ring(parameters.degree, parameters.primes).forward(residues)
    return residues.astype(np.uint64)


def summed(
    parameters: Parameters, vectors: list[NDArray[np.float64]], scale: float, seed: int = 1
) -> Summed:
    """c_i = -a s_i + e_i + m_i and their sums, in plain numpy."""
    rng = np.random.default_rng(seed)
    context = SealContext(parameters.degree, parameters.primes)
    q = np.array(parameters.primes, np.uint64)[:, None]
    a = uniform(parameters, rng)
    parts = []
    for values in vectors:
        s, e = gaussian(parameters.degree, rng), gaussian(parameters.degree, rng)
        message = context.encode_slots(values, scale) + in_ntt_form(parameters, e)
        c = (message + q - a * in_ntt_form(parameters, s) % q) % q
        parts.append((c.astype(np.uint32), s))
    total = sum(c.astype(np.uint64) for c, _ in parts) % q
    key = np.sum([s for _, s in parts], axis=0, dtype=np.int32)
    return Summed(total.astype(np.uint32), a, key, np.sum(vectors, axis=0), parts)


def reals(parameters: Parameters, count: int, seed: int = 7) -> list[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return list(rng.uniform(-1, 1, (count, parameters.width)))


@pytest.fixture(scope="module")
def context() -> SealContext:
    return SealContext(WIDE.degree, WIDE.primes)


@pytest.fixture(scope="module")
def round_of_three() -> Summed:
    return summed(WIDE, reals(WIDE, 3), SCALE)


@pytest.mark.parametrize("count", [3, 10, 20])
def test_seals_decryptor_opens_the_sum_with_the_sum_of_the_keys(
    context: SealContext, count: int
) -> None:
    over = summed(WIDE, reals(WIDE, count), SCALE, seed=count)
    opened = context.decrypt(context.ciphertext(over.c, over.a, SCALE), context.secret_key(over.s))
    bound = WIDE.degree * count * (TAIL + 1 / 2) / SCALE
    assert np.abs(opened - over.values).max() < bound / 500


@pytest.mark.parametrize("count", [3, 20])
def test_sums_of_levels_come_back_exactly_at_the_least_scale(count: int) -> None:
    scale = 2.0 ** SMALL.scale_bits(count)
    rng = np.random.default_rng(count)
    vectors = list(rng.integers(-(2**15), 2**15, (count, SMALL.width)).astype(np.float64))
    over = summed(SMALL, vectors, scale)
    context = SealContext(SMALL.degree, SMALL.primes)
    opened = context.decrypt(context.ciphertext(over.c, over.a, scale), context.secret_key(over.s))
    assert (np.rint(opened) == over.values).all()


def test_the_summed_key_opens_no_single_ciphertext(
    context: SealContext, round_of_three: Summed
) -> None:
    key = context.secret_key(round_of_three.s)
    for c, own in round_of_three.parts:
        encrypted = context.ciphertext(c, round_of_three.a, SCALE)
        assert np.abs(context.decrypt(encrypted, key)).min() > 1
        assert np.abs(context.decrypt(encrypted, context.secret_key(own))).max() < 1.1


def test_sums_and_decryption_are_seals_bit_for_bit(
    context: SealContext, round_of_three: Summed
) -> None:
    over, zeros = round_of_three, np.zeros_like(round_of_three.a)
    encrypted = context.ciphertext(over.parts[0][0], over.a, SCALE)
    for c, _ in over.parts[1:]:
        encrypted = context.add(encrypted, context.ciphertext(c, zeros, SCALE))
    assert (words_of(encrypted) == np.stack([over.c, over.a])).all()

    plain, key = sealapi.Plaintext(), context.secret_key(over.s)
    sealapi.Decryptor(context.seal, key).decrypt(encrypted, plain)
    opened = np.array([plain.data(i) for i in range(plain.coeff_count())], np.uint64)
    q = np.array(WIDE.primes, np.uint64)[:, None]
    ours = (over.c + over.a * in_ntt_form(WIDE, over.s) % q) % q
    assert (opened.reshape(ours.shape) == ours).all()


def test_a_key_is_seals_key(context: SealContext, round_of_three: Summed) -> None:
    key = context.secret_key(round_of_three.s)
    data = key.data()  # a view: it lives as long as the key
    words = np.array([data.data(i) for i in range(data.coeff_count())], np.uint64)
    planes = words.reshape(-1, WIDE.degree)
    assert len(planes) == len(WIDE.primes) + 1
    assert (planes[:-1] == in_ntt_form(WIDE, round_of_three.s)).all()


def test_slots_become_residues_and_slots_again(context: SealContext) -> None:
    (values,) = reals(WIDE, 1)
    residues = context.encode_slots(values, SCALE)
    assert residues.dtype == np.uint32
    assert np.abs(context.decode_slots(residues, SCALE) - values).max() < 2e-10
    few = context.decode_slots(context.encode_slots(values[:5], SCALE), SCALE)
    assert np.abs(few[:5] - values[:5]).max() < 2e-10
    assert np.abs(few[5:]).max() < 2e-10


def test_a_constant_is_a_constant_polynomial(context: SealContext) -> None:
    residues = context.encode_slots(np.full(context.slots, -3.0), SCALE)
    for plane, q in zip(residues, WIDE.primes, strict=True):
        assert (plane == (-3 * 2**40) % q).all()


def test_weights_and_offsets_are_applied_to_an_encrypted_sum(
    context: SealContext, round_of_three: Summed
) -> None:
    over = round_of_three
    encrypted, key = context.ciphertext(over.c, over.a, SCALE), context.secret_key(over.s)
    weights = np.random.default_rng(3).uniform(0, 1, context.slots)
    for spend, error in ((1, 1e-6), (2, 1e-7)):
        product = context.multiply_plain(encrypted, weights, spend=spend)
        assert product.scale == SCALE
        assert np.abs(context.decrypt(product, key) - weights * over.values).max() < error
        shifted = context.add_plain(product, weights)
        assert np.abs(context.decrypt(shifted, key) - weights * (over.values + 1)).max() < error
    twice = context.add(encrypted, encrypted)
    assert np.abs(context.decrypt(twice, key) - 2 * over.values).max() < 1e-6


def test_a_sum_is_an_ordinary_tenseal_vector(context: SealContext, round_of_three: Summed) -> None:
    over, length = round_of_three, context.slots + 1000
    bound_to = context.tenseal_context(over.s, SCALE)
    vector = context.tenseal_vector(bound_to, [(over.c, over.a)] * 2, length, SCALE)
    expected = np.concatenate([over.values, over.values[:1000]])
    assert isinstance(vector, tenseal.CKKSVector)
    assert vector.size() == length
    assert np.abs(np.array(vector.decrypt()) - expected).max() < 1e-6
    assert len(context.from_tenseal(vector)) == 2
    assert (words_of(context.from_tenseal(vector)[0]) == np.stack([over.c, over.a])).all()
    weights = np.linspace(0, 1, length)
    doubled = (vector + 0.5).mul(weights.tolist()).mul(2.0)
    assert np.abs(np.array(doubled.decrypt()) - (expected + 0.5) * weights * 2).max() < 1e-6
    for wrong in (context.slots, 2 * context.slots + 1):
        with pytest.raises(UsageError, match="do not hold"):
            context.tenseal_vector(bound_to, [(over.c, over.a)] * 2, wrong, SCALE)


def test_seal_itself_counts_the_largest_ring_as_secure() -> None:
    most = Parameters(8192, (29,) * 4 + (28,) * 3, "slots")  # 200 bits
    context = SealContext(most.degree, most.primes)
    context.validate_security()
    context.tenseal_context(np.ones(8192, np.int32), SCALE)


def test_an_insecure_ring_is_named_and_tenseal_refuses_it() -> None:
    context = SealContext(2048, WIDE.primes)
    with pytest.raises(ConfigError, match="180 bits of primes at degree 2048"):
        context.validate_security()
    with pytest.raises(ConfigError, match="TenSEAL refuses this ring"):
        context.tenseal_context(np.ones(2048, np.int32), SCALE)


@pytest.mark.parametrize(
    ("degree", "primes"),
    [
        (8192, [65537, 65539]),  # no roots of unity
        (8192, [WIDE.primes[0], WIDE.primes[0]]),
        (8000, WIDE.primes),
        (8192, [2**61 - 1]),
    ],
)
def test_a_ring_that_seal_does_not_take_is_a_configuration_error(
    degree: int, primes: list[int]
) -> None:
    with pytest.raises(ConfigError, match="SEAL"):
        SealContext(degree, primes)


def spoiled(residues: Residues, prime: int) -> Residues:
    wrong = residues.copy()
    wrong[-1, -1] = prime
    return wrong


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: spoiled(r, WIDE.primes[-1]),
        lambda r: spoiled(r, 2**32 - 1),
        lambda r: r[:-1],
        lambda r: r[:, :-1],
        lambda r: r.ravel(),
        lambda r: r.astype(np.int64),
        lambda r: r.astype(np.float64),
    ],
)
def test_what_is_no_polynomial_of_the_ring_never_reaches_seal(
    context: SealContext, round_of_three: Summed, spoil: Callable[[Residues], Residues]
) -> None:
    wrong, right = spoil(round_of_three.c), round_of_three.a
    for use in (
        lambda: context.ciphertext(wrong, right, SCALE),
        lambda: context.ciphertext(right, wrong, SCALE),
        lambda: context.decode_slots(wrong, SCALE),
    ):
        with pytest.raises(UsageError, match=r"polynomial is|below its prime"):
            use()


@pytest.mark.parametrize(
    ("values", "scale", "says"),
    [
        (np.ones(4097), SCALE, "1 to 4096 values"),
        (np.ones(0), SCALE, "1 to 4096 values"),
        (np.ones((2, 2)), SCALE, "1 to 4096 values"),
        (np.array([1.0, np.nan]), SCALE, "infinities or NaN"),
        (np.array([np.inf]), SCALE, "infinities or NaN"),
        (np.ones(1), 0.0, "scale is a positive number"),
        (np.ones(1), -1.0, "scale is a positive number"),
        (np.ones(1), math.inf, "scale is a positive number"),
        (np.ones(1), 2.0**181, "SEAL refuses"),
        (np.full(4096, 2.0**141), SCALE, "SEAL refuses"),
    ],
)
def test_what_no_plaintext_holds_is_refused(
    context: SealContext, values: NDArray[np.float64], scale: float, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        context.encode_slots(values, scale)


def test_wider_primes_have_contexts_but_no_residues_of_ours() -> None:
    wide = SealContext(8192, [1152921504606584833])  # 60 bits
    with pytest.raises(UsageError, match="32 bits"):
        wide.encode_slots(np.ones(1), SCALE)


def test_a_key_has_signed_coefficients(context: SealContext) -> None:
    for wrong in (np.ones(4096, np.int32), np.ones(8192, np.uint32), np.ones((1, 8192), np.int32)):
        with pytest.raises(UsageError, match="8192 signed coefficients"):
            context.secret_key(wrong)


def test_products_that_cannot_be_are_refused(context: SealContext, round_of_three: Summed) -> None:
    encrypted = context.ciphertext(round_of_three.c, round_of_three.a, SCALE)
    for spend in (0, len(WIDE.primes)):
        with pytest.raises(UsageError, match="spend is 1 to 5"):
            context.multiply_plain(encrypted, np.ones(1), spend=spend)
    with pytest.raises(UsageError, match="SEAL refuses"):
        context.multiply_plain(encrypted, np.zeros(1))
    lower = context.multiply_plain(encrypted, np.ones(1))
    with pytest.raises(UsageError, match="SEAL refuses"):
        context.add(encrypted, lower)


def test_without_files_in_memory_a_private_file_is_used_and_removed(
    context: SealContext, round_of_three: Summed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with seal._named_file() as (_, path):
        assert Path(path).parent == tmp_path
        assert os.name == "nt" or Path(path).stat().st_mode & 0o777 == 0o600
    encrypted = context.ciphertext(round_of_three.c, round_of_three.a, SCALE)
    opened = context.decrypt(encrypted, context.secret_key(round_of_three.s))
    assert np.abs(opened - round_of_three.values).max() < 1e-6
    assert list(tmp_path.iterdir()) == []


def test_the_scheme_is_imported_without_tenseal() -> None:
    program = "import sys, secagg.ckks; sys.exit('tenseal' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_without_tenseal_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "secagg.ckks.seal")
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with pytest.raises(ConfigError, match=r"pip install 'secagg\[ckks\]'"):
        runpy.run_module("secagg.ckks.seal")
