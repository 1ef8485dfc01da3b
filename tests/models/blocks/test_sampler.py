"""Sampling by all blocks: Euler's steps, nothing peeked at, and what draws come to."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from secagg.errors import ConfigError
from secagg_models import text
from secagg_models.blocks import sampler, training
from secagg_models.blocks.noise import Preconditioning
from secagg_models.blocks.objective import PREFIX
from secagg_models.blocks.sampler import Sampling
from secagg_models.labelled import LabelledBatch
from secagg_models.series.batch import SeriesBatch
from secagg_models.train import Schedule, TrainingConfig
from tests.models.blocks.small import KINDS, awake, batch_of, network_of

SAMPLING = Sampling(steps=6, precision="float32")


def test_steps_are_eulers_where_the_estimate_is_known() -> None:
    # A forecaster's blocks start with F = 0, so D = skip(sigma) z and each step only scales z.
    network, batch = network_of("patches"), batch_of("patches")
    found = sampler.sample(network, batch, SAMPLING, torch.Generator().manual_seed(4)).estimate
    z = torch.randn(found.shape, generator=torch.Generator().manual_seed(4))
    grid = network.noise.grid(6)
    size = grid[0]
    for sigma, lower in itertools.pairwise(grid):
        skip = float(Preconditioning(1.0).skip(torch.tensor(sigma)))
        size *= 1 + (lower - sigma) * (1 - skip) / sigma
    size *= float(Preconditioning(1.0).skip(torch.tensor(grid[-1])))
    torch.testing.assert_close(found, size * z, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [False, True])
def test_answers_in_the_batch_are_not_looked_at(kind: str, prefix: bool) -> None:
    network, batch = awake(network_of(kind)), batch_of(kind)
    match batch:
        case torch.Tensor():
            other = batch.clone()
            other[:, -1] = 7
        case LabelledBatch():
            other = replace(batch, labels=(batch.labels + 1) % 4)
        case SeriesBatch():
            other = replace(batch, values=batch.values.clone())
            other.values[:, 24:] = 99.0
    sampling = replace(SAMPLING, prefix=prefix)
    one, two = (
        sampler.sample(network, part, sampling, torch.Generator().manual_seed(1)).raw
        for part in (batch, other)
    )
    assert torch.equal(one, two)


def test_probabilities_are_the_mean_over_draws_and_repeat() -> None:
    network, batch = awake(network_of("classes")), batch_of("classes")
    both = sampler.probabilities(network, batch, replace(SAMPLING, draws=2), seed=5)
    generator = torch.Generator().manual_seed(5)
    drawn = [sampler.sample(network, batch, SAMPLING, generator).raw.softmax(-1) for _ in range(2)]
    torch.testing.assert_close(both, (drawn[0] + drawn[1]) / 2)
    torch.testing.assert_close(both.sum(-1), torch.ones(3, 1))


def test_forecasts_keep_the_historys_unit_and_their_quantiles_ascend() -> None:
    network = awake(network_of("patches"))
    history = torch.randn(2, 24, generator=torch.Generator().manual_seed(2)).cumsum(1)
    sampling = Sampling(steps=3, draws=7, precision="float32")
    levels = (0.1, 0.5, 0.9)
    found = sampler.sampled_quantiles(network, history, 6, levels, sampling, seed=1)
    assert found.shape == (2, 6, 3)
    assert bool((found.diff(dim=-1) >= 0).all())
    moved = sampler.sampled_quantiles(network, 10 * history + 3, 6, levels, sampling, seed=1)
    torch.testing.assert_close(moved, 10 * found + 3, rtol=1e-3, atol=1e-2)


def test_blocks_trained_in_turn_answer_together() -> None:
    stream = text.byte_stream("x", [text.SourceFile("x.py", b"abc(abc)\n" * 50)])
    network = network_of("tokens", layers=3)
    config = TrainingConfig(
        steps=40, batch=4, context=12, lr=1e-2, schedule=Schedule(40), seed=0, precision="float32"
    )
    training.train_in_turn(network, PREFIX, [stream], config)
    held = stream.held_out_windows(8, 12)
    guessed = sampler.probabilities(network, held, replace(SAMPLING, prefix=True), seed=1)
    right = (guessed.argmax(-1) == held[:, 1:]).float()[:, 4:].mean()
    assert float(right) > 0.9


def test_a_forecaster_has_no_probabilities_of_answers() -> None:
    with pytest.raises(ConfigError, match="quantiles"):
        sampler.probabilities(network_of("patches"), batch_of("patches"), SAMPLING, seed=0)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 1, "draws": 0}])
def test_sampling_needs_a_step_and_a_draw(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Sampling(**wrong)
