"""Residues on the wire, and signed digits to residues and back, against Python's big integers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from math import prod

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from secagg import packing
from secagg.ckks.ntt import Residues
from secagg.ckks.parameters import Parameters
from secagg.ckks.residues import Digits, Wire, digits, wire
from secagg.errors import ConfigError, MalformedMessage, Step

DEGREE = 2048
INT32 = (-(2**31), 2**31 - 1)


def wire_of(sizes: tuple[int, ...], degree: int = DEGREE) -> Wire:
    return wire(degree, Parameters(DEGREE, sizes).primes, sizes)


def random_residues(of: Wire, seed: int) -> Residues:
    """Uniform residues, with zeros and the largest ones among them."""
    source = np.random.default_rng(seed)
    planes = [source.integers(0, prime, of.degree) for prime in of.primes]
    residues = np.stack(planes).astype(np.uint32)
    residues[:, :1] = 0
    residues[:, -2:] = np.array(of.primes, np.uint32)[:, None] - 1
    return residues


@pytest.mark.parametrize("bits", range(18, 31))
@pytest.mark.parametrize("degree", [8, 16, 24, 2048, 8192])
def test_planes_are_packed_one_after_another_as_the_packing_module_packs(
    bits: int, degree: int
) -> None:
    sizes = (bits, 30, bits) if bits < 30 else (30, 18)
    here = wire_of(sizes, degree)
    residues = random_residues(here, bits)
    leaf = here.pack(residues)
    planes = zip(residues, sizes, strict=True)
    assert leaf == b"".join(packing.pack(plane, size) for plane, size in planes)
    assert len(leaf) == here.size
    read = np.empty_like(residues)
    here.unpack_into(read, memoryview(b"x" + leaf)[1:])
    assert np.array_equal(read, residues)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_uploads_add_up_modulo_every_prime_and_can_be_taken_out_again(seed: int) -> None:
    here = wire_of((30, 30, 29, 22), 64)
    moduli = np.array(here.primes, np.uint64)[:, None]
    uploads = [random_residues(here, seed + k) for k in range(5)]
    total = np.zeros_like(uploads[0])
    for one in uploads:
        here.add(total, here.pack(one))
    assert np.array_equal(total, np.sum(uploads, axis=0, dtype=np.uint64) % moduli)
    for one in uploads[1:]:
        here.subtract(total, memoryview(here.pack(one)))
    assert np.array_equal(total, uploads[0])


@pytest.mark.parametrize("excess", [0, 1])
@pytest.mark.parametrize(("plane", "place"), [(0, 0), (0, 9), (1, 2047), (2, 7), (2, 2047)])
def test_a_residue_that_is_not_below_its_prime_is_named_and_changes_nothing(
    plane: int, place: int, excess: int
) -> None:
    here = wire_of((30, 29, 24))
    bad = random_residues(here, 1)
    bad[plane, place] = here.primes[plane] + excess
    bad[2, 2047] = here.primes[2]  # the first one is named
    leaf, total = here.pack(bad), random_residues(here, 2)
    for change in (here.add, here.subtract):
        kept = total.copy()
        with pytest.raises(MalformedMessage, match=f"residue {place} of plane {plane}") as caught:
            change(kept, leaf)
        assert caught.value.step is Step.MASKED_INPUT
        assert np.array_equal(kept, total)


@pytest.mark.parametrize("change", [-1, 1, 8])
def test_a_leaf_of_another_length_is_refused(change: int) -> None:
    here = wire_of((30, 29))
    leaf, total = bytes(here.size + change), random_residues(here, 3)
    kept = total.copy()
    with pytest.raises(MalformedMessage, match="bytes"):
        here.add(kept, leaf)
    assert np.array_equal(kept, total)


def test_a_refused_leaf_leaves_nothing_behind_for_the_next_one() -> None:
    here = wire_of((30, 29))
    good = random_residues(here, 4)
    with pytest.raises(MalformedMessage):
        here.add(good.copy(), b"\xff" * here.size)
    total = np.zeros_like(good)
    here.add(total, here.pack(good))
    assert np.array_equal(total, good)


def test_threads_may_share_a_wire() -> None:
    here = wire_of((30, 29))
    parts = [random_residues(here, seed) for seed in range(16)]
    totals = np.zeros((16, 2, DEGREE), np.uint32)

    def twice(total: Residues, part: Residues) -> None:
        here.add(total, here.pack(part))
        here.add(total, here.pack(part))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(twice, totals, parts))
    moduli = np.array(here.primes, np.uint32)[:, None]
    assert np.array_equal(totals, np.array(parts) * 2 % moduli)


@pytest.mark.parametrize(("degree", "sizes"), [(12, (30,)), (8, (31,)), (8, (7,)), (0, (30,))])
def test_a_wire_that_cannot_be_packed_is_refused(degree: int, sizes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError):
        wire(degree, tuple(2**size - 1 for size in sizes), sizes)


def of_digits(width: int, count: int, margin: int) -> Digits:
    """With no more primes than are needed."""
    sizes = (30,) * ((margin + width * count) // 29 + 1)
    return digits(Parameters(DEGREE, sizes).primes, width, count, margin)


def written_out(here: Digits, values: list[list[int]], noise: list[int]) -> list[int]:
    """The integer of every coefficient."""
    return [
        e + sum(v[c] << (here.margin_bits + here.digit_bits * k) for k, v in enumerate(values))
        for c, e in enumerate(noise)
    ]


def residues_of(here: Digits, integers: list[int]) -> Residues:
    return np.array([[value % q for value in integers] for q in here.primes], np.uint32)


def edges(lowest: int, highest: int) -> st.SearchStrategy[int]:
    """Integers of a range, its ends and zero more often than others."""
    return st.sampled_from((lowest, lowest + 1, -1, 0, 1, highest)) | st.integers(lowest, highest)


@given(data=st.data(), count=st.integers(1, 16), bits=st.sampled_from((8, 24, 27, 28, 31, 32)))
@settings(max_examples=150, deadline=None)
def test_encoding_is_the_integer_modulo_every_prime_for_any_levels(
    data: st.DataObject, count: int, bits: int
) -> None:
    here = of_digits(data.draw(st.integers(10, 24)), count, 17)
    levels = edges(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    values = [data.draw(st.lists(levels, min_size=8, max_size=8)) for _ in range(count)]
    noise = data.draw(st.lists(edges(-51, 51), min_size=8, max_size=8))
    wanted = residues_of(here, written_out(here, values, noise))
    moduli = np.array(here.primes, np.uint32)[:, None]
    for dtype in (np.int8, np.int32):
        out = np.empty((len(here.primes), 8), np.uint32)
        here.encode(np.array(values, np.int32), np.array(noise, dtype), out)
        assert (out < 2 * moduli).all()
        assert np.array_equal(out % moduli, wanted)


@pytest.mark.parametrize("level", [*INT32, -(2**31) // 16, 2**31 // 16, 2**31 // 16 - 1])
@pytest.mark.parametrize("error", [*INT32, 0])
def test_encoding_is_right_where_the_quick_way_ends(level: int, error: int) -> None:
    here = of_digits(12, 16, 20)
    out = np.empty((len(here.primes), 8), np.uint32)
    here.encode(np.full((16, 8), level, np.int32), np.full(8, error, np.int32), out)
    wanted = residues_of(here, written_out(here, [[level] * 8] * 16, [error] * 8))
    assert np.array_equal(out % np.array(here.primes, np.uint32)[:, None], wanted)


@given(data=st.data(), width=st.integers(10, 50), margin=st.integers(7, 32))
@example(data=None, width=10, margin=7)
@settings(max_examples=200, deadline=None)
def test_decoding_gives_every_digit_and_the_noise_back(
    data: st.DataObject | None, width: int, margin: int
) -> None:
    largest, most = (1 << (width - 1)) - 1, (1 << (margin - 1)) - 1
    ends = [-largest - 1, largest, 0, -1, 1, largest, -largest, -largest - 1]
    count = 16 if data is None else data.draw(st.integers(1, min(16, (680 - margin) // width)))
    here = of_digits(width, count, margin)
    levels, errors = edges(-largest - 1, largest), edges(-most, most)
    values = [
        ends if data is None else data.draw(st.lists(levels, min_size=8, max_size=8))
        for _ in range(count)
    ]
    noise = (
        [-most, most, 0, -most - 1, 1, -1, most, -most]
        if data is None
        else data.draw(st.lists(errors, min_size=8, max_size=8))
    )
    decoded = here.decode(residues_of(here, written_out(here, values, noise)))
    assert decoded.values.tolist() == values
    assert decoded.noise.tolist() == noise
    assert decoded.overflows == 0


@given(seed=st.integers(0, 2**32), sizes=st.permutations([30, 30, 29, 25, 20, 18]))
@settings(max_examples=40, deadline=None)
def test_decoding_is_right_for_any_integer_and_any_order_of_primes(
    seed: int, sizes: list[int]
) -> None:
    primes = Parameters(DEGREE, tuple(sizes)).primes
    here = digits(primes, 23, 5, 16)
    source = np.random.default_rng(seed)
    integers = [int.from_bytes(source.bytes(24)) % prod(primes) for _ in range(24)]
    integers[:4] = [0, prod(primes) - 1, 1 << (16 + 23 * 5 - 1), prod(primes) // 2]
    decoded = here.decode(residues_of(here, integers))
    bias = (1 << 15) + sum(1 << (16 + 23 * k + 22) for k in range(5))
    biased = [(value + bias) % prod(primes) for value in integers]
    assert decoded.noise.tolist() == [value % (1 << 16) - (1 << 15) for value in biased]
    for k in range(5):
        wanted = [(value >> (16 + 23 * k)) % (1 << 23) - (1 << 22) for value in biased]
        assert decoded.values[k].tolist() == wanted
    assert decoded.overflows == sum(value >> (16 + 23 * 5) != 0 for value in biased)


@pytest.mark.parametrize("degree", [8, 512, 1024, 8192])
def test_whole_polynomials_come_back(degree: int) -> None:
    here = of_digits(23, 7, 16)
    source = np.random.default_rng(degree)
    values = source.integers(-(2**22), 2**22, (7, degree)).astype(np.int32)
    noise = source.integers(-51, 52, degree).astype(np.int8)
    out = np.empty((len(here.primes), degree), np.uint32)
    here.encode(values, noise, out)
    decoded = here.decode(out % np.array(here.primes, np.uint32)[:, None])
    assert np.array_equal(decoded.values, values)
    assert np.array_equal(decoded.noise, noise)
    assert decoded.overflows == 0


@pytest.mark.parametrize(("width", "count", "margin"), [(23, 8, 16), (51, 1, 16), (20, 0, 16)])
def test_digits_that_have_no_room_are_refused(width: int, count: int, margin: int) -> None:
    with pytest.raises(ConfigError):
        digits(Parameters(DEGREE, (30,) * 6).primes, width, count, margin)
