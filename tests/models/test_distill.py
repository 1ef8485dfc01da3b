"""Distillation trains the kept middle alone, towards the full middle, and survives being killed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from secagg.errors import ConfigError
from secagg_models import families, text
from secagg_models.base import model_digest
from secagg_models.distill import (
    Checkpoints,
    DistillationConfig,
    DistillationStep,
    Optimizer,
    distill,
    has_language_loss,
    relative_error,
)
from secagg_models.emulator import build_emulator, changed_outside_middle
from secagg_models.labelled import LabelledStream
from secagg_models.split import Split
from tests.models.families import CAUSAL, Classifier, build

SPLIT = Split.uniform(6, 1, 2)
CONFIG = DistillationConfig(
    steps=12, batch=2, context=16, lr=3e-3, warmup_steps=3, precision="float32"
)
STREAM = text.byte_stream("own", [text.SourceFile("x.py", b"def f(x): return x + 1\n" * 60)])


def labelled() -> LabelledStream:
    generator = np.random.default_rng(3)
    lengths = generator.integers(4, 17, size=40).astype(np.int32)
    ids = generator.integers(3, 200, size=(40, 16)).astype(np.int32)
    return LabelledStream("own", ids, lengths, np.zeros(40, np.int64))


def distilled(kind: str, config: DistillationConfig = CONFIG, **options: Any) -> tuple[Any, Any]:
    full = build(kind)
    emulator = build_emulator(full, SPLIT)
    return emulator, distill(full, emulator, SPLIT, STREAM, config, **options)


@pytest.mark.parametrize("kind", [kind for kind in CAUSAL if kind != "qwen2"])
def test_only_the_kept_middle_trains_and_comes_closer(kind: str) -> None:
    full = build(kind)
    before = model_digest(full.state_dict())
    emulator = build_emulator(full, SPLIT)
    start = {n: p.clone() for n, p in emulator.named_parameters()}
    run = distill(full, emulator, SPLIT, STREAM, replace(CONFIG, steps=30))
    assert model_digest(full.state_dict()) == before
    assert changed_outside_middle(full, emulator, SPLIT) == []
    prefix = families.layer_prefix(emulator)
    moved = {n for n, p in emulator.named_parameters() if not torch.equal(p, start[n])}
    assert {name.removeprefix(prefix)[0] for name in moved} == {"1", "2"}
    assert run.curve[-1].kd < 0.9 * run.curve[0].kd
    assert run.curve[-1].lm is not None
    assert not any(p.requires_grad for p in emulator.parameters())


def test_the_loss_is_the_published_one() -> None:
    teacher, student = torch.tensor([3.0, -4.0]), torch.tensor([2.0, -4.0])
    assert float(relative_error(teacher, student)) == pytest.approx(0.5 * 1 / 12.5)
    full = build("llama")
    emulator = build_emulator(full, SPLIT)
    seen: list[DistillationStep] = []
    distill(full, emulator, SPLIT, STREAM, replace(CONFIG, steps=1), on_progress=seen.append)
    windows = STREAM.windows_at(CONFIG.seed, 0, CONFIG.batch, CONFIG.context)
    plain = build_emulator(full, SPLIT)
    with torch.no_grad():
        states = full(windows[:, :-1], output_hidden_states=True).hidden_states
        own = plain(windows[:, :-1], output_hidden_states=True).hidden_states
        logits = plain(windows[:, :-1]).logits
    torch.testing.assert_close(states[1], own[1])  # one edge layer: the middle's input is the same
    assert seen[0].kd == pytest.approx(float(relative_error(states[5], own[3])), rel=1e-5)
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), windows[:, 1:])
    assert seen[0].lm == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_killed_run_goes_on_to_the_same_bits(optimizer: Optimizer, tmp_path: Path) -> None:
    config = replace(CONFIG, optimizer=optimizer, other_lr=1e-3)
    straight, curve = distilled("llama", config)
    kept = Checkpoints(tmp_path / "run", {"full_digest": "x"}, every=5)

    class Killed(Exception):
        pass

    def killer(step: DistillationStep) -> None:
        if step.step == 8:
            raise Killed

    with pytest.raises(Killed):
        distilled("llama", config, checkpoints=kept, on_progress=killer)
    steps: list[int] = []
    again, resumed = distilled(
        "llama", config, checkpoints=kept, on_progress=lambda step: steps.append(step.step)
    )
    assert steps == [6, 7, 8, 9, 10, 11, 12]
    assert model_digest(again.state_dict()) == model_digest(straight.state_dict())
    assert resumed.curve == curve.curve
    done, same = distilled("llama", config, checkpoints=kept, on_progress=killer)
    assert model_digest(done.state_dict()) == model_digest(straight.state_dict())
    assert same.curve == curve.curve


def test_another_runs_checkpoint_is_refused_with_what_differs(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, {"full_digest": "x"}, every=5)
    distilled("llama", checkpoints=kept)
    with pytest.raises(ConfigError, match=r"differs in lr, seed; remove it"):
        distilled("llama", replace(CONFIG, lr=1.0, seed=2), checkpoints=kept)
    with pytest.raises(ConfigError, match="differs in full_digest"):
        distilled("llama", checkpoints=replace(kept, identity={"full_digest": "y"}))


@pytest.mark.parametrize("spoilt", ["{", "{}", '{"identity": 3}', "[]"])
def test_a_spoilt_checkpoint_is_refused(spoilt: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.json").write_text(spoilt)
    with pytest.raises(ConfigError, match="remove"):
        distilled("llama", checkpoints=Checkpoints(tmp_path, {}))


def test_a_checkpoint_whose_tensors_are_gone_is_refused(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, {})
    distilled("llama", checkpoints=kept)
    (tmp_path / "step-12.safetensors").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        distilled("llama", checkpoints=kept)


def test_an_encoder_has_no_language_loss_and_padding_does_not_count() -> None:
    stream = labelled()
    full = Classifier(build("bert")).eval()
    assert not has_language_loss(full)
    assert has_language_loss(build("opt"))
    emulator = build_emulator(full, SPLIT)
    run = distill(full, emulator, SPLIT, stream, replace(CONFIG, steps=30))
    assert run.config.lm_weight == 0.0
    assert all(step.lm is None for step in run.curve)
    assert run.curve[-1].kd < 0.9 * run.curve[0].kd
    assert changed_outside_middle(full, emulator, SPLIT) == []
    other = replace(stream, pad=7)
    assert (
        stream.windows_at(1, 0, 2, 16).input_ids.ne(other.windows_at(1, 0, 2, 16).input_ids).any()
    )
    twin = build_emulator(full, SPLIT)
    same = distill(full, twin, SPLIT, other, replace(CONFIG, steps=30))
    assert [s.kd for s in same.curve] == pytest.approx([s.kd for s in run.curve], rel=1e-4)


def test_an_encoder_without_a_head_is_distilled_on_tokens() -> None:
    _, run = distilled("roberta", replace(CONFIG, context=16))
    assert run.curve[-1].lm is None
    assert run.curve[-1].kd < run.curve[0].kd


def test_a_middle_of_mixed_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match="mixes full and sliding"):
        distilled("qwen2")


def test_the_rate_rises_and_falls_as_said() -> None:
    config = replace(CONFIG, steps=100, warmup_steps=4, final_share=0.1)
    assert config.factor(0) == pytest.approx(0.25)
    assert config.factor(50) == pytest.approx(0.55)
    assert config.factor(100) == pytest.approx(0.1)
    json.dumps(config.to_json())


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", -1), ("batch", 0), ("lr", 0.0), ("lr", float("nan")), ("kd_weight", -1.0),
     ("optimizer", "sgd"), ("other_lr", 0.0)],
)  # fmt: skip
def test_numbers_that_cannot_work_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="distillation"):
        replace(CONFIG, **{name: value})
