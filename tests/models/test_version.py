"""The adapter file: what is written is read, and nothing else is."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from safetensors.torch import save

from secagg.errors import ConfigError
from secagg_models import lora
from secagg_models.version import AdapterMeta, carry_residual, load_adapter, save_adapter
from tests.models.tiny import TINY


def test_an_adapter_survives_the_file_bit_for_bit(adapter: lora.Adapter) -> None:
    back = load_adapter(save_adapter(adapter), adapter.shape)
    assert all(torch.equal(back.a[n], adapter.a[n]) for n in adapter.a)
    assert all(torch.equal(back.b[n], adapter.b[n]) for n in adapter.b)


def _with(adapter: lora.Adapter, kind: str, change: Any) -> bytes:
    tensors = {**adapter.a, **adapter.b}
    name = next(n for n in sorted(tensors) if kind in n)
    tensors[name] = change(tensors[name].clone()).contiguous()
    return save(tensors)


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("lora_A", lambda t: t * 2, "not orthonormal"),
        ("lora_A", lambda t: t[:2], "rank 3 was expected"),
        ("lora_B", lambda t: t[:, :2], "rank 3 was expected"),
        ("lora_B", lambda t: t / 0, "not a finite float32 matrix"),
        ("lora_B", lambda t: t.double(), "not a finite float32 matrix"),
    ],
)
def test_a_changed_tensor_is_refused_by_name(
    adapter: lora.Adapter, kind: str, change: Any, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        load_adapter(_with(adapter, kind, change), adapter.shape)


def test_a_missing_or_foreign_tensor_and_a_cut_file_are_refused(adapter: lora.Adapter) -> None:
    whole = save_adapter(adapter)
    first = next(iter(adapter.b))
    for data in (
        save({**adapter.a, **{n: b for n, b in adapter.b.items() if n != first}}),
        save({**adapter.a, **adapter.b, "extra": torch.ones(1)}),
        whole[:-1],
        b"",
    ):
        with pytest.raises(ConfigError, match="adapter"):
            load_adapter(data, adapter.shape)


def test_a_manifest_is_read_back_exactly_and_unknown_keys_are_refused() -> None:
    meta = AdapterMeta("ab" * 32, TINY.shape, TINY.stretch(0.1, 3, 3))
    assert AdapterMeta.from_json(meta.to_json()) == meta
    for broken in (
        meta.to_json() | {"more": 1},
        {k: v for k, v in meta.to_json().items() if k != "shape"},
        meta.to_json() | {"kind": "emulator"},
    ):
        with pytest.raises(ConfigError):
            AdapterMeta.from_json(broken)


def test_a_residual_carried_over_a_refactoring_means_the_same(adapter: lora.Adapter) -> None:
    generator = torch.Generator().manual_seed(3)
    noise = {n: torch.randn(b.shape, generator=generator) for n, b in adapter.b.items()}
    old = lora.add_delta(adapter, noise)
    new = lora.refactor(old)
    carried = carry_residual(noise, old, new)
    before = dataclasses.replace(old, b=noise)
    after = dataclasses.replace(new, b=carried)
    for name in noise:
        torch.testing.assert_close(after.product(name), before.product(name), atol=1e-5, rtol=1e-4)
