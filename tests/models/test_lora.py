"""LoRA in the form that can be summed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from secagg.errors import ConfigError, UsageError
from secagg_models import arms, lora, train
from secagg_models.flatten import flatten, layout_of, unflatten
from tests.models.tiny import SHAPE, TINY


def _trained(model: Any, adapter: lora.Adapter, stream: Any, **changes: Any) -> dict[str, Any]:
    config = dataclasses.replace(TINY.stretch(0.05, 0, 3), **changes)
    train.train_update(model, adapter, [stream], config)
    return lora.delta_of(lora.trainable_state(model), adapter)


def test_the_drawn_a_has_orthonormal_rows_and_depends_on_the_seed_alone(
    tiny_model: Any, adapter: lora.Adapter
) -> None:
    again = lora.draw_adapter(tiny_model, SHAPE, seed=7)
    other = lora.draw_adapter(tiny_model, SHAPE, seed=8)
    for name, a in adapter.a.items():
        torch.testing.assert_close(a @ a.T, torch.eye(3), atol=1e-6, rtol=0)
        assert torch.equal(a, again.a[name])
        assert not torch.equal(a, other.a[name])


def test_a_fresh_adapter_leaves_the_model_as_it_was(
    tiny_model: Any, adapter: lora.Adapter, streams: list[Any]
) -> None:
    windows = streams[0].held_out_windows(4, 16)
    before = train.token_loss(tiny_model, windows, "float32").detach()
    after = train.token_loss(lora.attach(tiny_model, adapter), windows, "float32").detach()
    assert torch.equal(before, after)


def test_training_moves_b_alone_and_leaves_a_and_the_base_bit_identical(
    tiny_model: Any, adapter: lora.Adapter, streams: list[Any]
) -> None:
    model = lora.attach(tiny_model, adapter)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    delta = _trained(model, adapter, streams[0])
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if "lora_B" in n}
    assert sorted(delta) == sorted(adapter.b)
    assert all(part.abs().max() > 0 for part in delta.values())


def test_what_is_trained_lowers_the_loss(
    tiny_model: Any, adapter: lora.Adapter, streams: list[Any]
) -> None:
    model = lora.attach(tiny_model, adapter)
    losses = train.train_update(model, adapter, [streams[0]], TINY.stretch(1.0, 0, 6))
    assert losses[-1] < losses[0] - 0.05


def test_set_adapter_makes_a_trainable_again_and_is_caught(
    tiny_model: Any, adapter: lora.Adapter
) -> None:
    model = lora.attach(tiny_model, adapter)
    optimizer = torch.optim.AdamW(lora.trained_parameters(model))
    model.set_adapter("default")
    with pytest.raises(UsageError, match=r"lora_A.*is being trained"):
        lora.check_frozen(model, adapter, optimizer)
    lora.freeze_a(model)
    lora.check_frozen(model, adapter, optimizer)


def test_an_a_in_the_optimiser_is_caught(tiny_model: Any, adapter: lora.Adapter) -> None:
    model = lora.attach(tiny_model, adapter)
    everything = torch.optim.AdamW(model.parameters())
    with pytest.raises(UsageError, match="is being trained"):
        lora.check_frozen(model, adapter, everything)


def test_an_a_that_changed_by_one_bit_is_caught(tiny_model: Any, adapter: lora.Adapter) -> None:
    model = lora.attach(tiny_model, adapter)
    optimizer = torch.optim.AdamW(lora.trained_parameters(model))
    first = next(p for n, p in model.named_parameters() if "lora_A" in n)
    with torch.no_grad():
        first.view(torch.int32)[0, 0] ^= 1
    with pytest.raises(UsageError, match="no longer the A"):
        lora.check_frozen(model, adapter, optimizer)


def test_refactoring_keeps_the_product_and_makes_a_orthonormal(
    tiny_model: Any, adapter: lora.Adapter, streams: list[Any]
) -> None:
    model = lora.attach(tiny_model, adapter)
    summed = lora.add_delta(adapter, _trained(model, adapter, streams[0]))
    fresh = lora.refactor(summed)
    for name_b in summed.b:
        torch.testing.assert_close(
            fresh.product(name_b), summed.product(name_b), atol=1e-7, rtol=1e-5
        )
        a = fresh.a[name_b.replace("lora_B", "lora_A")]
        torch.testing.assert_close(a @ a.T, torch.eye(3), atol=1e-6, rtol=0)
        strengths = fresh.b[name_b].norm(dim=0)
        assert torch.all(strengths[:-1] >= strengths[1:] - 1e-6)


def test_the_server_rate_scales_what_the_round_learnt_and_not_what_was_there(
    tiny_model: Any, adapter: lora.Adapter, streams: list[Any]
) -> None:
    model = lora.attach(tiny_model, adapter)
    start = lora.add_delta(adapter, _trained(model, adapter, streams[0]))
    delta = _trained(model, start, streams[1])
    plain, faster = lora.next_round(start, delta), lora.next_round(start, delta, 1.5)
    for name in adapter.b:
        learnt = plain.product(name) - start.product(name)
        torch.testing.assert_close(
            faster.product(name), start.product(name) + 1.5 * learnt, atol=1e-6, rtol=1e-5
        )


def test_refactoring_an_unused_or_skewed_adapter_keeps_its_rank_and_product(
    adapter: lora.Adapter,
) -> None:
    assert all(torch.equal(b, torch.zeros_like(b)) for b in lora.refactor(adapter).b.values())
    skewed = dataclasses.replace(
        adapter,
        a={n: a * torch.tensor([[3.0], [0.5], [1.0]]) + 0.1 for n, a in adapter.a.items()},
        b={n: torch.arange(b.numel()).reshape(b.shape) / b.numel() for n, b in adapter.b.items()},
    )
    for name_b in skewed.b:
        torch.testing.assert_close(
            lora.refactor(skewed).product(name_b), skewed.product(name_b), atol=1e-5, rtol=1e-5
        )


def test_the_sum_of_flat_deltas_equals_the_dense_oracle(
    tiny_model: Any, adapter: lora.Adapter, streams: list[Any]
) -> None:
    """mean_i(scaling B_i A) computed densely per tenant, against what the summed vector gives."""
    model, weights = lora.attach(tiny_model, adapter), (3.0, 1.0, 2.0)
    deltas = [_trained(model, adapter, stream) for stream in streams]
    layout = layout_of(adapter.b)
    total = sum(
        w * flatten(d, layout).astype(np.float64) for w, d in zip(weights, deltas, strict=True)
    )
    merged = lora.next_round(adapter, unflatten(total / sum(weights), layout))
    for name_b in adapter.b:
        dense = sum(
            w * lora.add_delta(adapter, d).product(name_b)
            for w, d in zip(weights, deltas, strict=True)
        ) / sum(weights)
        assert float((merged.product(name_b) - dense).abs().max()) < 1e-6
    plain = lora.add_delta(adapter, arms.plain_mean(deltas, weights))
    assert all(torch.allclose(plain.product(n), merged.product(n), atol=1e-6) for n in adapter.b)


def test_a_tenant_of_lower_rank_exports_zeros_in_the_columns_that_it_does_not_train(
    tiny_model: Any, adapter: lora.Adapter, streams: list[Any]
) -> None:
    model = lora.attach(tiny_model, adapter)
    started = lora.next_round(adapter, _trained(model, adapter, streams[1]))
    delta = _trained(model, started, streams[0], columns=1)
    for part in delta.values():
        assert part[:, :1].abs().max() > 0
        assert torch.equal(part[:, 1:], torch.zeros_like(part[:, 1:]))


def test_mixed_ranks_sum_exactly(
    tiny_model: Any, adapter: lora.Adapter, streams: list[Any]
) -> None:
    model = lora.attach(tiny_model, adapter)
    deltas = [
        _trained(model, adapter, s, columns=c) for s, c in zip(streams, (1, 2, 3), strict=True)
    ]
    summed = lora.add_delta(adapter, arms.plain_mean(deltas, [1.0] * 3))
    for name_b in adapter.b:
        a = adapter.a[name_b.replace("lora_B", "lora_A")].double()
        dense = sum(2.0 * d[name_b].double() @ a for d in deltas) / 3
        assert float((summed.product(name_b) - dense).abs().max()) < 1e-6


def test_an_adapter_for_other_modules_is_refused_by_name(
    tiny_model: Any, adapter: lora.Adapter
) -> None:
    model = lora.attach(tiny_model, adapter)
    lost = next(iter(adapter.b))
    partial = lora.Adapter(
        adapter.shape,
        {n: a for n, a in adapter.a.items() if n != lost.replace("lora_B", "lora_A")},
        {n: b for n, b in adapter.b.items() if n != lost},
    )
    with pytest.raises(ConfigError, match=lost.replace(".", r"\.")):
        lora.install(model, partial)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ({"targets": ("nothing_proj",)}, "nothing_proj"),
        ({"rank": 17}, "16 inputs"),
    ],
)
def test_a_shape_that_the_model_cannot_have_is_refused(
    tiny_model: Any, shape: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        lora.draw_adapter(tiny_model, dataclasses.replace(SHAPE, **shape), seed=1)


def test_simulated_rounds_use_the_tenants_own_function_and_improve_on_the_base(
    tiny_model: Any, adapter: lora.Adapter, streams: list[Any]
) -> None:
    model = lora.attach(tiny_model, adapter)
    current = adapter
    for round_index in range(TINY.rounds):
        deltas = [arms.federated_round(model, current, s, TINY, 0.1, round_index) for s in streams]
        current = lora.next_round(current, arms.plain_mean(deltas, [1.0] * 3))
    for stream in streams:
        base = arms.loss_with(model, adapter, stream, TINY, 8)
        assert arms.loss_with(model, current, stream, TINY, 8) < base


def test_the_same_seed_gives_the_same_delta(
    tiny_model: Any, adapter: lora.Adapter, streams: list[Any]
) -> None:
    model = lora.attach(tiny_model, adapter)
    first, second, other = (
        flatten(_trained(model, adapter, streams[0], seed=seed), layout_of(adapter.b))
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 0}, {"rank": 2.0}, {"scaling": 0.0}, {"scaling": float("inf")}, {"targets": ()},
        {"targets": ("q_proj", "q_proj")}, {"layers": (1, 0)}, {"layers": (-1,)},
        {"extra": ("head.weight", "head.bias")}, {"extra": ("x.lora_B.weight",)},
    ],
)  # fmt: skip
def test_a_shape_that_is_none_is_refused_by_what_is_wrong(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"lora {next(iter(changes))}"):
        dataclasses.replace(SHAPE, **changes)


def test_a_layer_without_any_target_and_extra_tensors_that_are_not_there_are_refused(
    tiny_model: Any,
) -> None:
    with pytest.raises(ConfigError, match=r"layers \['model.layers.2.'\]: no target"):
        lora.draw_adapter(tiny_model, dataclasses.replace(SHAPE, layers=(0, 2)), seed=1)
    with pytest.raises(ConfigError, match=r"missing \['head.weight'\]"):
        lora.draw_adapter(tiny_model, dataclasses.replace(SHAPE, extra=("head.weight",)), seed=1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda a: {"b": {n: b[:-1] for n, b in a.b.items()}},
            r"q_proj has \(16, 16\).*\(15, 16\)",
        ),
        (
            lambda a: {
                "shape": dataclasses.replace(a.shape, extra=("model.norm.weight",)),
                "extra": {"model.norm.weight": torch.ones(7)},
            },
            r"model.norm.weight is \(16,\) in the model and \(7,\)",
        ),
    ],
)
def test_an_adapter_of_other_sizes_is_refused_by_name(
    tiny_model: Any, adapter: lora.Adapter, change: Any, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        lora.attach(tiny_model, dataclasses.replace(adapter, **change(adapter)))
