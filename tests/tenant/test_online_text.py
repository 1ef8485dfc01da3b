"""Online use with text: new files are found, measured once, and trained on from then."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

from secagg_models import lora, updates
from secagg_models.base import Base, load_base
from secagg_models.text import TokenStream
from secagg_tenant.config import LoraTraining, Model, OnlineTable, PolicyTable
from secagg_tenant.measuring import Measuring
from secagg_tenant.trainer import ModelVersion
from secagg_tenant.update_trainer import UpdateTrainer
from tests.tenant.forecasts import signed_over

LORA = lora.LoraShape(2, 2.0, ("q_proj", "down_proj"))
FILES, LENGTH = 40, 33
"""A file is one window of 32 tokens with what it predicts."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=384, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    ByT5Tokenizer().save_pretrained(folder)
    return load_base(str(folder))


def write(folder: Path, first: int, count: int) -> None:
    for number in range(first, first + count):
        (folder / f"m{number:03}.py").write_text(f"def f{number:03}(): pass\n".ljust(LENGTH, "#"))


def measuring_of(base: Base, folder: Path) -> tuple[Measuring, ModelVersion]:
    (folder / "text").mkdir()
    write(folder / "text", 0, FILES)
    training = LoraTraining(trainer="lora", text=folder / "text")
    model = Model(base=base.source, base_digest=base.digest)
    policy = PolicyTable(roster_digest="00" * 32)
    trainer = UpdateTrainer(training, model, policy, "ada", growing=True)
    table = OnlineTable(held_out_windows=12, memory_windows=8, arrival_windows=16)
    manifest, files = signed_over(base, updates.start(base.model, LORA, 1))
    (folder / "version").mkdir()
    for name, data in files.items():
        (folder / "version" / name).write_bytes(data)
    version = ModelVersion(1, manifest, folder / "version")
    return Measuring(trainer, table, folder / "online"), version


def trained_on(measuring: Measuring) -> int:
    stream = measuring.trainer._stream("train")
    assert isinstance(stream, TokenStream)
    return len(stream.ids)


def test_new_files_are_measured_once_and_are_in_the_training_text_from_then(
    base: Base, tmp_path: Path
) -> None:
    measuring, version = measuring_of(base, tmp_path)
    assert measuring.look(version, None).fresh == 16
    assert measuring.look(version, None).fresh == 0
    before = trained_on(measuring)
    write(tmp_path / "text", FILES, 5)
    assert measuring.look(version, None).fresh == 5
    assert trained_on(measuring) > before


def test_a_first_version_that_changes_nothing_is_approved_against_the_bare_base(
    base: Base, tmp_path: Path
) -> None:
    measuring, version = measuring_of(base, tmp_path)
    found = measuring.compare(None, version)
    assert found.verdict == "undecided"  # the few held-out files hold fewer than eight windows
    write(tmp_path / "text", FILES, 80)
    measuring.trainer.reread()
    found = measuring.compare(None, version)
    assert found.held_out.verdict == "approved"
    assert found.held_out.difference == 0
