"""A block's pass: a quiet start, hooks that leave nothing, names, and nothing seen too early."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from secagg.errors import ConfigError
from secagg_models.blocks import network as networks
from secagg_models.blocks import tasks
from secagg_models.blocks.conditioning import BlockConditioning, norms_of
from secagg_models.blocks.network import BlockNetwork, block_parameters, divide, hold_one
from secagg_models.blocks.tasks import Batch, NextToken
from secagg_models.families import layer_prefix, layers_of, only_layers, with_layers
from secagg_models.series.batch import SeriesBatch
from tests.models.blocks.small import KINDS, awake, batch_of, network_of
from tests.models.families import CAUSAL, build


def passed(
    network: BlockNetwork, block: int, batch: Batch, z: torch.Tensor, *, prefix: bool = False
) -> torch.Tensor:
    sigma = torch.full((len(z),), 0.7)
    with torch.no_grad():
        return networks.guess(
            network, block, batch, z, sigma, prefix=prefix, precision="float32"
        ).raw


def noisy(network: BlockNetwork, batch: Batch, seed: int = 0) -> torch.Tensor:
    shape = tasks.target_shape(network.task, network.model, batch)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["tokens", "classes"])
def test_a_block_starts_as_its_layers_between_embeddings_and_head_at_every_level(
    kind: str,
) -> None:
    network, batch = network_of(kind), batch_of(kind)
    before = tasks.raw_of(network.task, network.model, batch)
    with only_layers(network.model, [2, 3]):
        alone = tasks.raw_of(network.task, network.model, batch)
    assert torch.equal(passed(network, 1, batch, noisy(network, batch)), alone)
    with only_layers(network.model, [0, 1, 2, 3]):
        first = tasks.raw_of(network.task, network.model, batch)
    assert torch.equal(passed(network, 1, batch, noisy(network, batch), prefix=True), first)
    assert torch.equal(tasks.raw_of(network.task, network.model, batch), before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ordinary_pass_is_untouched_after_a_blocks_pass_even_one_that_failed(
    kind: str,
) -> None:
    network, batch = awake(network_of(kind)), batch_of(kind)
    before = tasks.raw_of(network.task, network.model, batch)
    passed(network, 1, batch, noisy(network, batch))
    with pytest.raises(RuntimeError):
        passed(network, 1, batch, noisy(network, batch)[:, :, :-1])
    assert torch.equal(tasks.raw_of(network.task, network.model, batch), before)
    assert len(layers_of(network.model)) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_level_and_noisy_target_reach_the_block(kind: str) -> None:
    network, batch = awake(network_of(kind)), batch_of(kind)
    z = noisy(network, batch)
    one = passed(network, 1, batch, z)
    assert not torch.equal(one, passed(network, 1, batch, z + 1))
    with torch.no_grad():
        levels = torch.full((len(z),), 7.0)
        other = networks.guess(network, 1, batch, z, levels, precision="float32").raw
    assert not torch.equal(one, other)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("kind", CAUSAL)
def test_no_position_sees_its_own_target_but_through_its_noisy_one(kind: str, prefix: bool) -> None:
    network = awake(divide(build(kind, 4), NextToken(), 2))
    batch = torch.randint(3, 260, (2, 9), generator=torch.Generator().manual_seed(0))
    z = noisy(network, batch)
    for position in (0, 3, 7):
        later = batch.clone()
        later[:, position + 1 :] = 5 + batch[:, position + 1 :] % 200
        # The noisy targets of later positions are of later tokens too.
        far = z.clone()
        far[:, position + 1 :] = 9.0
        one = passed(network, 1, batch, z, prefix=prefix)[:, : position + 1]
        assert torch.equal(one, passed(network, 1, later, far, prefix=prefix)[:, : position + 1])
        own = z.clone()
        own[:, position] += 1
        moved = passed(network, 1, batch, own, prefix=prefix)
        assert not torch.equal(one[:, position], moved[:, position])


def test_a_targets_reach_is_the_next_token_and_no_further() -> None:
    network, batch = network_of("tokens"), batch_of("tokens")
    assert isinstance(batch, torch.Tensor)
    target = tasks.target_of(network.task, network.model, batch)
    for token in range(1, batch.shape[1]):
        other = batch.clone()
        other[:, token] = 3 + (batch[:, token] - 2) % 250
        moved = (tasks.target_of(network.task, network.model, other) != target).any(2).any(0)
        assert moved.nonzero().flatten().tolist() == [token - 1]


@pytest.mark.parametrize("prefix", [False, True])
def test_no_patch_sees_itself_but_through_its_noisy_one(prefix: bool) -> None:
    network, batch = awake(network_of("patches")), batch_of("patches")
    assert isinstance(batch, SeriesBatch)
    z = noisy(network, batch)
    target = tasks.target_of(network.task, network.model, batch).nan_to_num()
    for position in (2, 3, 5):  # from the first that is scored
        end = 4 * (position + 1)
        values = batch.values.clone()
        values[:, end:] += 3
        later, far = replace(batch, values=values), z.clone()
        far[:, position + 1 :] = 9.0
        one = passed(network, 1, batch, z, prefix=prefix)[:, : position + 1]
        assert torch.equal(one, passed(network, 1, later, far, prefix=prefix)[:, : position + 1])
        values = batch.values.clone()
        values[:, end : end + 4] += 0.5
        moved = tasks.target_of(
            network.task, network.model, replace(batch, values=values)
        ).nan_to_num()
        assert (moved != target).any(2).any(0).nonzero().flatten().tolist() == [position]


@pytest.mark.parametrize("kind", KINDS)
def test_one_block_alone_passes_as_it_does_in_the_whole_model(kind: str) -> None:
    whole, batch = network_of(kind), batch_of(kind)
    z = noisy(whole, batch)
    cut = copy.deepcopy(whole.model)
    with_layers(cut, [layers_of(cut)[i] for i in whole.layers[1]])
    alone = hold_one(cut, whole.task, 1, whole.layers)
    assert torch.equal(passed(alone, 1, batch, z), passed(whole, 1, batch, z))
    names = [name for name, _ in alone.conditioning.named_parameters()]
    assert all(name.startswith("blocks.1.") for name in names)
    own = dict(whole.conditioning.named_parameters())
    assert all(torch.equal(p, own[n]) for n, p in alone.conditioning.named_parameters())
    with pytest.raises(ConfigError, match="not held"):
        passed(alone, 0, batch, z)
    with pytest.raises(ConfigError, match="prefix"):
        passed(alone, 1, batch, z, prefix=True)


def test_of_a_model_that_is_said_to_have_many_blocks_only_the_one_held_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An owner says how many there are: what is made for each would be memory for the asking."""
    made: list[int] = []
    own = BlockConditioning.__init__

    def counted(self: BlockConditioning, shape: Any, block: int, into_std: float) -> None:
        made.append(block)
        own(self, shape, block, into_std)

    monkeypatch.setattr(BlockConditioning, "__init__", counted)
    whole = network_of("tokens")
    cut = copy.deepcopy(whole.model)
    with_layers(cut, list(layers_of(cut))[:1])
    made.clear()
    hold_one(cut, whole.task, 7, tuple((layer,) for layer in range(4096)))
    assert made == [7]


def test_blocks_share_no_tensor_and_together_hold_all_layers() -> None:
    network = network_of("tokens")
    parts = [block_parameters(network, block) for block in range(3)]
    names = [name for part in parts for name in part]
    assert len(names) == len(set(names))
    prefix = layer_prefix(network.model)
    inside = {n for n, _ in network.model.named_parameters() if n.startswith(prefix)}
    assert {name for name in names if not name.startswith("blocks.")} == inside
    assert {n for n in names if n.startswith("blocks.")} == {
        name for name, _ in network.conditioning.named_parameters()
    }


@pytest.mark.parametrize("kind", CAUSAL)
def test_every_layer_has_two_norms_and_those_of_heads_are_left_alone(kind: str) -> None:
    assert {len(norms_of(layer, 16)) for layer in layers_of(build(kind, 2))} == {2}


def test_a_batch_of_another_kind_is_refused() -> None:
    network = network_of("tokens")
    with pytest.raises(ConfigError, match="not its own"):
        tasks.target_of(network.task, network.model, batch_of("classes"))
