"""Losses of one shape, gradients in one block alone, training that changes nothing else."""

from __future__ import annotations

import copy

import pytest
import torch

from secagg.errors import ConfigError, UsageError
from secagg_models import lora, text
from secagg_models.blocks import network as networks
from secagg_models.blocks import tasks, training
from secagg_models.blocks.network import block_parameters, freeze_all_but
from secagg_models.blocks.noise import Preconditioning
from secagg_models.blocks.objective import (
    MIXED,
    PREFIX,
    PURE,
    BlockObjective,
    block_loss,
    noise_generator,
)
from secagg_models.blocks.tasks import Guess
from secagg_models.train import Schedule, TrainingConfig
from tests.models.blocks.small import KINDS, awake, batch_of, network_of

OBJECTIVES = {"pure": PURE, "prefix": PREFIX, "mixed": MIXED}
CONFIG = TrainingConfig(
    steps=16, batch=4, context=8, lr=1e-2, schedule=Schedule(16), seed=0, precision="float32"
)


@pytest.fixture
def stream() -> text.TokenStream:
    return text.byte_stream("x", [text.SourceFile("x.py", b"abc(abc)\n" * 50)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_reach_the_active_block_and_its_conditioning_and_nothing_else(
    kind: str, name: str
) -> None:
    network = awake(network_of(kind))
    for module in (network.model, network.conditioning):
        module.requires_grad_(True)  # nothing but the objective itself stops a gradient here
    batch = batch_of(kind)
    loss = block_loss(network, 1, OBJECTIVES[name], batch, noise_generator(0, 0, 1), "float32")
    loss.denoising.backward()
    own = block_parameters(network, 1)
    touched = {
        n
        for module in (network.model, network.conditioning)
        for n, p in module.named_parameters()
        if p.grad is not None and float(p.grad.abs().sum()) > 0
    }
    outside = {n for n in touched - set(own) if ".layers." in n or ".layer." in n or n[0] == "b"}
    assert not outside, "other layers, or other blocks' conditioning"
    assert {n for n in own if n in touched} >= {n for n in own if n.startswith("blocks.1.")}


@pytest.mark.parametrize("kind", KINDS)
def test_the_mixed_losss_gradient_is_in_the_active_block_alone(kind: str) -> None:
    network, batch = awake(network_of(kind)), batch_of(kind)
    own = block_parameters(network, 1)
    freeze_all_but(network, own)
    block_loss(network, 1, MIXED, batch, noise_generator(0, 0, 1), "float32").total.backward()
    for module in (network.model, network.conditioning):
        for name, parameter in module.named_parameters():
            assert (parameter.grad is not None) == (name in own), name


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (1, 6)])
def test_weights_multiply_windows_and_not_pairs_of_windows(shape: tuple[int, int]) -> None:
    count, positions = shape
    task, batch = tasks.NextPatch(), batch_of("patches", count)
    drawn = torch.Generator().manual_seed(1)
    target = torch.randn(count, positions, 4, generator=drawn)
    estimate = torch.randn(count, positions, 4, generator=drawn)
    sigma = torch.rand(count, generator=drawn) + 0.1
    found = tasks.guess_losses(task, Guess(estimate, estimate), target, batch, sigma)
    weight = Preconditioning(1.0).weight(sigma)
    for n in range(count):
        for p in range(positions):
            expected = weight[n] * (estimate[n, p] - target[n, p]).square().mean()
            assert float(found[n, p]) == pytest.approx(float(expected), rel=1e-5)
    assert found.shape == shape


def test_missing_values_of_a_patch_count_nothing() -> None:
    target = torch.tensor([[[1.0, float("nan")], [float("nan"), float("nan")]]])
    estimate = torch.tensor([[[3.0, 9.0], [9.0, 9.0]]])
    batch, sigma = batch_of("patches", 1), torch.tensor([1.0])
    losses = tasks.guess_losses(tasks.NextPatch(), Guess(estimate, estimate), target, batch, sigma)
    assert losses.tolist() == [[8.0, 0.0]]  # weight 2 at sigma = sigma_data = 1


def test_only_scored_patches_count() -> None:
    network, batch = network_of("patches"), batch_of("patches")
    target = tasks.target_of(network.task, network.model, batch)
    assert tasks.counted(target, batch)[1].tolist() == [0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_loss_is_a_finite_scalar_and_a_function_of_its_arguments(kind: str, name: str) -> None:
    network, batch = awake(network_of(kind)), batch_of(kind)
    drawn = [
        block_loss(network, 2, OBJECTIVES[name], batch, noise_generator(7, step, 2), "float32")
        for step in (3, 3, 4)
    ]
    assert drawn[0].total.shape == ()
    assert torch.isfinite(drawn[0].total)
    assert torch.equal(drawn[0].total, drawn[1].total)
    assert not torch.equal(drawn[0].total, drawn[2].total)


def test_the_mixed_loss_is_the_sum_of_its_parts() -> None:
    network, batch = awake(network_of("tokens")), batch_of("tokens")
    objective = BlockObjective(prefix=True, ordinary_weight=2.5)
    loss = block_loss(network, 1, objective, batch, noise_generator(0, 0, 1), "float32")
    ordinary = tasks.ordinary_losses(network.model, batch, "float32").mean()
    torch.testing.assert_close(loss.total, loss.denoising + 2.5 * ordinary)


@pytest.mark.parametrize("wrong", [{"ordinary_weight": -1.0}, {"widen": float("inf")}])
def test_weights_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        BlockObjective(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_a_block_lowers_its_loss_and_changes_nothing_else(
    name: str, stream: text.TokenStream
) -> None:
    network = network_of("tokens", layers=3)
    before = copy.deepcopy(network)
    losses = training.train_block(network, 0, OBJECTIVES[name], [stream], CONFIG)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    own = block_parameters(network, 0)
    old = dict([*before.model.named_parameters(), *before.conditioning.named_parameters()])
    for module in (network.model, network.conditioning):
        for parameter_name, parameter in module.named_parameters():
            changed = not torch.equal(parameter, old[parameter_name])
            assert changed == (parameter_name in own), parameter_name


def test_training_repeats_bit_for_bit(stream: text.TokenStream) -> None:
    runs = [
        training.train_block(network_of("tokens", layers=3), 1, PURE, [stream], CONFIG)
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_lora_inside_the_active_block_trains_b_and_conditioning_alone(
    stream: text.TokenStream,
) -> None:
    network = network_of("tokens")
    shape = lora.LoraShape(2, 2.0, ("q_proj", "down_proj"), layers=(2, 3))
    adapter = lora.draw_adapter(network.model, shape, seed=3)
    attached = networks.BlockNetwork(
        lora.attach(network.model, adapter),
        network.conditioning,
        network.layers,
        network.task,
        network.noise,
    )
    chosen = training.lora_parameters(attached, 1)
    assert len([n for n in chosen if ".lora_B." in n]) == 4
    before = {n: p.detach().clone() for n, p in attached.model.named_parameters()}
    training.train_block(attached, 1, PURE, [stream], CONFIG, trained=chosen)
    moved = {n for n, p in attached.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in chosen if ".lora_B." in n}


def test_a_parameter_of_another_model_is_refused() -> None:
    with pytest.raises(UsageError, match="neither"):
        freeze_all_but(network_of("tokens"), {"x": torch.nn.Parameter(torch.zeros(1))})
