"""Whole edge layers as the update."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from secagg.errors import ConfigError, UsageError
from secagg_models import arms, edges, text, train, updates
from secagg_models.edges import EdgesShape, EdgeWeights
from secagg_models.families import layer_prefix
from secagg_models.flatten import flatten, unflatten
from tests.models.emulators import TARGETS, moved, noise, pair
from tests.models.tiny import TINY


@pytest.mark.parametrize("family", TARGETS)
def test_the_start_is_every_tensor_of_the_edge_layers_as_the_emulator_has_it(family: str) -> None:
    made = pair(family)
    start = edges.start_from(made.emulator, EdgesShape((0, 3)))
    prefix = layer_prefix(made.emulator)
    own = dict(made.emulator.named_parameters())
    wanted = {n for n in own if n.startswith((f"{prefix}0.", f"{prefix}3."))}
    wanted |= {n for n in own if n.startswith("head.")}
    assert set(start.tensors) == wanted
    for name, tensor in start.tensors.items():
        assert torch.equal(tensor, own[name])
        assert tensor.data_ptr() != own[name].data_ptr()


def _trained(model: Any, start: EdgeWeights, stream: text.TokenStream) -> dict[str, torch.Tensor]:
    train.train_update(model, start, [stream], TINY.stretch(0.01, 0, 3))
    return updates.delta_of(updates.state(model, start), start)


def test_training_moves_the_edge_layers_alone(streams: list[text.TokenStream]) -> None:
    made = pair("llama")
    start = edges.start_from(made.emulator, EdgesShape(made.split.edge_layers))
    before = {n: p.detach().clone() for n, p in made.emulator.named_parameters()}
    delta = _trained(updates.attach(made.emulator, start), start, streams[0])
    changed = {n for n, p in made.emulator.named_parameters() if not torch.equal(p, before[n])}
    assert changed == set(start.tensors) == set(delta)
    assert all(part.abs().max() > 0 for part in delta.values())


def test_what_is_trained_lowers_the_loss(streams: list[text.TokenStream]) -> None:
    made = pair("llama")
    start = edges.start_from(made.emulator, EdgesShape(made.split.edge_layers))
    losses = train.train_update(made.emulator, start, [streams[0]], TINY.stretch(0.02, 0, 6))
    assert losses[-1] < losses[0] - 0.05


def test_a_parameter_outside_the_edge_layers_in_training_is_caught() -> None:
    made = pair("llama")
    start = edges.start_from(made.emulator, EdgesShape((0,)))
    model = updates.attach(made.emulator, start)
    updates.check_frozen(model, start, torch.optim.AdamW(edges.trained_parameters(model, start)))
    with pytest.raises(UsageError, match="embed_tokens"):
        updates.check_frozen(model, start, torch.optim.AdamW(model.parameters()))
    model.requires_grad_(True)
    with pytest.raises(UsageError, match="embed_tokens"):
        updates.check_frozen(model, start, torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))]))


def test_the_sum_of_flat_deltas_is_the_mean_of_the_trained_weights(
    streams: list[text.TokenStream],
) -> None:
    made, weights = pair("llama"), (3.0, 1.0, 2.0)
    start = edges.start_from(made.emulator, EdgesShape(made.split.edge_layers))
    deltas = [_trained(made.emulator, start, stream) for stream in streams]
    layout = updates.delta_layout(start)
    total = np.zeros(layout.size)
    for weight, delta in zip(weights, deltas, strict=True):
        total += weight * flatten(delta, layout).astype(np.float64)
    after = updates.next_round(start, unflatten(total / 6, layout))
    for name, tensor in start.tensors.items():
        dense = (
            tensor.double()
            + sum(w * d[name].double() for w, d in zip(weights, deltas, strict=True)) / 6
        )
        assert float((after.trained[name].double() - dense).abs().max()) < 1e-6
    plain = updates.add_delta(start, arms.plain_mean(deltas, weights))
    for name, tensor in after.trained.items():
        torch.testing.assert_close(plain.trained[name], tensor, atol=1e-6, rtol=0)


def test_the_server_rate_scales_the_mean_and_not_the_start() -> None:
    start = pair("llama").start("edges")
    mean = noise(start, 1)
    after = updates.next_round(start, mean, 1.5)
    for name, tensor in start.trained.items():
        torch.testing.assert_close(after.trained[name], tensor + 1.5 * mean[name])


def _lost(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {n: t for n, t in tensors.items() if n != name}


NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: _lost(t, NAME), rf"{NAME} is missing in the update"),
        (lambda t: t | {"model.norm.weight": torch.ones(16)}, "model.norm.weight .* not in these"),
        (lambda t: t | {NAME: t[NAME].T.contiguous()}, rf"{NAME} is \(16, 24\) float32"),
        (lambda t: t | {NAME: t[NAME].bfloat16()}, rf"{NAME} is \(24, 16\) bfloat16"),
    ],
)
def test_tensors_that_are_not_the_models_edge_layers_are_refused_by_name(
    change: Any, says: str
) -> None:
    made = pair("llama")
    start = edges.start_from(made.emulator, EdgesShape((0, 3)))
    foreign = dataclasses.replace(start, tensors=change(dict(start.tensors)))
    before = {n: p.detach().clone() for n, p in made.emulator.named_parameters()}
    with pytest.raises(ConfigError, match=says):
        updates.attach(made.emulator, foreign)
    assert all(torch.equal(p, before[n]) for n, p in made.emulator.named_parameters())


@pytest.mark.parametrize("layers", [(), (1, 0), (0, 0), (-1,)])
def test_layers_that_are_no_list_of_layers_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="edge layers"):
        EdgesShape(layers)


def test_a_layer_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="layers 0 to 3"):
        edges.start_from(pair("gpt2").emulator, EdgesShape((0, 4)))


def test_a_language_models_head_and_embeddings_stay_out() -> None:
    start = moved(pair("llama").start("edges"), 1)
    assert not [n for n in start.trained if "embed" in n or "head" in n or "model.norm" in n]
