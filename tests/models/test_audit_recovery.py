"""Audit 4: hidden layers that come back are seen, and chance is not taken for them."""

from __future__ import annotations

import pytest
import torch

from secagg_models.audit import attacks, matching
from secagg_models.audit.recovery import audit_recovery, linear_cka
from secagg_models.emulator import build_emulator
from secagg_models.families import layers_of
from secagg_models.split import Split
from tests.models.audited import SETTINGS, SPLIT, classifier_pair, texts, trained_pair
from tests.models.emulators import Pair, pair
from tests.models.test_audit_verbatim import shuffle

SEEDS = (1, 2, 3)


def test_an_emulator_whose_middle_is_random_shows_no_excess() -> None:
    found, text = trained_pair(), texts()
    empty = attacks.randomised(found.emulator, 9, SPLIT.middle_layers)
    result = audit_recovery(
        found.full, empty, SPLIT, text.attacker, text.held_out, SETTINGS, tokens=256, seeds=SEEDS
    )
    assert result.cosine_excess is not None
    assert result.cka_excess is not None
    assert abs(result.cosine_excess.mean) < 0.05
    assert abs(result.cka_excess.mean) < 0.25
    assert {likeness.full_layer for likeness in result.likenesses} == {2, 3}


def test_dropped_layers_that_repetition_brings_back_show_an_excess_near_one() -> None:
    """A model of equal middle layers: the kept ones are the dropped ones, in another order too."""
    found, text = trained_pair(), texts()
    layers = layers_of(found.full)
    for layer in SPLIT.full_middle_layers[1:]:
        layers[layer].load_state_dict(layers[1].state_dict())
    same = Pair("llama", found.full, build_emulator(found.full, SPLIT), SPLIT)
    shuffle(same.emulator, SPLIT.middle_layers)
    result = audit_recovery(
        same.full, same.emulator, SPLIT, text.attacker, text.held_out, SETTINGS,
        tokens=256, seeds=SEEDS,
    )  # fmt: skip
    assert result.cosine_excess is not None
    assert result.cosine_excess.low > 0.5


def test_nothing_dropped_is_no_result() -> None:
    whole = Split.uniform(5, 1, 3)
    found, text = pair("llama", whole), texts()
    result = audit_recovery(
        found.full, found.emulator, whole, text.attacker, text.held_out, SETTINGS,
        tokens=128, seeds=SEEDS,
    )  # fmt: skip
    assert (result.likenesses, result.cosine_excess) == ((), None)


def test_a_classifiers_layers_are_compared_without_its_padding() -> None:
    found, text = classifier_pair()
    result = audit_recovery(
        found.full, found.emulator, SPLIT, text.attacker, text.held_out, SETTINGS,
        tokens=128, seeds=(1, 2),
    )  # fmt: skip
    assert result.cka_excess is not None
    assert result.cka_excess.count == 2


def test_cka_is_one_for_rotated_and_scaled_activations_and_low_for_unrelated_ones() -> None:
    generator = torch.Generator().manual_seed(1)
    left, other = torch.randn(2, 4000, 8, generator=generator)
    turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    assert linear_cka(left, 3 * left @ turn + 5) == pytest.approx(1.0)
    assert linear_cka(left, other) < 0.01


def test_the_assignment_is_the_best_and_not_the_first() -> None:
    likeness = torch.tensor([[5.0, 4.0], [5.0, 0.0]])
    assert matching._assignment(likeness).tolist() == [1, 0]
