"""A block goes back into the full model by names, and comes out again bit for bit."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from secagg.errors import ConfigError
from secagg_models import updates
from secagg_models.base import model_digest
from secagg_models.block_cut import BlockCut, Held
from secagg_models.block_package import build_block
from secagg_models.block_weights import BlockShape, BlockWeights
from secagg_models.classifier import EncoderClassifier
from secagg_models.families import layer_prefix
from secagg_models.plug_in import plug_in, plugged_in, unplug
from secagg_models.split import Split
from tests.models import families
from tests.models.emulators import moved, pair

LAYERS = 5
CUT = BlockCut(LAYERS, 2, 1, "block")


def full_model(family: str) -> Any:
    model = families.build(family, LAYERS)
    if family == "bert":
        model = EncoderClassifier(model, ("a", "b")).eval()
    return model.requires_grad_(False)


def block_update(model: Any, held: Held = "block") -> BlockWeights:
    shape = BlockShape(LAYERS, CUT.blocks, CUT.block, held)
    start = updates.start(build_block(model, CUT) if held == "block" else model, shape, 3)
    learnt = moved(start, 5)
    assert isinstance(learnt, BlockWeights)
    return learnt


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "opt", "bert"])
@pytest.mark.parametrize("held", ["block", "all"])
def test_a_block_replaces_its_layers_alone_and_comes_out_bit_for_bit(
    family: str, held: Held
) -> None:
    model = full_model(family)
    update, own = block_update(model, held), {n: t.clone() for n, t in model.state_dict().items()}
    before, prefix = model_digest(model.state_dict()), layer_prefix(model)
    plugged = plug_in(model, update, update.shape.cut)
    offset = 3 if held == "block" else 0
    for name, tensor in update.of_layers.items():
        number, _, rest = name.removeprefix(prefix).partition(".")
        at = f"{prefix}{int(number) + offset}.{rest}"
        assert torch.equal(model.get_parameter(at), tensor), at
    within = tuple(f"{prefix}{layer}." for layer in CUT.full_block)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, own[name]) != name.startswith(within), name
    unplug(model, plugged)
    assert model_digest(model.state_dict()) == before


def test_a_block_that_learnt_nothing_changes_nothing() -> None:
    model = full_model("llama")
    before = model_digest(model.state_dict())
    start = updates.start(build_block(model, CUT), BlockShape(LAYERS, 2, 1, "block"), 3)
    with plugged_in(model, start, CUT):
        assert model_digest(model.state_dict()) == before


def test_another_cut_and_another_kind_of_update_are_refused() -> None:
    model, before = full_model("llama"), model_digest(full_model("llama").state_dict())
    update = block_update(model)
    with pytest.raises(ConfigError, match="is wanted"):
        plug_in(model, update, replace(CUT, block=0))
    with pytest.raises(ConfigError, match="different kinds"):
        plug_in(model, update, Split.uniform(LAYERS, 1, 2))
    with pytest.raises(ConfigError, match="different kinds"):
        plug_in(model, pair("llama").start("edges"), CUT)
    with pytest.raises(ConfigError, match="the model has 4 layers"):
        plug_in(families.build("llama", 4), update, CUT)
    less = {n: t for n, t in update.tensors.items() if "up_proj" not in n}
    with pytest.raises(ConfigError, match=r"missing .*up_proj"):
        plug_in(model, replace(update, tensors=less), CUT)
    wide = {n: t.double() for n, t in update.tensors.items()}
    with pytest.raises(ConfigError, match=r"float64 in the update"):
        plug_in(model, replace(update, tensors=wide), CUT)
    assert model_digest(model.state_dict()) == before
