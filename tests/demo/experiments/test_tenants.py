"""Tenants that drop out: sums are the survivors' to the last level, whenever somebody leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from secagg import Layout, TooFewSurvivors
from secagg_demo.experiments import page, tenants
from secagg_demo.experiments.run import Ran
from secagg_demo.experiments.tenants_rounds import Federation, Leaves
from secagg_models import updates
from secagg_models.lora import LoraShape
from secagg_models.text import TokenStream

NAMES = tuple("abcdefg")
LENGTH = 400


def deltas(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(0, 0.05, LENGTH).astype(np.float32) for name in NAMES}


@pytest.mark.parametrize("leaves", Leaves)
def test_whenever_two_vanish_the_mean_is_the_others(leaves: Leaves) -> None:
    federation = Federation(NAMES)
    given = deltas(1)
    opened = federation.mean_of(
        given, Layout.flat(LENGTH), bytes(32), {"b": leaves, "f": Leaves.BEFORE_UPLOAD}
    )
    assert opened.survivors == tuple("acdeg")
    assert opened.exact
    assert opened.error < 1
    plain = np.mean([given[name] for name in opened.survivors], axis=0)
    assert np.abs(opened.mean - plain).max() < 2e-5


def test_a_tenant_that_dropped_out_is_in_the_next_round() -> None:
    federation = Federation(NAMES)
    federation.mean_of(deltas(1), Layout.flat(LENGTH), bytes(32), {"a": Leaves.DURING_UPLOAD})
    again = federation.mean_of(deltas(2), Layout.flat(LENGTH), bytes(32), {})
    assert again.survivors == NAMES


def test_more_losses_than_the_plan_allows_open_nothing() -> None:
    lost = dict.fromkeys("abc", Leaves.BEFORE_UPLOAD)
    with pytest.raises(TooFewSurvivors):
        Federation(NAMES).mean_of(deltas(1), Layout.flat(LENGTH), bytes(32), lost)


def streams() -> dict[str, TokenStream]:
    """A kind of text for each tenant: a run of bytes that no other has."""
    return {
        kind: TokenStream(kind, np.tile(np.arange(60 + 7 * n, 70 + 7 * n, dtype=np.int32), 40), 1.0)
        for n, kind in enumerate(tenants.KINDS)
    }


@pytest.fixture
def setting() -> tenants.Setting:
    """A tiny model and seven tenants."""
    torch.manual_seed(3)
    torch.set_num_threads(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32,
        )
    )  # fmt: skip
    model.train(False).requires_grad_(False)
    quick = tenants.SCALES["quick"]
    scale = replace(quick, recipe=replace(quick.recipe, context=16, batch=2, lr=0.02))
    start = updates.start(model, LoraShape(2, 1.0, ("q_proj", "down_proj")), 1)
    text = streams()
    return tenants.Setting(
        updates.attach(model, start), start, scale, 1, text, text, lambda done, of: None, 28
    )


def test_the_protocols_rounds_train_what_the_oracle_trains(setting: tenants.Setting) -> None:
    federated = tenants.federated(setting, tenants.SCENARIOS[0])
    oracle = tenants.oracle(setting)
    assert all(each["exact"] for each in federated["opened"])
    for kind, loss in oracle["losses"].items():
        assert federated["losses"][kind] == pytest.approx(loss, abs=1e-3)


def test_with_two_lost_each_round_five_are_summed(setting: tenants.Setting) -> None:
    for scenario in tenants.SCENARIOS[1:]:
        found = tenants.federated(setting, scenario)["opened"]
        assert [each["of"] for each in found] == [5, 5]
        assert all(each["exact"] for each in found)


def test_dealt_alike_everybody_holds_a_piece_of_every_kind_and_nothing_is_lost() -> None:
    given = streams()
    dealt = tenants.dealt_alike(given)
    for stream in dealt.values():
        assert all(np.isin(kind.ids, stream.ids).any() for kind in given.values())
    together = [np.sort(np.concatenate([s.ids for s in each.values()])) for each in (given, dealt)]
    assert (together[0] == together[1]).all()


def test_who_is_lost_depends_on_the_seed_alone_and_every_moment_occurs() -> None:
    names = tuple(tenants.KINDS)
    drawn = [tenants.lost_in(tenants.SCENARIOS[1], 1, number, names) for number in range(6)]
    assert drawn == [tenants.lost_in(tenants.SCENARIOS[1], 1, number, names) for number in range(6)]
    assert all(len(lost) == 2 for lost in drawn)
    assert len({tuple(lost) for lost in drawn}) > 1
    same = [tenants.lost_in(tenants.SCENARIOS[2], 1, number, names) for number in range(3)]
    assert all(set(lost) == set(tenants.RARE) for lost in same)
    assert {moment for lost in same for moment in lost.values()} == set(Leaves)
    assert tenants.lost_in(tenants.SCENARIOS[0], 1, 0, names) == {}


def results(**changed: float) -> dict[str, Any]:
    """What jobs return: a loss for each arm, the same for all kinds, plus what a seed adds."""
    losses = {
        tenants.BASE: 2.0, tenants.LOCAL: 1.9, tenants.ORACLE: 1.7, tenants.CENTRAL: 1.6,
        **dict.fromkeys(tenants.SCENARIOS, 1.7),
    } | changed  # fmt: skip
    opened = [{"exact": True, "error": 0.4, "of": 7}]

    def arm(name: str, seed: int) -> dict[str, Any]:
        return {"losses": dict.fromkeys(tenants.KINDS, losses[name] + 0.2 * seed), "opened": opened}

    parts = {
        "different": (*tenants.SCENARIOS, tenants.ORACLE),
        "alike": tenants.SCENARIOS,
        "beside": (tenants.BASE, tenants.LOCAL, tenants.CENTRAL),
    }
    return {
        f"{part} {seed}": {"arms": {name: arm(name, seed) for name in names}}
        for part, names in parts.items()
        for seed in (1, 2, 3)
    }


def test_findings_follow_the_paired_figures(tmp_path: Path) -> None:
    summary = tenants.summarise("quick", results())
    holds = [finding.holds for finding in summary.findings]
    assert holds == [True, True, True, None, None, True, True, True]
    text = page.text(summary, Ran("secagg experiment tenants", "here", 1, 1, 2))
    assert "alike, the same two are lost" in text
    for name, plot in summary.plots.items():
        plot(tmp_path / f"{name}.svg")


def test_a_tenant_that_is_better_off_alone_is_named() -> None:
    given = results()
    for seed in (1, 2, 3):
        given[f"beside {seed}"]["arms"][tenants.LOCAL]["losses"]["tables"] = 1.0 + 0.2 * seed
    found = tenants.summarise("quick", given).findings
    alone = next(each for each in found if "better off alone" in each.claim)
    assert alone.holds is False
    assert "better alone: tables" in alone.figures
