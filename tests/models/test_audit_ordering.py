"""Audit 2: the order of qualities, through the tenants' own training and the real plug-in."""

from __future__ import annotations

import torch

from secagg_models.audit import attacks
from secagg_models.audit.ordering import UpdateTuning, audit_ordering
from secagg_models.audit.statistics import interval
from secagg_models.lora import LoraShape
from tests.models.audited import SETTINGS, SPLIT, classifier_pair, texts, trained_pair

TUNING = UpdateTuning(1024, SETTINGS)


def test_rows_are_paired_by_seed_and_the_models_are_as_before() -> None:
    found, text = trained_pair(), texts()
    before = attacks.own_copy(found.full).state_dict()
    result = audit_ordering(
        found.full, found.emulator, SPLIT, text.tuning, text.tuning_held_out, SETTINGS, TUNING,
        seeds=(1, 2, 3),
    )  # fmt: skip
    assert [row.seed for row in result.rows] == [1, 2, 3]
    assert len({row.plug_in for row in result.rows}) == 3
    gaps = [row.tuned_emulator - row.plug_in for row in result.rows]
    assert result.gap == interval(gaps)
    assert (
        result.gain.mean == interval([result.full_zero_shot - r.plug_in for r in result.rows]).mean
    )
    assert all(row.tuned_emulator < result.emulator_zero_shot for row in result.rows)
    assert all(torch.equal(t, before[name]) for name, t in found.full.state_dict().items())


def test_lora_in_the_edges_is_tuned_and_plugged_in_as_well() -> None:
    found, text = trained_pair(), texts()
    tuning = UpdateTuning(1024, SETTINGS, lora=LoraShape(4, 1.0, ("q_proj", "down_proj")))
    result = audit_ordering(
        found.full, found.emulator, SPLIT, text.tuning, text.tuning_held_out, SETTINGS, tuning,
        seeds=(1,),
    )  # fmt: skip
    assert result.rows[0].tuned_emulator < result.emulator_zero_shot
    assert result.rows[0].plug_in != result.full_zero_shot


def test_a_classifier_is_ordered_by_its_cross_entropy() -> None:
    found, text = classifier_pair()
    result = audit_ordering(
        found.full, found.emulator, SPLIT, text.tuning, text.tuning_held_out, SETTINGS, TUNING,
        seeds=(1, 2),
    )  # fmt: skip
    assert result.gap.count == 2
