"""The five rows: paired intervals, an honest verdict, files, and the same mean as a round opens."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from secagg.errors import ConfigError
from secagg_demo import five_rows_page, five_rows_worker
from secagg_demo.five_rows import BESIDE, ROWS, SeedRows, Summary, joined
from secagg_demo.five_rows_run import Options, write
from secagg_models import text, updates
from secagg_models.edges import EdgesShape
from secagg_models.emulator import build_emulator
from secagg_models.recipe import Recipe
from secagg_models.split import Split

LOSSES = {
    "full_zero_shot": 2.0, "emulator_zero_shot": 2.3, "full_fine_tuned": 1.5,
    "emulator_fine_tuned": 1.8, "plug_in": 1.55, "local_only": 1.7, "centralised": 1.52,
}  # fmt: skip


def seed_rows(seed: int, shift: float = 0.0, **changed: float) -> SeedRows:
    """All rows of a seed move together by `shift`, as they do when other text is measured."""
    losses = {
        row: {"a": value + shift - 0.1, "b": value + shift + 0.1}
        for row, value in (LOSSES | changed).items()
    }
    accuracies = {row: {"a": 0.5, "b": 0.7 - 0.1 * values["a"]} for row, values in losses.items()}
    return SeedRows(seed, losses, accuracies, {"split": {"layers": 6, "edge": 1, "kept": [2]}})


def summary(*seeds: SeedRows) -> Summary:
    return Summary("minilm", "nats", seeds)


def test_differences_are_paired_so_what_moves_all_rows_together_cancels() -> None:
    """The rows' own intervals overlap widely; the differences' have no width."""
    found = summary(seed_rows(1, -0.4), seed_rows(2, 0.0), seed_rows(3, 0.4))
    assert found.losses["plug_in"].high > found.losses["full_zero_shot"].low
    for name, mean in (("full_zero_shot", 0.45), ("emulator_fine_tuned", 0.25)):
        difference = found.differences[f"{name} - plug_in"]
        assert difference.mean == pytest.approx(mean)
        assert difference.high - difference.low < 1e-6
    assert found.holds
    assert found.recovery.mean == pytest.approx(0.9)
    assert "reaches 85%" in found.verdict()


def test_an_interval_that_reaches_zero_has_shown_nothing_and_the_verdict_says_so() -> None:
    found = summary(seed_rows(1), seed_rows(2, emulator_fine_tuned=1.56), seed_rows(3))
    assert found.differences["emulator_fine_tuned - plug_in"].mean > 0
    assert not found.holds
    assert "NOT SHOWN" in found.verdict()
    assert "emulator_fine_tuned" in found.verdict()


def test_a_verbatim_middle_is_no_protection_whatever_the_rows_say() -> None:
    seeds = [seed_rows(n) for n in (1, 2, 3)]
    seeds[1] = replace(seeds[1], facts={**seeds[1].facts, "verbatim_middle_share": 0.2})
    assert "NO PROTECTION: 20%" in summary(*seeds).verdict()


def test_one_seed_shows_nothing() -> None:
    found = summary(seed_rows(1))
    assert not found.holds
    assert "no interval" in five_rows_page.table(found)
    json.dumps(found.to_json(), allow_nan=False)


def test_a_seed_without_one_of_its_rows_is_refused() -> None:
    whole = seed_rows(1)
    losses = {row: values for row, values in whole.losses.items() if row != "plug_in"}
    part = {"losses": losses, "accuracies": {}, "facts": {}}
    with pytest.raises(ConfigError, match="plug_in"):
        joined(1, [part])


def test_table_page_and_plot_show_every_row(tmp_path: Path) -> None:
    found = summary(seed_rows(1, -0.01), seed_rows(2), seed_rows(3, 0.01))
    write(Options(("minilm",), 3, tmp_path), [found])
    page = (tmp_path / "five-rows.md").read_text()
    table = five_rows_page.table(found)
    for row in (*ROWS, *BESIDE):
        assert five_rows_page.in_words(found.losses[row]) in page
        assert five_rows_page.in_words(found.losses[row]) in table
    assert "five-rows-minilm.svg" in page
    ElementTree.parse(tmp_path / "five-rows-minilm.svg")
    stored = json.loads((tmp_path / "five-rows.json").read_text())
    assert stored[0]["five_rows"].keys() == set(ROWS)


@pytest.fixture
def setting() -> five_rows_worker.Setting:
    """A tiny owner and two tenants."""
    torch.manual_seed(5)
    torch.set_num_threads(1)
    full = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=5,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
            tie_word_embeddings=True,
        )
    )  # fmt: skip
    full.train(False).requires_grad_(False)
    recipe = Recipe(
        packages=("a", "b"), rounds=2, steps_per_round=3, batch=2, context=16, test_windows=4,
        precision="float32",
    )  # fmt: skip
    sources = {"a": b"def f(x): return x + 1\n", "b": b"class Node(Graph): pass\n"}
    streams = {
        name: text.byte_stream(name, [text.SourceFile("x.py", source * 40)])
        for name, source in sources.items()
    }
    return five_rows_worker.Setting(full, None, recipe, streams, streams)


def silent(text: str, done: int, of: int) -> None:
    """Nobody listens."""


@pytest.mark.parametrize("kind", ["edges", "lora"])
def test_a_worker_measures_every_row_and_leaves_the_full_model_as_it_was(
    setting: Any, kind: str
) -> None:
    setting = replace(setting, recipe=replace(setting.recipe, update=kind, rank=2))
    split = Split.uniform(5, 1, 1)
    before = {name: t.clone() for name, t in setting.full.state_dict().items()}
    measured = five_rows_worker.Measured(setting, silent)
    five_rows_worker.measure_emulator(measured, build_emulator(setting.full, split), split)
    five_rows_worker.measure_full(measured)
    rows = joined(1, [{"losses": measured.losses, "accuracies": {}, "facts": measured.facts}])
    assert all(set(values) == {"a", "b"} for values in rows.losses.values())
    assert rows.loss("plug_in") < rows.loss("full_zero_shot")
    assert rows.loss("full_fine_tuned") < rows.loss("full_zero_shot")
    assert all(torch.equal(before[n], t) for n, t in setting.full.state_dict().items())


def test_the_mean_is_the_plain_one_up_to_a_rounding_step(setting: Any) -> None:
    start = updates.start(setting.full, EdgesShape((0,)), 1)
    deltas = [
        {name: 0.01 * torch.randn(t.shape) for name, t in start.trained.items()} for _ in range(3)
    ]
    mean, saturated = five_rows_worker.quantised_mean(deltas, start, [1, 0])
    again, _ = five_rows_worker.quantised_mean(deltas, start, [1, 0])
    assert saturated == 0
    for name, found in mean.items():
        plain = torch.stack([delta[name] for delta in deltas]).mean(0)
        assert float((found - plain).abs().max()) <= five_rows_worker.QUANTISER.scale
        assert torch.equal(found, again[name])


def test_a_seed_draws_other_held_out_windows_of_the_same_text(setting: Any) -> None:
    stream = setting.held_out["a"]
    one, other = (five_rows_worker.drawn(stream, seed, setting.recipe) for seed in (1, 2))
    assert not np.array_equal(one.ids, other.ids)
    assert sorted(one.ids) == sorted(stream.ids)
    again = five_rows_worker.drawn(stream, 1, setting.recipe)
    assert np.array_equal(one.ids, again.ids)


def test_intervals_that_are_infinite_are_null_in_json() -> None:
    found = summary(seed_rows(1)).to_json()["five_rows"]["plug_in"]
    assert found["low"] is None
    assert found["mean"] == pytest.approx(1.55)
    assert math.isfinite(found["mean"])
