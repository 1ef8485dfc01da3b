"""Each family's layers are found, cut and put back, and what was cut saves and loads as itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from secagg.errors import ConfigError
from secagg_models import families
from secagg_models.base import model_digest
from secagg_models.families import LayerCall
from tests.models.families import CAUSAL, ENCODERS, VOCABULARY, Classifier, build

KINDS = (*CAUSAL, *ENCODERS)
IDS = torch.arange(3, 27).reshape(2, 12) % VOCABULARY
PREFIXES = {
    "llama": "model.layers.",
    "mistral": "model.layers.",
    "qwen2": "model.layers.",
    "qwen3": "model.layers.",
    "gpt2": "transformer.h.",
    "opt": "model.decoder.layers.",
    "bert": "encoder.layer.",
    "bert-mlm": "bert.encoder.layer.",
    "roberta": "encoder.layer.",
}


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=IDS)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_layers_tensors_have_the_familys_prefix(kind: str) -> None:
    model = build(kind)
    assert families.layer_prefix(model) == PREFIXES[kind]
    assert len(families.layers_of(model)) == 6
    for number in range(6):
        assert any(n.startswith(f"{PREFIXES[kind]}{number}.") for n in model.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_model_saves_and_loads_as_the_same_function(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    layers = families.layers_of(model)
    families.with_layers(model, [layers[i] for i in (0, 1, 3, 5)])
    assert model.config.num_hidden_layers == 4
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert len(families.layers_of(again)) == 4
    assert model_digest(again.state_dict()) == model_digest(model.state_dict())
    torch.testing.assert_close(output(again), output(model), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_whole_again_after_it_was_cut_for_a_while(kind: str) -> None:
    model = build(kind)
    before, config = output(model), model.config.to_dict()
    with families.only_layers(model, (0, 2, 5)):
        assert not torch.equal(output(model), before)
    assert model.config.to_dict() == config
    assert torch.equal(output(model), before)


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_cut_model_generates_with_its_cache_as_without(kind: str) -> None:
    model = build(kind)
    layers = families.layers_of(model)
    families.with_layers(model, [layers[i] for i in (0, 2, 5)])
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "attention_mask": None}
    options["attention_mask"] = torch.ones_like(IDS)
    with torch.no_grad():
        cached = model.generate(IDS, use_cache=True, **options)
        plain = model.generate(IDS, use_cache=False, **options)
    assert torch.equal(cached, plain)


def test_kinds_of_attention_follow_their_layers() -> None:
    model = build("qwen2")
    kinds = list(model.config.layer_types)
    assert len(set(kinds)) == 2
    assert not families.has_one_kind_of_attention(model)
    layers = families.layers_of(model)
    families.with_layers(model, [layers[i] for i in (0, 4, 5)])
    assert model.config.layer_types == [kinds[i] for i in (0, 4, 5)]
    assert families.has_one_kind_of_attention(build("llama"))


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "qwen2"])
def test_running_layers_as_the_model_calls_them_gives_what_the_model_computes(kind: str) -> None:
    model = build(kind)
    layers = families.layers_of(model)
    seen: list[Any] = []
    first = layers[1].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(LayerCall(args[0], args[1:], kwargs)), with_kwargs=True
    )
    last = layers[4].register_forward_hook(
        lambda _, __, result: seen.append(families.hidden_of(result))
    )
    with torch.no_grad():
        model(input_ids=IDS, **({"use_cache": False} if kind in CAUSAL else {}))
        first.remove()
        last.remove()
        found = families.run_layers(list(layers)[1:5], seen[0])
    assert torch.equal(found, seen[1])


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_classifier_is_split_through_its_encoder(kind: str) -> None:
    model = Classifier(build(kind)).eval()
    assert families.layer_prefix(model) == "encoder.encoder.layer."
    assert families.family_of(model).name == "bert"
    with families.only_layers(model, (0, 5)), torch.no_grad():
        assert model(IDS).shape == (2, 3)
        assert model.config.num_hidden_layers == 2
    assert len(families.layers_of(model)) == 6


def test_other_models_are_refused_with_those_that_are_supported() -> None:
    t5 = T5ForConditionalGeneration(
        T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=16)
    )
    for model in (t5, torch.nn.Linear(2, 2)):
        with pytest.raises(ConfigError, match="supported are llama, mistral"):
            families.family_of(model)


def test_a_model_whose_attention_depends_on_depth_is_refused() -> None:
    config = GPT2Config(
        n_layer=3, n_embd=8, n_head=2, vocab_size=16, scale_attn_by_inverse_layer_idx=True
    )
    model = GPT2LMHeadModel(config)
    with pytest.raises(ConfigError, match="scale_attn_by_inverse_layer_idx"):
        families.with_layers(model, list(families.layers_of(model))[:2])
