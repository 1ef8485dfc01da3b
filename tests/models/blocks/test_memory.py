"""What training a block holds, counted on the tensors that exist."""

from __future__ import annotations

import copy

import pytest
import torch

from secagg_models.base import load_base
from secagg_models.blocks import memory
from secagg_models.blocks.network import block_parameters, divide, freeze_all_but, hold_one
from secagg_models.blocks.objective import PURE, block_loss, noise_generator
from secagg_models.blocks.tasks import NextToken
from secagg_models.families import layers_of, with_layers
from secagg_models.train import item_losses


@pytest.mark.parametrize("blocks", [2, 3, 4])
def test_one_block_of_the_shipped_base_holds_at_most_its_share_and_15_percent(
    blocks: int,
) -> None:
    base = load_base().model
    batch = torch.randint(3, 260, (1, 9), generator=torch.Generator().manual_seed(0))
    whole = divide(base, NextToken(), blocks)
    cut = copy.deepcopy(base)
    with_layers(cut, [layers_of(cut)[i] for i in whole.layers[0]])
    alone = hold_one(cut, NextToken(), 0, whole.layers)
    own = block_parameters(alone, 0)
    freeze_all_but(alone, own)
    one = memory.held_in_a_step(
        [alone.model, alone.conditioning],
        list(own.values()),
        lambda: block_loss(alone, 0, PURE, batch, noise_generator(0, 0, 0)).total,
    )
    base.requires_grad_(True)
    every = memory.held_in_a_step(
        [base], list(base.parameters()), lambda: item_losses(base, batch).mean()
    )
    assert one.total <= (1 / blocks + 0.15) * every.total
    assert every.gradients == pytest.approx(every.parameters, rel=1e-3)
    assert every.optimiser == pytest.approx(2 * every.parameters, rel=1e-3)


def test_storages_are_counted_once() -> None:
    first = torch.nn.Linear(4, 4, bias=False)
    second = torch.nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    assert memory.held_by([first, second], optimizer) == memory.Held(64, 0, 0)
