"""Audit 3: attacks by budget, what they recover, and what they save."""

from __future__ import annotations

import pytest
import torch

from secagg_models.audit import attacks
from secagg_models.audit.upgrade import audit_upgrade, tokens_from_scratch
from secagg_models.families import layers_of
from tests.models.audited import SETTINGS, SPLIT, classifier_pair, texts, trained_pair

CURVE = ((1000, 3.0), (2000, 2.5), (4000, 2.0))


def test_an_emulator_of_copies_heals_most_of_the_way_and_saves_tokens() -> None:
    found, text = trained_pair(), texts()
    result = audit_upgrade(
        found.full, found.emulator, SPLIT, text.attacker, text.held_out, SETTINGS,
        budgets=(2048,), scratch_tokens=4096, scratch_depths=(SPLIT.emulator_layers,),
    )  # fmt: skip
    recoveries = {point.attack: point.recovery for point in result.points}
    assert result.gap > 0.3
    assert all(0.2 < (recovery or 0.0) < 1.1 for recovery in recoveries.values()), recoveries
    healed = next(point for point in result.points if point.attack == "heal")
    assert healed.at_least
    assert healed.saved == 4096 - 2048
    assert result.worst.loss == min(point.loss for point in result.points)


def test_attacks_leave_the_owners_models_alone() -> None:
    found, text = trained_pair(), texts()
    before = [attacks.own_copy(model).state_dict() for model in (found.full, found.emulator)]
    audit_upgrade(
        found.full, found.emulator, SPLIT, text.attacker, text.held_out, SETTINGS, budgets=(256,)
    )
    for model, state in zip((found.full, found.emulator), before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_classifier_is_attacked_on_labelled_passages() -> None:
    found, text = classifier_pair()
    result = audit_upgrade(
        found.full, found.emulator, SPLIT, text.attacker, text.held_out, SETTINGS, budgets=(512,)
    )
    assert {point.attack for point in result.points} == {"heal", "duplicate", "outputs"}
    assert all(point.loss < 2.0 for point in result.points)


def test_on_labelled_passages_recovery_is_towards_the_full_model_with_the_same_training() -> None:
    """Or learning the task would pass for recovering the model."""
    found, text = classifier_pair()
    with torch.no_grad():
        found.full.head.weight.neg_()  # a full model that is bad at this task until it is tuned
    result = audit_upgrade(
        found.full, found.emulator, SPLIT, text.attacker, text.held_out, SETTINGS,
        budgets=(1024,), names=("heal",),
    )  # fmt: skip
    assert result.full_loss < attacks.loss_of(found.full, text.held_out, SETTINGS)


def test_duplication_repeats_the_nearest_kept_layer_up_to_the_full_depth() -> None:
    found = trained_pair()
    deeper = attacks.duplicated(found.emulator, SPLIT)
    originals = [0, 1, 1, 4, 4, 5]  # kept are 1 and 4; 2 is nearer to 1, 3 to 4
    assert len(layers_of(deeper)) == SPLIT.layers == deeper.config.num_hidden_layers
    for layer, full_layer in zip(layers_of(deeper), originals, strict=True):
        expected = layers_of(found.full)[full_layer].state_dict()
        assert all(
            torch.equal(tensor, expected[name]) for name, tensor in layer.state_dict().items()
        )
    weights = {layer.mlp.up_proj.weight.data_ptr() for layer in layers_of(deeper)}
    assert len(weights) == SPLIT.layers


@pytest.mark.parametrize(
    ("loss", "tokens", "at_least"),
    [(3.5, 1000, False), (2.5, 2000, False), (2.25, 2828, False), (1.9, 4000, True)],
)
def test_tokens_from_scratch_are_interpolated_and_bounded(
    loss: float, tokens: int, at_least: bool
) -> None:
    assert tokens_from_scratch(CURVE, loss) == (tokens, at_least)


def test_redrawn_layers_share_nothing_and_the_rest_stays() -> None:
    found = trained_pair()
    fresh = attacks.randomised(found.full, 3, [2])
    for number, (old, new) in enumerate(zip(layers_of(found.full), layers_of(fresh), strict=True)):
        same = torch.equal(old.mlp.up_proj.weight, new.mlp.up_proj.weight)
        assert same == (number != 2)
    again = attacks.randomised(found.full, 3, [2])
    drawn = layers_of(fresh)[2].mlp.up_proj.weight
    assert torch.equal(drawn, layers_of(again)[2].mlp.up_proj.weight)
