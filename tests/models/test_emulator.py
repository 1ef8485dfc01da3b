"""An emulator is the full model less some middle layers: bit for bit, and sharing nothing."""

from typing import Any

import pytest
import torch

from secagg.errors import ConfigError
from secagg_models import families, text
from secagg_models.base import model_digest
from secagg_models.emulator import build_emulator, changed_outside_middle, importances
from secagg_models.split import Split, full_name
from tests.models.families import CAUSAL, ENCODERS, Classifier, build

SPLIT = Split.uniform(6, 1, 2)
IDS = torch.arange(3, 27).reshape(2, 12)


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_every_tensor_of_an_emulator_is_the_full_models_bit_for_bit(kind: str) -> None:
    full = build(kind)
    emulator = build_emulator(full, SPLIT)
    assert type(emulator) is type(full)
    prefix, own = families.layer_prefix(full), full.state_dict()
    for name, tensor in emulator.state_dict().items():
        assert torch.equal(tensor, own[full_name(SPLIT, prefix, name)])
    assert changed_outside_middle(full, emulator, SPLIT) == []
    assert len(families.layers_of(emulator)) == emulator.config.num_hidden_layers == 4
    assert len(families.layers_of(full)) == full.config.num_hidden_layers == 6


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_training_an_emulator_leaves_the_full_model_alone(kind: str) -> None:
    full = build(kind)
    before = model_digest(full.state_dict())
    emulator = build_emulator(full, SPLIT)
    shared = {p.data_ptr() for p in full.parameters()} & {
        p.data_ptr() for p in emulator.parameters()
    }
    assert not shared
    with torch.no_grad():
        for parameter in emulator.parameters():
            parameter.add_(1)
    assert model_digest(full.state_dict()) == before
    assert emulator.config is not full.config


def test_an_emulator_that_keeps_all_computes_what_the_full_model_does() -> None:
    full = build("llama")
    emulator = build_emulator(full, Split.uniform(6, 1, 4))
    with torch.no_grad():
        assert torch.equal(emulator(IDS).logits, full(IDS).logits)


def test_tied_embeddings_stay_tied() -> None:
    emulator = build_emulator(build("llama"), SPLIT)
    assert emulator.lm_head.weight is emulator.model.embed_tokens.weight


def test_changed_edges_and_embeddings_are_named_and_a_changed_middle_is_not() -> None:
    full = build("llama")
    emulator = build_emulator(full, SPLIT)
    with torch.no_grad():
        for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"):
            emulator.get_parameter(name)[0, 0] += 1
        emulator.model.norm.weight[0] += 1
    assert changed_outside_middle(full, emulator, SPLIT) == [
        "model.layers.3.mlp.up_proj.weight",
        "model.norm.weight",
    ]


def test_a_classifier_is_cut_in_its_encoder_and_keeps_its_head() -> None:
    full: Any = Classifier(build("bert")).eval()
    emulator = build_emulator(full, SPLIT)
    assert torch.equal(emulator.head.weight, full.head.weight)
    assert emulator(IDS).shape == (2, 3)
    assert emulator.config is emulator.encoder.config
    assert emulator.config.num_hidden_layers == 4


def test_a_split_of_another_depth_is_refused() -> None:
    with pytest.raises(ConfigError, match="of 12 layers and the model has 6"):
        build_emulator(build("llama"), Split.uniform(12, 2, 4))


def test_a_layer_that_does_nothing_is_worth_nothing() -> None:
    full = build("llama")
    idle: Any = families.layers_of(full)[3]
    with torch.no_grad():
        idle.self_attn.o_proj.weight.zero_()
        idle.mlp.down_proj.weight.zero_()
    stream = text.byte_stream("own", [text.SourceFile("x.py", b"def f(x): return x\n" * 60)])
    found = importances(full, stream, 1, context=16, max_windows=8, precision="float32")
    assert len(found) == 4
    assert found[2] == 0.0
    assert all(abs(found[i]) > 1e-4 for i in (0, 1, 3))
    split = Split.by_importance([abs(score) for score in found], 1, 3)
    assert split.kept == (1, 2, 4)
