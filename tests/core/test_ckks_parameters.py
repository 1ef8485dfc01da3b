"""Parameters that are chosen hold every sum, without probabilities, and hold no more than they say.

Sums are put together and taken apart here in Python integers, by the definition of the packing and
not by the package's code; SEAL is asked about security and about doubles.
"""

import subprocess
import sys
from dataclasses import replace
from math import gcd, log2, prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import encoding
from secagg.canonical import Reader, Writer
from secagg.ckks.parameters import (
    DEGREES,
    DITHER_TAIL,
    GUARD,
    MAX_MODULUS_BITS,
    MOST_LEAF_VALUES,
    TAIL,
    Packing,
    Parameters,
    Security,
    choose,
)
from secagg.encoding import ring_bits_needed
from secagg.errors import ConfigError, MalformedMessage

packings = st.sampled_from(("coefficients", "slots"))
securities = st.sampled_from(("quantum", "classical"))


def ring(value_bits: int, n: int) -> int:
    """As `RoundPlan.create` sets it."""
    return max(8, ring_bits_needed(value_bits, n, 4))


def failing(parameters: Parameters, n: int, ring_bits: int, weight_ring_bits: int = 8) -> list[str]:
    clauses = parameters.clauses(n, ring_bits, weight_ring_bits)
    return [clause for clause, holds, _ in clauses if not holds]


def fields(total: int, bits: int, count: int) -> list[int]:
    """Signed fields of a nonnegative integer that was biased by half a range in each."""
    return [(total >> bits * k) % (1 << bits) - (1 << bits - 1) for k in range(count)]


# ------------------------------------------------------------------------------- what is chosen


@given(
    n=st.integers(3, 1000),
    value_bits=st.integers(4, 32),
    max_weight=st.integers(1, (1 << 31) - 1),
    length=st.integers(1, 1 << 24),
    holders=st.integers(3, 64),
    security=securities,
)
def test_coefficients_are_chosen_for_every_plan_and_all_clauses_hold(
    n: int, value_bits: int, max_weight: int, length: int, holders: int, security: Security
) -> None:
    g, w = ring(value_bits, n), ring(max_weight.bit_length() + 1, n)
    chosen = choose(
        n=n, length=length, ring_bits=g, weight_ring_bits=w, holders=holders, security=security
    )
    assert failing(chosen, n, g, w) == []
    assert chosen.modulus < 2 ** MAX_MODULUS_BITS[security][chosen.degree]
    k = chosen.digits(n, g)
    assert chosen.leaf_values(n, g) == k * chosen.degree <= MOST_LEAF_VALUES
    assert max(chosen.modulus_bits) - min(chosen.modulus_bits) <= 1
    last = k * chosen.last_width
    leaves = chosen.polynomials(length, n, g, w)
    assert (leaves - 1) * k * chosen.degree + last >= length
    assert leaves == 1 or (leaves - 2) * k * chosen.degree + last < length


@given(
    n=st.integers(3, 1000),
    value_bits=st.integers(4, 32),
    max_weight=st.integers(1, 1 << 40),
    length=st.integers(1, 1 << 24),
    security=securities,
)
def test_slots_are_chosen_up_to_38_bits_and_refused_where_doubles_are_too_short(
    n: int, value_bits: int, max_weight: int, length: int, security: Security
) -> None:
    g, w = ring(value_bits, n), ring(max_weight.bit_length() + 1, n)

    def chosen() -> Parameters:
        return choose(
            n=n, length=length, ring_bits=g, weight_ring_bits=w, holders=n,
            packing="slots", security=security,
        )  # fmt: skip

    if g > 38 or w > g:  # the weight takes one slot, so that nothing but its sum is opened
        with pytest.raises(ConfigError, match="take packing coefficients"):
            chosen()
        return
    parameters = chosen()
    assert failing(parameters, n, g, w) == []
    half, leaves = parameters.degree // 2, parameters.polynomials(length, n, g, w)
    assert leaves * half - 1 >= length
    assert leaves == 1 or (leaves - 1) * half - 1 < length


@pytest.mark.parametrize("packing", ["coefficients", "slots"])
@pytest.mark.parametrize(("n", "length"), [(3, 10), (10, 40_000), (100, 1_000_000)])
def test_no_other_sizes_are_cheaper(packing: Packing, n: int, length: int) -> None:
    g = ring(16, n)
    best = choose(
        n=n, length=length, ring_bits=g, weight_ring_bits=20, holders=n, packing=packing
    ).cost(length, n, g, 20, n)
    for degree in DEGREES[:-1]:
        for count in range(1, 8):
            for size in range(18, 31):
                for larger in range(count):
                    sizes = (size + 1,) * larger + (size,) * (count - larger)
                    other = Parameters(degree, sizes, packing)
                    if not failing(other, n, g, 20):
                        assert other.cost(length, n, g, 20, n) >= best


def test_a_value_costs_what_the_design_says() -> None:
    def bits_a_value(n: int, holders: int) -> tuple[float, float]:
        g, length = ring(16, n), 1_000_000
        chosen = choose(n=n, length=length, ring_bits=g, weight_ring_bits=g, holders=holders)
        packed = sum(chosen.modulus_bits) * chosen.degree / chosen.leaf_values(n, g)
        return packed, 8 * chosen.cost(length, n, g, g, holders) / length

    packed, whole = bits_a_value(10, 10)
    assert packed <= 25.6
    assert whole <= 28.7
    assert bits_a_value(100, 10)[0] <= 29.5


def test_the_expected_parameters_of_ten_tenants() -> None:
    chosen = choose(n=10, length=1_000_000, ring_bits=24, weight_ring_bits=24, holders=10)
    assert chosen == Parameters(8192, (30, 30, 30, 30, 30, 29))
    assert (chosen.margin_bits(10), chosen.digits(10, 24)) == (10, 7)
    assert chosen.leaf_bytes == 179 * 1024
    assert chosen.share_bytes == 31_744


def test_degree_16384_is_never_needed_and_may_be_stated() -> None:
    small = choose(n=16384, length=1 << 20, ring_bits=50, weight_ring_bits=50, holders=64)
    assert small.degree < 16384
    assert not failing(Parameters(16384, (30,) * 13), 10, 50)


def test_a_digit_has_50_bits_and_a_weight_beside_wide_digits_31() -> None:
    wide = Parameters(8192, (30,) * 6)
    assert failing(wide, 10, 50) == []
    assert any("at most 50" in name for name in failing(wide, 10, 51))
    weight = 31 + 1 + GUARD + 4  # the ring of a sum of ten weights of 31 bits
    assert failing(wide, 10, 45, weight) == []
    assert any("weight's digits" in name for name in failing(wide, 10, 45, weight + 1))
    assert failing(wide, 10, 31, weight + 1) == []  # digits are narrower: the weight has several


# ------------------------------------------------------------------------------- coefficients


@given(
    n=st.integers(3, 1000),
    value_bits=st.integers(4, 32),
    security=securities,
    data=st.data(),
)
def test_the_extreme_sums_of_coefficients_decode_exactly(
    n: int, value_bits: int, security: Security, data: st.DataObject
) -> None:
    g = ring(value_bits, n)
    chosen = choose(
        n=n, length=1 << 20, ring_bits=g, weight_ring_bits=8, holders=n, security=security
    )
    m, k = chosen.margin_bits(n), chosen.digits(n, g)
    extreme = n * (2 ** (value_bits - 1) - 1)
    signs = st.sampled_from((-1, 1))
    sums = [data.draw(signs) * extreme for _ in range(k)]
    noise = data.draw(signs) * TAIL * n
    bias = (1 << m - 1) + sum(1 << g * j + m + g - 1 for j in range(k))
    total = noise + sum(value << g * j + m for j, value in enumerate(sums))
    opened = (total % chosen.modulus + bias) % chosen.modulus
    assert opened >> m + g * k == 0
    assert opened % (1 << m) - (1 << m - 1) == noise
    assert fields(opened >> m, g, k) == sums


@given(n=st.integers(3, 1000), value_bits=st.integers(4, 32), security=securities)
def test_one_bit_less_of_q_or_one_digit_more_has_no_room(
    n: int, value_bits: int, security: Security
) -> None:
    g = ring(value_bits, n)
    chosen = choose(
        n=n, length=1 << 20, ring_bits=g, weight_ring_bits=8, holders=n, security=security
    )
    m, k = chosen.margin_bits(n), chosen.digits(n, g)
    assert 2 ** (m + g * k) <= chosen.modulus < 2 ** (m + g * (k + 1))
    assert TAIL * n < 2 ** (m - 1) <= 2 * TAIL * n, "a margin of one bit less holds no sum"
    total = sum(chosen.modulus_bits) - 1
    count = len(chosen.modulus_bits)
    smaller = replace(
        chosen, modulus_bits=tuple((total + i) // count for i in reversed(range(count)))
    )
    assert failing(smaller, n, g) or smaller.digits(n, g) < k


def test_a_margin_is_for_coefficients_and_a_scale_for_slots() -> None:
    assert Parameters(8192, (30,) * 6).scale_bits(10) == 0
    assert Parameters(8192, (30, 30), "slots").margin_bits(10) == 0


def test_noise_beyond_the_bound_is_what_the_margin_is_for() -> None:
    """At n = 10 the margin's first value that is no sum of ten errors is 512, above 510."""
    chosen = Parameters(2048, (25, 25))
    assert chosen.margin_bits(10) == 10
    assert chosen.margin_bits(11) == 11
    assert chosen.digits(10, 39) == 1
    assert failing(chosen, 10, 39) == []
    assert failing(chosen, 11, 39) != []
    assert failing(chosen, 10, 40) != []


# ------------------------------------------------------------------------------- slots


@given(n=st.integers(3, 16384), degree=st.sampled_from(DEGREES))
def test_errors_and_rounding_move_a_slot_by_seven_sixteenths_at_most(n: int, degree: int) -> None:
    scale = 2 ** Parameters(degree, (), "slots").scale_bits(n)
    twice_moved = degree * n * (2 * (TAIL + DITHER_TAIL) + 1)
    assert 16 * twice_moved <= 14 * scale
    assert 16 * twice_moved > 14 * (scale // 2), "half the scale would not do"


@given(n=st.integers(3, 1000), value_bits=st.integers(4, 24), max_weight=st.integers(1, 1 << 40))
def test_the_sum_of_weights_fits_in_the_digits_of_one_column(
    n: int, value_bits: int, max_weight: int
) -> None:
    g, w = ring(value_bits, n), ring(max_weight.bit_length() + 1, n)
    chosen = choose(n=n, length=1, ring_bits=g, weight_ring_bits=w, holders=n)
    assert n * max_weight < 2 ** (g * chosen.digits(n, g) - 1)
    assert chosen.last_width == chosen.width - 1


def seal_context(degree: int, primes: tuple[int, ...], level: str, expand: bool = False) -> Any:
    sealapi = pytest.importorskip("tenseal.sealapi")
    ring_of = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    ring_of.set_poly_modulus_degree(degree)
    ring_of.set_coeff_modulus([sealapi.Modulus(prime) for prime in primes])
    return sealapi.SEALContext(ring_of, expand, getattr(sealapi.SEC_LEVEL_TYPE, level))


@pytest.mark.parametrize(
    ("degree", "sizes", "bits"), [(4096, (30, 30), 37), (8192, (23, 23, 22), 38)]
)
def test_seals_doubles_move_the_largest_slots_by_less_than_a_sixteenth(
    degree: int, sizes: tuple[int, ...], bits: int
) -> None:
    sealapi = pytest.importorskip("tenseal.sealapi")
    n = 3
    parameters = Parameters(degree, sizes, "slots")
    assert failing(parameters, n, bits) == []
    with_key_level = replace(parameters, modulus_bits=(*sizes, sizes[-1])).primes
    encoder = sealapi.CKKSEncoder(seal_context(degree, with_key_level, "NONE"))
    scale = parameters.scale_bits(n)
    rounding = degree / 2 / 2**scale
    top = 2 ** (bits - 1 - GUARD) - 1
    for seed, slots in enumerate((degree // 2, 1)):
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], slots)
        plain = sealapi.Plaintext()
        encoder.encode(list(top * signs), float(2**scale), plain)
        opened = np.array(encoder.decode_double(plain))[:slots]
        assert np.abs(opened - top * signs).max() <= 1 / 16 + rounding


def test_a_modulus_whose_lowest_word_could_borrow_is_refused() -> None:
    """SEAL subtracts negative coefficients from Q in doubles, word by word."""
    clause = "lowest 64-bit word"
    found = [
        Parameters(8192, sizes, "slots", "classical")
        for low in range(22, 31)
        for sizes in ((30, low, low), (low, low, low))
    ]
    low_words = [parameters.modulus % 2**64 for parameters in found]
    bits, n = 34, 10
    top = bits + found[0].scale_bits(n) - GUARD
    for parameters, word in zip(found, low_words, strict=True):
        borrows = any(clause in name for name in failing(parameters, n, bits))
        assert borrows == (parameters.modulus >= 2**64 and word < 2**top)


# ------------------------------------------------------------------------------- primes, security


@pytest.mark.parametrize("degree", DEGREES)
def test_primes_are_the_largest_of_their_sizes(degree: int) -> None:
    def trial(number: int) -> bool:
        return all(number % factor for factor in range(2, int(number**0.5) + 1))

    for sizes in ((30, 30, 30, 29, 29), (24, 24), (25, 24, 25), (22,)):
        primes = Parameters(degree, sizes).primes
        assert len(set(primes)) == len(primes)
        assert [prime.bit_length() for prime in primes] == list(sizes)
        assert all(prime % (2 * degree) == 1 for prime in primes)
        for size in set(sizes):
            taken = [prime for prime in primes if prime.bit_length() == size]
            span = range(2**size - 2 * degree + 1, min(taken) - 1, -2 * degree)
            assert [number for number in span if trial(number)] == taken


def test_only_primes_pass_for_primes() -> None:
    from secagg.ckks.parameters import _is_prime

    sieve = np.ones(200_000, bool)
    sieve[:2] = False
    for factor in range(2, 450):
        sieve[factor * factor :: factor] = False
    assert [_is_prime(number) for number in range(200_000)] == sieve.tolist()
    # psi_3, below which bases 2, 3, 5 are enough: it takes base 7 (Jaeschke 1993).
    assert 25_326_001 == 2251 * 11251
    assert not _is_prime(25_326_001)


@pytest.mark.parametrize("degree", [1024, *DEGREES])
def test_seal_has_the_same_table(degree: int) -> None:
    sealapi = pytest.importorskip("tenseal.sealapi")
    most = sealapi.CoeffModulus.MaxBitCount(degree, sealapi.SEC_LEVEL_TYPE.TC128)
    assert most == MAX_MODULUS_BITS["classical"][degree]
    assert MAX_MODULUS_BITS["quantum"][degree] < most


@pytest.mark.parametrize("degree", DEGREES)
def test_seal_accepts_our_primes_up_to_the_table_and_none_beyond(degree: int) -> None:
    most = MAX_MODULUS_BITS["classical"][degree]
    count = -(-most // 30)
    for total, fits in ((most, True), (most + 1, False)):
        if total > 30 * count:
            count += 1
        sizes = tuple((total + i) // count for i in reversed(range(count)))
        parameters = Parameters(degree, sizes, security="classical")
        if parameters.modulus.bit_length() != total:
            continue  # primes just below 2^b: their product may be a bit shorter
        context = seal_context(degree, parameters.primes, "TC128")
        assert context.parameters_set() is fits
        assert any("log2 Q" in name for name in failing(parameters, 3, 8)) is not fits


def test_seal_accepts_a_chain_with_a_key_level_prime() -> None:
    """The chain that TenSEAL makes: the last prime is for keys alone and counts in its check."""
    data = Parameters(8192, (30,) * 6, security="classical")
    chain = replace(data, modulus_bits=(30,) * 7)
    assert chain.primes[:6] == data.primes
    context = seal_context(8192, chain.primes, "TC128", expand=True)
    assert context.parameters_set() is True
    assert context.using_keyswitching() is True


# ------------------------------------------------------------------------------- odd values


sizes = st.lists(st.integers(0, 255), max_size=30).map(tuple)


@given(
    degree=st.integers(0, 1 << 32),
    sizes=sizes,
    n=st.integers(-1, 20_000),
    ring_bits=st.integers(0, 70),
    weight_ring_bits=st.integers(0, 70),
    packing=packings,
)
@settings(max_examples=200)
def test_any_value_is_judged_and_none_fails_otherwise(
    degree: int, sizes: tuple[int, ...], n: int, ring_bits: int, weight_ring_bits: int,
    packing: Packing,
) -> None:  # fmt: skip
    for parameters in (
        Parameters(degree, sizes, packing),
        Parameters(8192, sizes, packing),
        Parameters(8192, tuple(18 + size % 13 for size in sizes), packing),
    ):
        clauses = parameters.clauses(n, ring_bits, weight_ring_bits)
        assert all(len(clause) == 3 and clause[0] and clause[2] for clause in clauses)
        if all(holds for _, holds, _ in clauses):
            assert parameters.polynomials(1, n, ring_bits, weight_ring_bits) == 1
            assert gcd(*parameters.primes) == 1 or len(parameters.primes) == 1
            assert log2(prod(parameters.primes)) <= 411


@pytest.mark.parametrize(
    ("parameters", "clause"),
    [
        (Parameters(1000, (30, 20)), "degree is one of"),
        (Parameters(1024, (25,)), "degree is one of"),
        (Parameters(8192, ()), "Q has 1 to 24 primes"),
        (Parameters(8192, (31, 30)), "18 to 30 bits"),
        (Parameters(8192, (17,)), "18 to 30 bits"),
        (Parameters(8192, (19,)), "enough primes"),
        (Parameters(8192, (30,) * 7), "log2 Q is at most 202"),
        (Parameters(8192, (30,) * 8, security="classical"), "log2 Q is at most 218"),
        (Parameters(2048, (25,)), "10 bits of errors and a digit of 24 bits"),
        (Parameters(16384, (30,) * 13), "values of a polynomial"),
        (Parameters(4096, (23, 23), "slots"), "at a scale of"),
        (replace(Parameters(8192, (30,)), packing="planes"), "packing is one of"),  # type: ignore[arg-type]
        (replace(Parameters(8192, (30,)), security="none"), "security is one of"),  # type: ignore[arg-type]
    ],
)
def test_a_plan_that_cannot_work_is_named(parameters: Parameters, clause: str) -> None:
    names = failing(parameters, 10, 24)
    assert any(clause in name for name in names), names


def test_weights_that_do_not_fit_are_refused() -> None:
    assert failing(Parameters(2048, (25, 25)), 10, 10, 30) == []
    wide = failing(Parameters(2048, (25, 25)), 10, 10, 41)
    assert any("hold a sum of weights of 41 bits" in name for name in wide)
    slots = Parameters(4096, (30, 30), "slots")
    assert failing(slots, 10, 24, 24) == []
    assert any("hold a sum of weights" in name for name in failing(slots, 10, 24, 25))


def test_too_few_primes_are_an_error_with_a_cure() -> None:
    with pytest.raises(ConfigError, match="take larger ones"):
        _ = Parameters(8192, (19, 30)).primes
    with pytest.raises(ConfigError, match="choose a larger Q"):
        Parameters(2048, (18,)).polynomials(10, 10, 24, 24)


# ------------------------------------------------------------------------------- bytes, imports


def test_canonical_bytes_are_read_as_written() -> None:
    for parameters in (Parameters(8192, (30, 29)), Parameters(2048, (25,), "slots", "classical")):
        writer = Writer()
        parameters.write(writer)
        reader = Reader(writer.finish(), "parameters")
        assert Parameters.read(reader) == parameters
        reader.end()


@pytest.mark.parametrize("place", [6, 20, 30])
def test_unknown_names_are_malformed(place: int) -> None:
    writer = Writer()
    Parameters(8192, (30, 29)).write(writer)
    data = bytearray(writer.finish())
    data[place] ^= 1
    with pytest.raises(MalformedMessage):
        Parameters.read(Reader(bytes(data), "parameters"))


def test_more_primes_than_possible_are_malformed() -> None:
    writer = Writer()
    Parameters(8192, (30,) * 25).write(writer)
    with pytest.raises(MalformedMessage, match="over the limit of 24"):
        Parameters.read(Reader(writer.finish(), "parameters"))


def test_the_guard_is_that_of_the_plan() -> None:
    assert encoding.MIN_GUARD_BITS == GUARD
    assert 2 * MOST_LEAF_VALUES == encoding.CHUNK_BYTES


def test_reading_parameters_loads_neither_numba_nor_tenseal() -> None:
    code = (
        "import sys, secagg.ckks.parameters;"
        "sys.exit(any(name in sys.modules for name in ('numba', 'tenseal')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
