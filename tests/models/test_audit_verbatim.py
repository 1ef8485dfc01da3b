"""Audit 1: copies are found whole, in part, and shuffled; what was distilled away is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from secagg_models.audit import matching
from secagg_models.audit.figures import Figures
from secagg_models.audit.policy import AuditPolicy, judge
from secagg_models.audit.verbatim import VerbatimResult, audit_verbatim
from secagg_models.families import layers_of
from secagg_models.split import Split
from tests.models.emulators import Pair, pair

FAMILIES = ("llama", "qwen3", "gpt2", "opt", "classifier")
TWELVE = Split.uniform(12, 2, 4)


def redrawn(found: Pair, share: float = 1.0) -> Pair:
    """The emulator with its middle matrices moved by noise of this share of their norm."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in found.split.middle_layers:
            for parameter in layers_of(found.emulator)[layer].parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                size = parameter.norm() if float(parameter.norm()) > 0 else torch.tensor(1.0)
                parameter += share * size * noise / noise.norm()
    return found


def audit(found: Pair) -> VerbatimResult:
    return audit_verbatim(found.full, found.emulator, found.split)


def refused(found: VerbatimResult) -> set[str]:
    figures = Figures(
        "quick", 3, edges_identical=found.edges_identical, middle_share=found.middle_share,
        units_share=found.units_share, layers_share=found.layers_share,
    )  # fmt: skip
    return {v.clause for v in judge(figures, AuditPolicy()) if v.outcome == "fail"}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_emulator_that_was_not_distilled_is_verbatim(family: str) -> None:
    found = audit(pair(family))
    assert found.middle_share == 1.0
    assert {match.how for match in found.matches} == {"identical"}
    assert [m.full_layer for m in found.matches][:: len(found.matches) // 2] == [1, 3]
    assert "verbatim.middle_max" in refused(found)


def test_most_of_the_model_shipped_is_refused_and_a_third_is_not() -> None:
    shipped = audit(pair("llama", TWELVE))
    assert shipped.layers_share == pytest.approx(8 / 12, abs=0.01)  # gains of ones say nothing
    assert "verbatim.layers_max" in refused(shipped)
    distilled = audit(redrawn(pair("llama", TWELVE)))
    assert distilled.layers_share == pytest.approx(4 / 12)
    assert distilled.middle_share == 0.0
    assert not refused(distilled)


@pytest.mark.parametrize(("share", "verbatim"), [(0.1, 1.0), (0.2, 0.0)])
def test_the_threshold_is_a_cosine_of_099(share: float, verbatim: float) -> None:
    assert audit(redrawn(pair("llama"), share)).middle_share == verbatim


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_in_another_order_of_neurons_and_heads_is_found(family: str) -> None:
    found = pair(family)
    shuffle(found.emulator, found.split.middle_layers)
    result = audit(found)
    assert result.middle_share == 1.0
    assert "aligned" in {match.how for match in result.matches} or all(
        match.how == "identical" for match in result.matches
    )
    assert min(sum(row) for row in result.nearest) < len(result.nearest[0])


def test_a_copy_of_a_layer_that_the_split_does_not_name_is_found() -> None:
    found = redrawn(pair("llama", TWELVE))
    dropped = next(i for i in TWELVE.full_middle_layers if i not in TWELVE.kept)
    layers_of(found.emulator)[2].load_state_dict(layers_of(found.full)[dropped].state_dict())
    result = audit(found)
    assert result.middle_share == pytest.approx(1 / 4)
    assert {m.full_layer for m in result.matches if m.how != "no"} == {dropped}
    assert result.layers_share > 4 / 12


def test_one_matrix_left_alone_is_found() -> None:
    found = redrawn(pair("llama", TWELVE))
    original = layers_of(found.full)[TWELVE.kept[1]].mlp.up_proj
    layers_of(found.emulator)[3].mlp.up_proj.load_state_dict(original.state_dict())
    verbatim = [match for match in audit(found).matches if match.how != "no"]
    assert [(match.layer, match.name) for match in verbatim] == [(3, "mlp.up_proj.weight")]


def test_neurons_that_stayed_are_counted_where_the_matrix_as_a_whole_moved() -> None:
    found = pair("llama", TWELVE)
    with torch.no_grad():
        for layer in TWELVE.middle_layers:
            for parameter in layers_of(found.emulator)[layer].parameters():
                if parameter.ndim == 2:
                    half = parameter[: parameter.shape[0] // 2]
                    generator = torch.Generator().manual_seed(layer)
                    half += half.std() * torch.randn(half.shape, generator=generator)
    result = audit(found)
    assert result.middle_share == 0.0
    assert result.units_share > 0.2
    assert refused(result) == {"verbatim.units_max"}


def test_gains_of_ones_count_as_nothing_and_moved_gains_do() -> None:
    found = pair("llama")
    assert audit(found).middle_vectors_identical == 0  # untrained: all ones
    with torch.no_grad():
        for model, layer in ((found.full, 1), (found.emulator, 1)):
            layers_of(model)[layer].input_layernorm.weight[0] = 2.0
    assert audit(found).middle_vectors_identical == 16


def test_an_edge_layer_that_differs_is_refused() -> None:
    found = redrawn(pair("llama", TWELVE))
    with torch.no_grad():
        layers_of(found.emulator)[0].input_layernorm.weight[0] += 1e-3
    assert refused(audit(found)) == {"verbatim.edges"}


def shuffle(model: Any, layers: tuple[int, ...]) -> None:
    """Neurons and heads of these layers in another order; the model computes the same."""
    heads = matching.Heads.of(model)
    for layer in layers:
        generator = torch.Generator().manual_seed(layer)
        neurons = torch.randperm(_neurons(model, layer), generator=generator)
        groups = torch.randperm(heads.key_value, generator=generator)
        each = heads.query // heads.key_value
        queries = torch.cat(
            [group * each + torch.randperm(each, generator=generator) for group in groups]
        )
        orders = {"neuron": neurons, "group": groups, "head": queries}
        for name, parameter in layers_of(model)[layer].named_parameters():
            _reorder(name, parameter, orders, heads)


def _neurons(model: Any, layer: int) -> int:
    matrices = matching.matrices_of(layers_of(model)[layer], matching.Heads.of(model))
    return next(
        len(rows) for name, rows in matrices.rows.items() if matrices.kinds[name] == "neuron"
    )


def _reorder(
    name: str, parameter: torch.nn.Parameter, orders: dict[str, torch.Tensor], heads: matching.Heads
) -> None:
    kind, side = matching._UNITS.get(name, (None, 0))
    if parameter.ndim < 2 or kind is None:
        return
    turned = parameter.detach().T if side == 1 else parameter.detach()
    if kind == "fused":
        parts = zip(turned.chunk(3), ("head", "group", "group"), strict=True)
        fresh = torch.cat([_permuted(part, orders[unit]) for part, unit in parts])
    else:
        fresh = _permuted(turned, orders[kind])
    with torch.no_grad():
        parameter.copy_(fresh.T if side == 1 else fresh)


def _permuted(rows: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    units = rows.reshape(len(order), -1, rows.shape[1])
    return units[order].reshape(rows.shape)


@pytest.mark.parametrize("family", ["llama", "gpt2", "classifier"])
def test_the_shuffled_model_computes_the_same(family: str) -> None:
    """So that what the audit undoes is what an order can be."""
    found = pair(family)
    ids = torch.randint(3, 200, (1, 12), generator=torch.Generator().manual_seed(3))
    before = _output(found.full, ids)
    shuffle(found.full, (1, 2))
    torch.testing.assert_close(_output(found.full, ids), before, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def _output(model: Any, ids: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(ids)
    found = model(input_ids=ids, attention_mask=mask)
    return found if torch.is_tensor(found) else found.logits
