"""What lies outside the layers may be trained and plugged in with the edges, for both kinds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from secagg.errors import ConfigError
from secagg_models import edges, updates
from secagg_models.base import model_digest
from secagg_models.edges import EdgesShape
from secagg_models.lora import LoraShape
from secagg_models.plug_in import full_tensors, plug_in, unplug
from tests.models.emulators import TARGETS, Pair, moved, pair


def shapes(made: Pair) -> dict[str, updates.UpdateShape]:
    layers, outside = made.split.edge_layers, edges.outside_names(made.emulator)
    return {
        "edges": EdgesShape(layers, embeddings=True),
        "lora": LoraShape(3, 2.0, TARGETS[made.family], layers, outside),
    }


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_outside_is_all_that_no_layer_has(family: str) -> None:
    made = pair(family)
    outside = edges.outside_names(made.emulator)
    assert any("emb" in name or "wte" in name for name in outside)
    assert not any(name.startswith(edges.layer_prefix(made.emulator)) for name in outside)
    every = EdgesShape(tuple(range(made.split.emulator_layers)), embeddings=True)
    assert edges.tensor_names(made.emulator, every) == sorted(
        name for name, _ in made.emulator.named_parameters()
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("kind", ["edges", "lora"])
def test_embeddings_are_plugged_in_by_name_and_taken_out_bit_for_bit(
    family: str, kind: str
) -> None:
    made = pair(family)
    update = moved(updates.start(made.emulator, shapes(made)[kind], seed=1), seed=2)
    outside = edges.outside_names(made.full)
    assert set(outside) <= set(full_tensors(made.full, update, made.split))
    before = model_digest(made.full.state_dict())
    plugged = plug_in(made.full, update, made.split)
    parameters = dict(made.full.named_parameters())
    assert all(torch.equal(parameters[name], update.trained[name]) for name in outside)
    unplug(made.full, plugged)
    assert model_digest(made.full.state_dict()) == before


def test_a_tensor_of_a_layer_is_no_extra_of_lora() -> None:
    made = pair("llama")
    update = updates.start(made.emulator, shapes(made)["lora"], seed=1)
    name = f"{edges.layer_prefix(made.emulator)}1.mlp.up_proj.weight"
    shape = replace(update.shape, extra=tuple(sorted((*update.shape.extra, name))))
    strange = replace(
        update,
        shape=shape,
        extra={**update.extra, name: made.emulator.get_parameter(name).detach()},
    )
    with pytest.raises(ConfigError, match="unexpected"):
        full_tensors(made.full, strange, made.split)


def test_whether_embeddings_are_trained_is_true_or_false() -> None:
    with pytest.raises(ConfigError, match="true or false"):
        EdgesShape((0,), embeddings=1)  # type: ignore[arg-type]
