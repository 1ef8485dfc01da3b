"""Taking an update into the full model: by name, exactly, and back again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secagg.errors import ConfigError, UsageError
from secagg_models import lora, updates
from secagg_models.base import model_digest
from secagg_models.edges import EdgesShape, EdgeWeights
from secagg_models.families import layer_prefix
from secagg_models.lora import Adapter
from secagg_models.plug_in import full_tensors, plug_in, plugged_in, unplug
from secagg_models.split import Split
from tests.models.emulators import KINDS, TARGETS, Pair, moved, pair

FULL = Split(5, 1, (1, 2, 3))
"""Nothing is dropped and nothing distilled: this emulator computes what the full model does."""


def _digest(model: Any) -> str:
    return model_digest(model.state_dict())


@st.composite
def splits(draw: st.DrawFn) -> Split:
    edge, middle = draw(st.integers(1, 2)), draw(st.integers(1, 4))
    places = st.integers(edge, edge + middle - 1)
    kept = draw(st.sets(places, min_size=1, max_size=middle))
    return Split(2 * edge + middle, edge, tuple(sorted(kept)))


MODELS = settings(max_examples=25, suppress_health_check=list(HealthCheck))
SEEDS = st.integers(0, 2**32 - 1)


@MODELS
@given(st.sampled_from(sorted(TARGETS)), st.sampled_from(KINDS), splits(), st.integers(1, 8), SEEDS)
def test_plugged_in_and_unplugged_a_model_is_what_it_was_bit_for_bit(
    family: str, kind: str, split: Split, rank: int, seed: int
) -> None:
    made = pair(family, split)
    own = {n: p.detach().clone() for n, p in made.full.named_parameters()}
    before, update = _digest(made.full), moved(made.start(kind, rank), seed)
    plugged = plug_in(made.full, update, split)
    assert _digest(made.full) != before
    changed = {n for n, p in made.full.named_parameters() if not torch.equal(p, own[n])}
    assert changed <= set(plugged.replaced)
    prefix = layer_prefix(made.full)
    layers = {n.removeprefix(prefix).split(".")[0] for n in changed if n.startswith(prefix)}
    assert layers == {str(split.full_index(j)) for j in split.edge_layers}
    unplug(made.full, plugged)
    assert _digest(made.full) == before


@MODELS
@given(st.sampled_from(sorted(TARGETS)), splits(), st.integers(1, 8), SEEDS)
def test_what_is_plugged_in_is_the_own_weight_plus_the_product(
    family: str, split: Split, rank: int, seed: int
) -> None:
    made = pair(family, split)
    update = moved(made.start("lora", rank), seed)
    assert isinstance(update, Adapter)
    own = {n: p.detach().double() for n, p in made.full.named_parameters()}
    emulated = dict(made.emulator.named_parameters())
    fresh = full_tensors(made.full, update, split)
    prefix = layer_prefix(made.full)
    for name_b in update.b:
        name = f"{lora.module_of(name_b)}.weight"
        number, _, rest = name.removeprefix(prefix).partition(".")
        place = f"{prefix}{split.full_index(int(number))}.{rest}"
        assert torch.equal(emulated[name].double(), own[place])
        product = update.product(name_b)
        turned = product.T if family == "gpt2" else product
        assert float((fresh[place].double() - own[place] - turned).abs().max()) < 1e-6


@MODELS
@given(st.sampled_from(sorted(TARGETS)), splits(), st.integers(1, 8), SEEDS)
def test_refactoring_changes_nothing_that_is_plugged_in(
    family: str, split: Split, rank: int, seed: int
) -> None:
    made = pair(family, split)
    summed = moved(made.start("lora", rank), seed)
    assert isinstance(summed, Adapter)
    skewed = dataclasses.replace(summed, b={n: 0.5 * b + 0.01 for n, b in summed.b.items()})
    refactored = lora.refactor(skewed)
    first, second = (full_tensors(made.full, u, split) for u in (skewed, refactored))
    for name, tensor in first.items():
        assert float((tensor.double() - second[name].double()).abs().max()) < 1e-6


@pytest.mark.parametrize("family", TARGETS)
def test_edge_weights_replace_the_full_models_own(family: str) -> None:
    made = pair(family)
    update = moved(made.start("edges"), 1)
    prefix, last = layer_prefix(made.full), made.split.emulator_layers - 1
    with plugged_in(made.full, update, made.split) as full:
        now = dict(full.named_parameters())
        for name, tensor in update.trained.items():
            place = name.replace(f"{prefix}{last}.", f"{prefix}{made.split.layers - 1}.")
            assert torch.equal(now[place], tensor)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", TARGETS)
def test_the_first_version_of_edges_or_lora_changes_no_bit(family: str, kind: str) -> None:
    made = pair(family)
    before = _digest(made.full)
    with plugged_in(made.full, made.start(kind), made.split) as full:
        assert _digest(full) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", TARGETS)
def test_plugged_in_a_model_computes_what_the_tenant_trained(family: str, kind: str) -> None:
    made = pair(family, FULL)
    update = moved(made.start(kind), 2)
    trained = _output(updates.attach(made.emulator, update))
    before = _output(made.full)
    with plugged_in(made.full, update, FULL) as full:
        torch.testing.assert_close(_output(full), trained, atol=1e-4, rtol=1e-4)
        assert float((trained - before).abs().max()) > 1e-2
    assert torch.equal(_output(made.full), before)


@torch.no_grad()
def _output(model: Any) -> torch.Tensor:
    ids = torch.randint(3, 259, (2, 9), generator=torch.Generator().manual_seed(1))
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return output if isinstance(output, torch.Tensor) else output.logits


@pytest.mark.parametrize("kind", KINDS)
def test_names_decide_and_not_the_order_of_a_dictionary(kind: str) -> None:
    made = pair("llama")
    update = moved(made.start(kind), 3)
    with plugged_in(made.full, update, made.split) as full:
        wanted = _digest(full)
    order = np.random.default_rng(1)
    for _ in range(3):
        with plugged_in(made.full, _shuffled(update, order), made.split) as full:
            assert _digest(full) == wanted


def _shuffled(update: updates.Update, order: np.random.Generator) -> updates.Update:
    def mixed(tensors: Any) -> dict[str, torch.Tensor]:
        names = list(tensors)
        return {names[i]: tensors[names[i]] for i in order.permutation(len(names))}

    match update:
        case Adapter():
            return dataclasses.replace(update, a=mixed(update.a), b=mixed(update.b))
        case EdgeWeights():
            return dataclasses.replace(update, tensors=mixed(update.tensors))


@pytest.mark.parametrize("kind", KINDS)
def test_versions_that_follow_each_other_add_up_no_rounding(kind: str) -> None:
    made = pair("llama")
    before = _digest(made.full)
    versions = [made.start(kind)]
    for seed in range(5):
        versions.append(moved(versions[-1], seed))
    for version in versions:
        with plugged_in(made.full, version, made.split) as full:
            after = _digest(full)
    alone = pair("llama")
    with plugged_in(alone.full, versions[-1], alone.split) as full:
        assert _digest(full) == after
    assert _digest(made.full) == before


def test_a_second_plug_in_without_unplugging_is_refused_and_so_is_unplugging_twice() -> None:
    made = pair("llama")
    update, before = moved(made.start("lora"), 1), _digest(made.full)
    plugged = plug_in(made.full, update, made.split)
    with pytest.raises(UsageError, match="unplug it first"):
        plug_in(made.full, update, made.split)
    unplug(made.full, plugged)
    with pytest.raises(UsageError, match="no update"):
        unplug(made.full, plugged)
    assert _digest(made.full) == before


def test_an_error_in_between_leaves_the_full_model_as_it_was() -> None:
    made = pair("llama")
    before = _digest(made.full)
    with (
        pytest.raises(ZeroDivisionError),
        plugged_in(made.full, moved(made.start("edges"), 1), made.split),
    ):
        raise ZeroDivisionError
    assert _digest(made.full) == before


def _renamed(tensors: Any, old: str, new: str) -> dict[str, torch.Tensor]:
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}


def _resized(tensors: Any, part: str, change: Callable[[Any], Any]) -> dict[str, torch.Tensor]:
    name = next(n for n in sorted(tensors) if part in n)
    return {**tensors, name: change(tensors[name]).contiguous()}


def _edges(change: Callable[[Any], Any]) -> Callable[[Pair], updates.Update]:
    def build(made: Pair) -> updates.Update:
        update = made.start("edges")
        assert isinstance(update, EdgeWeights)
        return dataclasses.replace(update, tensors=change(update.tensors))

    return build


def _lora(part: str, change: Callable[[Any], Any]) -> Callable[[Pair], updates.Update]:
    def build(made: Pair) -> updates.Update:
        update = made.start("lora")
        assert isinstance(update, Adapter)
        return dataclasses.replace(
            update, a=change(update.a) if "a" in part else update.a,
            b=change(update.b) if "b" in part else update.b,
        )  # fmt: skip

    return build


REFUSED: list[tuple[Callable[[Pair], updates.Update], str]] = [
    (
        _edges(lambda t: _renamed(t, "layers.3.mlp.up_proj", "layers.3.mlp.side_proj")),
        r"missing \['model.layers.4.mlp.up_proj.weight'\].*'model.layers.4.mlp.side_proj.weight'",
    ),
    (
        _edges(lambda t: t | {"lm_head.weight": torch.ones(264, 16)}),
        r"unexpected \['lm_head.weight'\]",
    ),
    (
        _edges(lambda t: _resized(t, "layers.3.mlp.up_proj", lambda w: w.T)),
        r"layers.4.mlp.up_proj.weight is \(16, 24\) float32 .* \(24, 16\) float32",
    ),
    (
        _edges(lambda t: _resized(t, "layers.0.mlp.up_proj", lambda w: w.bfloat16())),
        r"layers.0.mlp.up_proj.weight is \(24, 16\) bfloat16 .* \(24, 16\) float32",
    ),
    (
        _edges(lambda t: _renamed(t, "layers.3.", "layers.2.")),
        r"missing .*layers.4.* unexpected .*layers.3",
    ),
    (
        _lora(
            "ab", lambda t: _renamed(t, "layers.3.self_attn.q_proj", "layers.3.self_attn.v_proj")
        ),
        r"missing \['model.layers.4.self_attn.q_proj'\], unexpected .*v_proj",
    ),
    (
        _lora("b", lambda t: _resized(t, "layers.3.self_attn.q_proj", lambda w: w[:-1])),
        r"layers.4.self_attn.q_proj.weight is \(16, 16\) float32 .* \(15, 16\)",
    ),
    (
        _lora("a", lambda t: _resized(t, "layers.0.mlp.down_proj", lambda w: w[:, 1:])),
        r"layers.0.mlp.down_proj.weight is \(16, 24\) float32 .* \(16, 23\)",
    ),
    (
        _lora("b", lambda t: _resized(t, "layers.0.mlp.down_proj", lambda w: w[:, 1:])),
        r"layers.0.mlp.down_proj.lora_A.*\(3, 24\) and its B \(16, 2\); rank 3",
    ),
]


@pytest.mark.parametrize(("build", "says"), REFUSED)
def test_other_names_shapes_dtypes_and_ranks_are_refused_by_name(
    build: Callable[[Pair], updates.Update], says: str
) -> None:
    made = pair("llama")
    before = _digest(made.full)
    with pytest.raises(ConfigError, match=says):
        plug_in(made.full, build(made), made.split)
    assert _digest(made.full) == before


def test_a_full_model_of_another_precision_is_refused_by_name() -> None:
    made = pair("llama")
    made.full.bfloat16()
    for kind in KINDS:
        with pytest.raises(ConfigError, match=r"weight is .*bfloat16"):
            plug_in(made.full, made.start(kind), made.split)


def test_layers_that_are_not_at_the_edge_are_refused() -> None:
    made = pair("llama")
    shapes: list[updates.UpdateShape] = [
        EdgesShape((0, 1)),
        lora.LoraShape(2, 1.0, TARGETS["llama"], (1, 2)),
        lora.LoraShape(2, 1.0, TARGETS["llama"]),
    ]
    for shape, says in zip(shapes, (r"\[1\]", r"\[1, 2\]", "every layer"), strict=True):
        update = updates.start(made.emulator, shape, 1)
        with pytest.raises(ConfigError, match=rf"trained in (layers )?{says}"):
            plug_in(made.full, update, made.split)


def test_a_split_of_another_depth_and_a_wrapped_model_are_refused() -> None:
    made = pair("llama")
    update = made.start("lora")
    with pytest.raises(ConfigError, match="5 layers and the split 6"):
        plug_in(made.full, update, Split(6, 1, (1, 3)))
    updates.attach(made.emulator, update)
    for wrapped_kind in KINDS:
        with pytest.raises(UsageError, match="in the model already"):
            plug_in(made.emulator, pair("llama").start(wrapped_kind), Split(4, 1, (1, 2)))


def test_a_classifiers_update_without_its_head_is_refused() -> None:
    made = pair("classifier")
    update = made.start("lora")
    assert isinstance(update, Adapter)
    headless = Adapter(dataclasses.replace(update.shape, extra=()), update.a, update.b)
    with pytest.raises(ConfigError, match=r"missing \['head.bias', 'head.weight'\]"):
        plug_in(made.full, headless, made.split)
