"""Training and measuring."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from secagg.errors import ConfigError
from secagg_models import arms, attention, lora, text, train
from tests.models.tiny import TINY


def test_evaluation_is_the_same_at_every_call_and_between_processes_of_equal_weights(
    tiny_model: Any, streams: list[text.TokenStream]
) -> None:
    first = train.evaluate(tiny_model, streams[0], context=16, max_windows=5, precision="float32")
    again = train.evaluate(tiny_model, streams[0], context=16, max_windows=5, precision="float32")
    assert first == again
    assert 4.5 < first < 6.5  # an untrained model: about ln 264


def test_nats_per_byte_divide_by_the_bytes_of_a_token(
    tiny_model: Any, streams: list[text.TokenStream]
) -> None:
    double = dataclasses.replace(streams[0], bytes_per_token=2.0)
    one, half = (train.evaluate(tiny_model, s, context=16) for s in (streams[0], double))
    assert half == pytest.approx(one / 2)


def test_chunked_attention_gives_what_transformers_own_gives(tiny_model: Any) -> None:
    windows = torch.randint(3, 259, (2, 30), generator=torch.Generator().manual_seed(1))
    tiny_model.set_attn_implementation("sdpa")
    usual = tiny_model(input_ids=windows, use_cache=False).logits
    tiny_model.set_attn_implementation(attention.NAME)
    chunked = tiny_model(input_ids=windows, use_cache=False).logits
    torch.testing.assert_close(chunked, usual, atol=1e-5, rtol=1e-4)


def test_centralised_steps_take_the_same_windows_as_the_tenants_do(
    tiny_model: Any, adapter: lora.Adapter, streams: list[text.TokenStream]
) -> None:
    """One step from the same start: the centralised gradient is the mean of the tenants'."""
    model = lora.attach(tiny_model, adapter)
    first = train.train_update(model, adapter, streams, TINY.stretch(0.1, 0, 1))[0]
    own = [train.train_update(model, adapter, [s], TINY.stretch(0.1, 0, 1))[0] for s in streams]
    assert first == pytest.approx(sum(own) / 3, abs=1e-5)


def test_rounds_are_stretches_of_one_schedule() -> None:
    config = TINY.stretch(1.0, 3, 3)
    whole = [config.schedule.factor(step) for step in range(6)]
    assert config.first_step == 3
    assert config.schedule.total_steps == 6
    assert whole[0] < whole[2]
    assert whole == [
        train.Schedule(6, 4, TINY.decay_share, TINY.final_share).factor(step) for step in range(6)
    ]


def test_the_schedule_warms_up_holds_and_decays_to_its_share() -> None:
    schedule = train.Schedule(total_steps=100, warmup_steps=4, decay_share=0.5, final_share=0.1)
    assert [schedule.factor(s) for s in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert schedule.factor(50) == 1
    assert schedule.factor(75) == pytest.approx(0.55)
    assert schedule.factor(100) == pytest.approx(0.1)


def test_local_only_is_centralised_with_one_tenant(
    tiny_model: Any, adapter: lora.Adapter, streams: list[text.TokenStream]
) -> None:
    model = lora.attach(tiny_model, adapter)
    local = arms.local_only(model, adapter, streams[1], TINY, 0.05)
    central = arms.centralised(model, adapter, [streams[1]], TINY, 0.05)
    assert all(torch.equal(local.b[n], central.b[n]) for n in local.b)


def test_progress_is_reported_step_by_step(
    tiny_model: Any, adapter: lora.Adapter, streams: list[text.TokenStream]
) -> None:
    seen: list[tuple[int, int]] = []
    model = lora.attach(tiny_model, adapter)
    arms.federated_round(
        model, adapter, streams[0], TINY, 0.05, 1, lambda done, of, loss: seen.append((done, of))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("clause", ["steps", "batch", "context", "lr"])
def test_a_training_without_work_is_refused_by_clause(clause: str) -> None:
    with pytest.raises(ConfigError, match=clause):
        dataclasses.replace(TINY.stretch(0.1, 0, 1), **{clause: 0})
