"""Audit 5: what several packages give away together."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from secagg.errors import ConfigError
from secagg_models.audit import attacks
from secagg_models.audit.release import Release, audit_release, release_of
from secagg_models.audit.verbatim import audit_verbatim
from secagg_models.families import layers_of
from secagg_models.split import Split
from tests.models.emulators import Pair, pair
from tests.models.test_audit_verbatim import redrawn

FIRST, SECOND = Split(12, 2, (2, 5, 7, 9)), Split(12, 2, (3, 4, 6, 8))


def released(found: Pair, name: str) -> Release:
    verbatim = audit_verbatim(found.full, found.emulator, found.split)
    return release_of(
        found.full, found.split, verbatim, manifest_digest=name * 32, full_digest="00" * 32
    )


def noisy(found: Pair, seed: int) -> Pair:
    """Another distillation of the same subset: its own noise on the same originals."""
    fresh = Pair(found.family, found.full, attacks.own_copy(found.emulator), found.split)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in found.split.middle_layers:
            for parameter in layers_of(fresh.emulator)[layer].parameters():
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter += 0.4 * parameter.norm() * drawn / drawn.norm()
    return fresh


def test_two_subsets_of_one_model_add_up_to_it() -> None:
    one = released(pair("llama", FIRST), "aa")
    two = released(pair("llama", SECOND), "bb")
    result = audit_release(two, [one])
    assert result.others == ("aa" * 32,)
    assert result.shown_layers == tuple(range(12))
    assert result.layers_share == pytest.approx(1.0, abs=0.02)


def test_the_same_package_again_adds_nothing() -> None:
    one = released(redrawn(pair("llama", FIRST)), "aa")
    result = audit_release(replace(one, full_digest="11" * 32), [one, one])
    assert (result.releases, result.related, result.others, result.closer) == (1, 0, (), ())


def test_a_model_of_another_layout_is_another_model() -> None:
    one = released(pair("llama", FIRST), "aa")
    result = audit_release(released(pair("gpt2", SECOND), "bb"), [one])
    assert (result.related, result.others) == (0, ())


def test_a_closer_copy_of_the_same_subset_is_found_without_the_older_weights() -> None:
    far = released(redrawn(pair("llama", FIRST)), "aa")
    near = released(redrawn(pair("llama", FIRST), 0.3), "bb")
    assert audit_release(near, [far]).closer == ("aa" * 32,)
    assert audit_release(far, [near]).closer == ()


def test_the_mean_of_two_distillations_is_closer_than_either() -> None:
    base = pair("llama", FIRST)
    models = {"aa": noisy(base, 1), "bb": noisy(base, 2)}
    one, two = (released(found, name) for name, found in models.items())
    emulators = {name * 32: found.emulator for name, found in models.items()}
    # Without weights only a copy that is closer by itself shows.
    assert audit_release(two, [one], closer_by=0.02).closer == ()
    found = audit_release(two, [one], full=base.full, emulators=emulators, closer_by=0.02)
    assert found.closer == ("aa" * 32,)


def test_a_release_survives_its_line_in_the_log() -> None:
    one = released(redrawn(pair("llama", FIRST)), "aa")
    assert Release.from_json(json.loads(json.dumps(one.to_json()))) == one
    with pytest.raises(ConfigError, match="not a release"):
        Release.from_json({"split": FIRST.to_json()})
