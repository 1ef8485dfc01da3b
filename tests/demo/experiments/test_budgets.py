"""Budgets: every arm on the same steps, groups of about equal size, bytes as the protocol sends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from secagg_demo.experiments import budgets, page
from secagg_demo.experiments.run import Ran
from secagg_models.block_weights import BlockShape
from secagg_models.edges import EdgesShape
from secagg_models.lora import LoraShape
from secagg_models.text import TokenStream

TINY = {
    "LoRA 2": LoraShape(1, 1.0, ("q_proj",)),
    "LoRA 12": LoraShape(2, 1.0, ("q_proj", "down_proj")),
    "layer": EdgesShape((2,)),
    "LoRA 48": LoraShape(4, 1.0, ("q_proj", "down_proj")),
    "block": EdgesShape((2,)),
    "block, mixed": BlockShape(3, 3, 2, "all", prefix=True, ordinary_weight=1.0),
    "block, pure": BlockShape(3, 3, 2, "all"),
    "full": EdgesShape((0, 1, 2), embeddings=True),
}


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> budgets.Setting:
    """A tiny base and three tenants."""
    monkeypatch.setattr(budgets, "SHAPES", TINY)
    torch.manual_seed(3)
    torch.set_num_threads(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32,
            tie_word_embeddings=True,
        )
    )  # fmt: skip
    model.train(False).requires_grad_(False)
    ids = np.tile(np.arange(60, 100, dtype=np.int32), 20)
    streams = {name: TokenStream(name, ids, 1.0) for name in budgets.TENANTS}
    recipe = replace(budgets.SCALES["quick"], context=16, batch=2)
    return budgets.Setting(model, recipe, streams, streams, lambda: None)


def test_every_arm_learns_from_the_same_start_and_leaves_the_base_as_it_was(
    setting: budgets.Setting, tmp_path: Path
) -> None:
    before = {name: t.clone() for name, t in setting.model.state_dict().items()}
    measured = {name: budgets.measure_arm(setting, name, 5e-3) for name in budgets.ARMS}
    assert len({found["losses"][0] for found in measured.values()}) == 1
    for name, found in measured.items():
        if name != "block, pure":
            assert found["losses"][-1] < found["losses"][0], name
        assert len(found["losses"]) == setting.recipe.rounds + 1
    assert all(torch.equal(before[n], t) for n, t in setting.model.state_dict().items())
    assert measured["layer"]["trained_bytes"] < measured["full"]["trained_bytes"]
    summary = budgets.summarise("quick", {f"all {seed}": measured for seed in (1, 2)})
    text = page.text(summary, Ran("secagg experiment budgets", "here", 1, 1, 2))
    assert all(f"\n  {name} " in text for name in budgets.ARMS)
    for name, plot in summary.plots.items():
        plot(tmp_path / f"{name}.svg")


def test_bytes_are_the_protocols_own_and_grow_with_what_is_trained() -> None:
    from secagg import Layout

    small, large = (budgets.bytes_up(Layout.flat(size)) for size in (10_000, 20_000))
    assert 2 * 10_000 < small < 3 * 10_000
    assert large == pytest.approx(2 * small, rel=0.01)


def test_an_arm_gets_as_many_rounds_as_its_bytes_allow_and_no_more_than_were_run() -> None:
    def arm(size: float) -> list[dict[str, object]]:
        return [{"losses": [2.0, 1.9, 1.8, 1.7], "round_bytes": size}]

    seeds = budgets.Seeds({"full": arm(100.0), "half": arm(50.0), "tiny": arm(1.0)})
    assert [seeds.rounds_within(name, 100.0) for name in ("full", "half", "tiny")] == [1, 2, 3]


def test_groups_are_of_about_the_same_size_in_the_shipped_base() -> None:
    """Within a quarter: what is compared at equal parameters has about as many."""
    from secagg_models import updates
    from secagg_models.base import load_base

    model = load_base().model
    sizes = {
        name: updates.delta_layout(updates.start(model, shape, 1)).size
        for name, shape in budgets.SHAPES.items()
    }
    sizes["head"] = model.lm_head.weight.numel()
    for group in budgets.GROUPS:
        found = [sizes[name] for name in group]
        assert max(found) < 1.25 * min(found), (group, found)
