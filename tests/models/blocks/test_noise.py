"""Levels, their one map to blocks, EDM's factors, and which layers a block has."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.errors import ConfigError
from secagg_models.blocks.noise import NoiseLevels, Preconditioning
from secagg_models.blocks.partition import partition

LEVELS = NoiseLevels()
counts = st.integers(1, 12)


def mass(sigma: float) -> float:
    return NormalDist(LEVELS.mean, LEVELS.std).cdf(math.log(sigma))


@given(counts)
def test_boundaries_descend_from_high_to_low_and_cut_the_mass_evenly(blocks: int) -> None:
    found = LEVELS.boundaries(blocks)
    assert found[0] == LEVELS.high
    assert found[-1] == LEVELS.low
    assert list(found) == sorted(found, reverse=True)
    parts = [mass(top) - mass(bottom) for top, bottom in itertools.pairwise(found)]
    assert parts == pytest.approx([parts[0]] * blocks, rel=1e-6)


def test_the_highest_noise_belongs_to_the_first_block_and_the_lowest_to_the_last() -> None:
    assert LEVELS.block_of(LEVELS.high, 4) == 0
    assert LEVELS.block_of(LEVELS.low, 4) == 3


@given(counts, st.integers(1, 5))
def test_a_grid_gives_every_block_the_same_number_of_steps_in_order(blocks: int, each: int) -> None:
    steps = [LEVELS.block_of(sigma, blocks) for sigma in LEVELS.grid(blocks * each)]
    assert steps == [step // each for step in range(blocks * each)]


@given(st.integers(1, 6).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))))
@settings(max_examples=20)
def test_levels_drawn_without_widening_are_of_their_block(place: tuple[int, int]) -> None:
    block, blocks = place
    drawn = LEVELS.draw(block, blocks, 0.0, 200, torch.Generator().manual_seed(1))
    top, bottom = LEVELS.boundaries(blocks)[block : block + 2]
    assert float(drawn.max()) <= top * (1 + 1e-6)
    assert float(drawn.min()) >= bottom * (1 - 1e-6)


def test_levels_drawn_follow_the_log_normal_within_the_span() -> None:
    drawn = LEVELS.draw(1, 3, 0.1, 20_000, torch.Generator().manual_seed(2)).double()
    low, high = LEVELS.span(1, 3, 0.1)
    share = torch.tensor([(mass(float(s)) - mass(low)) / (mass(high) - mass(low)) for s in drawn])
    assert float((share.sort().values - torch.linspace(0, 1, len(share))).abs().max()) < 0.015


def test_a_span_is_widened_alike_on_both_sides_in_log_space_and_stays_in_range() -> None:
    top, bottom = LEVELS.boundaries(3)[1:3]
    low, high = LEVELS.span(1, 3, 0.1)
    assert math.log(high / top) == pytest.approx(0.1 * math.log(top / bottom))
    assert math.log(bottom / low) == pytest.approx(0.1 * math.log(top / bottom))
    assert LEVELS.span(0, 3, 0.5)[1] == LEVELS.high
    assert LEVELS.span(2, 3, 0.5)[0] == LEVELS.low


def test_scaled_levels_have_scaled_boundaries() -> None:
    expected = [3.0 * boundary for boundary in LEVELS.boundaries(4)]
    assert list(LEVELS.scaled(3.0).boundaries(4)) == pytest.approx(expected)


def test_levels_outside_the_range_belong_to_no_block() -> None:
    for sigma in (0.0, 0.001, 81.0, float("nan")):
        with pytest.raises(ConfigError):
            LEVELS.block_of(sigma, 3)


@pytest.mark.parametrize("wrong", [{"low": 0.0}, {"std": 0.0}, {"high": 0.001}, {"mean": 1e9}])
def test_levels_that_leave_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        NoiseLevels(**wrong)


@given(st.floats(0.002, 80), st.floats(0.1, 2))
def test_the_factors_are_edms(sigma: float, size: float) -> None:
    factors, at = Preconditioning(size), torch.tensor([sigma], dtype=torch.float64)
    assert float(factors.weight(at) * factors.out(at).square()) == pytest.approx(1)
    # What enters has unit size, and the target that the network sees has unit size too.
    assert float(factors.in_(at)) * math.hypot(size, sigma) == pytest.approx(1)
    skip, out = float(factors.skip(at)), float(factors.out(at))
    residual = math.hypot((1 - skip) * size, skip * sigma) / out
    assert residual == pytest.approx(1)
    assert float(factors.noise(at)) == pytest.approx(math.log(sigma) / 4)


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_blocks_are_contiguous_complete_and_even(sizes: tuple[int, int]) -> None:
    layers, blocks = sizes
    found = partition(layers, blocks)
    assert [layer for block in found for layer in block] == list(range(layers))
    lengths = [len(block) for block in found]
    assert len(lengths) == blocks
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("blocks", [0, 7])
def test_more_blocks_than_layers_are_refused(blocks: int) -> None:
    with pytest.raises(ConfigError, match="possible"):
        partition(6, blocks)
