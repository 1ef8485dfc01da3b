"""Pretraining in stages: layers left out at random, and models that go on with another depth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from secagg_models import pretrain
from secagg_models.pretrain import PretrainingConfig, build_model, layers_at

TINY = PretrainingConfig(width=16, layers=8, heads=2, intermediate=32, context=16, batch=2)
TOKENS = torch.arange(12).reshape(1, 12) + 3


def _logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return found


def test_edges_are_in_every_step_and_middle_layers_in_their_share_of_them() -> None:
    config = replace(TINY, layer_drop=0.3)
    steps = [layers_at(step, config) for step in range(500)]
    assert all({0, 1, 6, 7} <= set(layers) for layers in steps)
    share = sum(2 in layers for layers in steps) / len(steps)
    assert 0.6 < share < 0.8
    assert layers_at(3, config) == layers_at(3, config)
    assert layers_at(3, TINY) == list(range(8))


def test_a_deeper_model_starts_as_the_one_that_it_goes_on_from(tmp_path: Path) -> None:
    small = build_model(TINY)
    small.save_pretrained(tmp_path)
    grown = build_model(replace(TINY, layers=11, seed=5))
    pretrain.start_from(grown, str(tmp_path))
    assert torch.allclose(_logits(grown), _logits(small), atol=1e-5)


def test_a_shallower_one_takes_layers_uniformly_and_both_edges(tmp_path: Path) -> None:
    full = build_model(TINY)
    full.save_pretrained(tmp_path)
    cut = build_model(replace(TINY, layers=6, seed=5))
    pretrain.start_from(cut, str(tmp_path))
    kept = [0, 1, 2, 5, 6, 7]
    for mine, number in zip(cut.model.layers, kept, strict=True):
        theirs = full.model.layers[number]
        assert torch.equal(mine.mlp.up_proj.weight, theirs.mlp.up_proj.weight)
