"""Both kinds of update behave alike where the protocol and the nodes look."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from secagg.errors import ConfigError, UsageError
from secagg_models import lora, train, updates
from secagg_models.base import model_digest
from secagg_models.families import layer_prefix
from secagg_models.flatten import flatten, unflatten
from secagg_models.labelled import LabelledStream
from secagg_models.text import TokenStream
from tests.models.emulators import KINDS, TARGETS, Pair, moved, noise, pair
from tests.models.tiny import TINY


def _digest(model: Any) -> str:
    return model_digest(model.state_dict())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", TARGETS)
def test_attached_trained_and_detached_a_model_is_what_it_was_bit_for_bit(
    family: str, kind: str
) -> None:
    made = pair(family)
    before, start = _digest(made.emulator), made.start(kind)
    for _ in range(2):
        own = updates.own_tensors(made.emulator, start)
        attached = updates.attach(made.emulator, start)
        updates.install(attached, moved(start, 1))
        assert updates.detach(attached, own) is made.emulator
        assert _digest(made.emulator) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", TARGETS)
def test_a_fresh_update_leaves_what_the_model_computes_as_it_was(family: str, kind: str) -> None:
    made = pair(family)
    before = _output(made.emulator)
    assert torch.equal(_output(updates.attach(made.emulator, made.start(kind))), before)


@torch.no_grad()
def _output(model: Any) -> torch.Tensor:
    ids = torch.randint(3, 259, (2, 9), generator=torch.Generator().manual_seed(1))
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return output if isinstance(output, torch.Tensor) else output.logits


@pytest.mark.parametrize("family", TARGETS)
def test_lora_lies_in_the_edge_layers_alone(family: str) -> None:
    made = pair(family)
    start = made.start("lora")
    prefix = layer_prefix(made.emulator)
    layers = {lora.module_of(n).removeprefix(prefix).split(".")[0] for n in start.trained
              if "lora_" in n}  # fmt: skip
    assert layers == {"0", "3"}
    attached = updates.attach(made.emulator, start)
    inside = {n for n, p in attached.named_parameters() if p.requires_grad}
    assert all(f"{prefix}0." in n or f"{prefix}3." in n or ".head." in n for n in inside)
    assert len(inside) == len(start.trained)


def test_the_modules_are_the_models_own_however_many_layers_share_their_last_digit() -> None:
    """Layers 1 and 11 of twelve: matching by suffix or by a number's beginning would mix them."""
    made = pair(
        "llama", dataclasses.replace(pair("llama").split, layers=13, kept=tuple(range(1, 12)))
    )
    shape = lora.LoraShape(2, 1.0, TARGETS["llama"], (1, 12))
    start = updates.start(made.emulator, shape, 1)
    attached = updates.attach(made.emulator, start)
    numbers = {n.split("layers.")[1].split(".")[0] for n, p in attached.named_parameters()
               if p.requires_grad}  # fmt: skip
    assert numbers == {"1", "12"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", TARGETS)
def test_an_update_survives_its_file_bit_for_bit(family: str, kind: str) -> None:
    update = moved(pair(family).start(kind), 2)
    back = updates.load(updates.save(update), update.shape)
    assert back.shape == update.shape
    assert all(torch.equal(back.trained[n], t) for n, t in update.trained.items())
    assert updates.save(back) == updates.save(update)


def _changed(update: updates.Update, part: str, change: Any) -> bytes:
    tensors = load_tensors(updates.save(update))
    name = next(n for n in sorted(tensors) if part in n)
    tensors[name] = change(tensors[name]).contiguous()
    return save_tensors(tensors)


@pytest.mark.parametrize(
    ("kind", "part", "change", "says"),
    [
        ("lora", "lora_A", lambda t: t * 2, "lora_A.* not orthonormal"),
        ("lora", "lora_A", lambda t: t[:2], "rank 3 was expected"),
        ("lora", "lora_B", lambda t: t[:, :2], "rank 3 was expected"),
        ("lora", "lora_B", lambda t: t[0], "lora_B.* is no matrix"),
        ("lora", "lora_B", lambda t: t / 0, "lora_B.* is not finite float32"),
        ("lora", "lora_B", lambda t: t.double(), "lora_B.* is not finite float32"),
        ("lora", "head", lambda t: t.half(), "head.bias is not finite float32"),
        ("edges", "output", lambda t: t * torch.inf, "is not finite float32"),
        ("edges", "head", lambda t: t.bfloat16(), "head.bias is not finite float32"),
    ],
)
def test_a_changed_tensor_is_refused_by_name(kind: str, part: str, change: Any, says: str) -> None:
    update = moved(pair("classifier").start(kind), 2)
    with pytest.raises(ConfigError, match=says):
        updates.load(_changed(update, part, change), update.shape)


def test_a_missing_or_foreign_tensor_and_a_cut_file_are_refused() -> None:
    start = pair("classifier").start("lora")
    tensors = load_tensors(updates.save(start))
    first = next(iter(start.trained))
    for data in (
        save_tensors({n: t for n, t in tensors.items() if n != first}),
        save_tensors({n: t for n, t in tensors.items() if n != "head.bias"}),
        save_tensors({**tensors, "extra": torch.ones(1)}),
        save_tensors({}),
        updates.save(start)[:-1],
        b"",
    ):
        with pytest.raises(ConfigError, match=r"update|adapter"):
            updates.load(data, start.shape)


def _labelled() -> LabelledStream:
    ids = np.random.default_rng(1).integers(3, 259, (12, 9)).astype(np.int32)
    return LabelledStream("a", ids, np.full(12, 9, np.int32), np.arange(12) % 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifiers_head_is_trained_with_either_kind(kind: str) -> None:
    made = pair("classifier")
    start = made.start(kind)
    attached = updates.attach(made.emulator, start)
    frozen = {n: p.detach().clone() for n, p in attached.named_parameters() if not p.requires_grad}
    train.train_update(attached, start, [_labelled()], TINY.stretch(0.05, 0, 3))
    delta = updates.delta_of(updates.state(attached, start), start)
    assert {"head.weight", "head.bias"} <= delta.keys()
    assert all(part.abs().max() > 0 for n, part in delta.items() if "key.bias" not in n)
    assert all(torch.equal(p, frozen[n]) for n, p in attached.named_parameters() if n in frozen)


def test_refactoring_leaves_the_head_where_the_mean_put_it() -> None:
    start = pair("classifier").start("lora")
    mean = noise(start, 3)
    after = updates.next_round(start, mean, 2.0)
    for name in ("head.weight", "head.bias"):
        torch.testing.assert_close(after.trained[name], start.trained[name] + 2 * mean[name])


def _deltas(
    made: Pair, start: updates.Update, streams: list[TokenStream], ranks: tuple[int | None, ...]
) -> list[dict[str, torch.Tensor]]:
    """What tenants of these ranks export."""
    attached = updates.attach(made.emulator, start)
    found = []
    for stream, rank in zip(streams, ranks, strict=True):
        config = dataclasses.replace(TINY.stretch(0.05, 0, 3), columns=rank, weight_decay=0.1)
        train.train_update(attached, start, [stream], config)
        found.append(updates.delta_of(updates.state(attached, start), start))
    return found


@pytest.mark.parametrize("ranks", [(None, None, None), (1, 3, 2)])
def test_what_is_summed_flat_equals_the_dense_oracle(
    streams: list[TokenStream], ranks: tuple[int | None, ...]
) -> None:
    """The weighted mean of every tenant's dense dW = scaling B_i A in float64, to 1e-6."""
    made, weights = pair("llama"), (3.0, 1.0, 2.0)
    start = moved(made.start("lora"), 5)
    deltas = _deltas(made, start, streams, ranks)
    layout = updates.delta_layout(start)
    total = np.zeros(layout.size)
    for weight, delta in zip(weights, deltas, strict=True):
        total += weight * flatten(delta, layout).astype(np.float64)
    after = updates.next_round(start, unflatten(total / sum(weights), layout))
    assert isinstance(after, lora.Adapter)
    assert isinstance(start, lora.Adapter)
    for name in start.trained:
        a = start.a[name.replace("lora_B", "lora_A")].double()
        own = [2.0 * (start.b[name] + delta[name]).double() @ a for delta in deltas]
        dense = sum(w * part for w, part in zip(weights, own, strict=True)) / sum(weights)
        assert float((after.product(name) - dense).abs().max()) < 1e-6


def test_a_tenants_rank_shows_in_nothing_but_zeros(streams: list[TokenStream]) -> None:
    made = pair("llama")
    start = moved(made.start("lora"), 5)
    layout = updates.delta_layout(start)
    deltas = _deltas(made, start, streams, (1, 2, None))
    vectors = [flatten(delta, layout) for delta in deltas]
    assert {(v.shape, v.dtype) for v in vectors} == {((layout.size,), np.dtype(np.float32))}
    for delta, rank in zip(deltas, (1, 2, 3), strict=True):
        for part in delta.values():
            assert part.shape[1] == 3
            assert part[:, :rank].abs().max() > 0
            assert not part[:, rank:].any()


@pytest.mark.parametrize(("kind", "columns"), [("lora", 4), ("edges", 1)])
def test_columns_that_an_update_does_not_have_are_refused(
    streams: list[TokenStream], kind: str, columns: int
) -> None:
    made = pair("llama")
    start = made.start(kind)
    attached = updates.attach(made.emulator, start)
    config = dataclasses.replace(TINY.stretch(0.05, 0, 1), columns=columns)
    with pytest.raises(ConfigError, match="columns"):
        train.train_update(attached, start, [streams[0]], config)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_models_with_dropout_learn_the_same_at_every_call(
    streams: list[TokenStream], family: str, kind: str
) -> None:
    made = pair(family)
    start = made.start(kind)
    attached = updates.attach(made.emulator, start)
    states = []
    for _ in range(2):
        train.train_update(attached, start, [streams[0]], TINY.stretch(0.01, 0, 2))
        states.append(updates.state(attached, start))
    assert all(torch.equal(states[0][n], states[1][n]) for n in start.trained)


def test_a_residual_carried_over_a_refactoring_means_the_same() -> None:
    old = pair("classifier").start("lora")
    residual = noise(old, 3)
    new = moved(old, 4)
    assert isinstance(old, lora.Adapter)
    assert isinstance(new, lora.Adapter)
    carried = updates.carry_residual(residual, old, new)
    for name in residual:
        if "lora_B" not in name:
            assert torch.equal(carried[name], residual[name])
            continue
        pair_name = name.replace("lora_B", "lora_A")
        torch.testing.assert_close(
            carried[name] @ new.a[pair_name], residual[name] @ old.a[pair_name], atol=1e-6, rtol=0
        )


def test_a_residual_of_edge_layers_stays_and_one_of_another_kind_is_refused() -> None:
    made = pair("llama")
    start = made.start("edges")
    residual = noise(start, 3)
    assert updates.carry_residual(residual, start, moved(start, 1)) == residual
    with pytest.raises(ConfigError, match="other tensors"):
        updates.carry_residual(residual, start, made.start("lora"))
    with pytest.raises(ConfigError, match="one kind"):
        updates.carry_residual(residual, made.start("lora"), start)


@pytest.mark.parametrize("kind", KINDS)
def test_a_delta_of_other_tensors_is_refused_by_name(kind: str) -> None:
    start = pair("llama").start(kind)
    first = next(iter(start.trained))
    for broken in (
        {n: t for n, t in start.trained.items() if n != first},
        start.trained | {first: torch.ones(1)},
    ):
        for refuses in (updates.delta_of, lambda d, u: updates.next_round(u, d)):
            with pytest.raises(ConfigError, match=first.replace(".", r"\.")):
                refuses(broken, start)


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_of_another_model_is_refused_before_anything_changes(kind: str) -> None:
    made, other = pair("llama"), pair("opt")
    before = _digest(other.emulator)
    for refuses in (updates.refuse_foreign, updates.attach):
        with pytest.raises(ConfigError):
            refuses(other.emulator, made.start(kind))
    assert _digest(other.emulator) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_version_of_other_tensors_than_the_attached_ones_is_refused(kind: str) -> None:
    made = pair("llama")
    start = made.start(kind)
    attached = updates.attach(made.emulator, start)
    updates.refuse_foreign(attached, moved(start, 1))
    with pytest.raises(ConfigError):
        updates.refuse_foreign(attached, pair("opt").start(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_drawn_from_or_attached_to_a_model_that_has_an_adapter(kind: str) -> None:
    """PEFT wraps in place: the names of the bare model are others then."""
    made = pair("llama")
    shape, start = made.shape(kind), made.start(kind)
    updates.attach(made.emulator, made.start("lora"))
    with pytest.raises(UsageError, match="in the model already"):
        updates.start(made.emulator, shape, 1)
    with pytest.raises(UsageError, match="in the model already"):
        updates.attach(made.emulator, start)


def test_set_adapter_makes_a_trainable_beside_a_head_too_and_installing_mends_it() -> None:
    made = pair("classifier")
    start = made.start("lora")
    attached = updates.attach(made.emulator, start)
    optimizer = torch.optim.AdamW(updates.trained_parameters(attached, start))
    wanted = {n for n, p in attached.named_parameters() if p.requires_grad}
    attached.set_adapter("default")
    with pytest.raises(UsageError, match=r"lora_A.* is being trained"):
        updates.check_frozen(attached, start, optimizer)
    updates.install(attached, moved(start, 1))
    assert {n for n, p in attached.named_parameters() if p.requires_grad} == wanted
    assert {n.rpartition(".head.")[2] for n in wanted if ".head." in n} == {"bias", "weight"}
