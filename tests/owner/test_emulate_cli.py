"""`secagg owner emulate` makes signed packages, goes on after a kill, and says what cannot work."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertTokenizer,
    ByT5Tokenizer,
    GPTNeoConfig,
    GPTNeoForCausalLM,
)

from secagg.errors import ConfigError
from secagg_models.classifier import EncoderClassifier, save_classifier
from secagg_models.distill import DistillationConfig
from secagg_models.emulator import changed_outside_middle
from secagg_models.package import load_full_model
from secagg_models.split import Split
from secagg_owner import cli, emulating
from secagg_owner.emulator_package import read_emulator_package
from secagg_wire.enrol import create_keys
from secagg_wire.key_files import KeyFiles, Party
from tests.models.families import build

SOURCE = "def function_{0}(value):\n    '''Return value plus {0}.'''\n    return value + {0}\n\n\n"
PROSE = "The quick brown fox number {0} jumps over the lazy dog and then sleeps until noon.\n\n"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("owner") / "model"
    build("llama").to(torch.bfloat16).save_pretrained(folder)
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def own_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for number in range(40):
        (folder / f"m{number}.py").write_text(SOURCE.format(number) * 20)
        (folder / f"p{number}.txt").write_text(
            "".join(PROSE.format(number * 10 + i) for i in range(4))
        )
    return folder


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyFiles:
    return create_keys(tmp_path_factory.mktemp("keys") / "owner", Party("owner", "acme"))


Emulate = Callable[..., dict[str, Any]]


@pytest.fixture
def emulate(
    model: Path, own_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Emulate:
    def run(*more: str, source: Path | str = model, edge: int = 1, keep: int = 2) -> dict[str, Any]:
        out = tmp_path / "emulator"
        arguments = [
            "emulate", str(source), "--edge", str(edge), "--keep", str(keep), "--out", str(out),
            "--text", str(own_text), "--steps", "6", "--batch", "2", "--context", "16",
            "--precision", "float32", "--format", "json", *more,
        ]  # fmt: skip
        if not {"--keys", "--unsigned"} & set(more):
            arguments.append("--unsigned")
        assert cli.main(arguments) == 0
        (row,) = json.loads(capsys.readouterr().out)
        return dict(row)

    return run


def test_a_package_is_signed_distilled_and_has_the_owners_edges(
    emulate: Emulate, keys: KeyFiles, model: Path, tmp_path: Path
) -> None:
    row = emulate("--keys", str(keys.directory))
    public_key = keys.identity().public_key
    package = read_emulator_package(
        tmp_path / "emulator", public_key, bytes.fromhex(row["manifest_sha256"])
    )
    full = load_full_model(str(model))
    assert row["signed"] is True
    assert row["owner_key"] == public_key.hex()
    assert row["full_digest"] == full.digest
    assert row["kept"] == [1, 4]
    assert row["kd"] > 0
    meta = package.emulator.meta
    assert meta.distillation is not None
    assert meta.distillation["steps"] == 6
    assert changed_outside_middle(full.model, package.emulator.model, Split(6, 1, (1, 4))) == []
    assert [path.name for path in tmp_path.iterdir()] == ["emulator"]


def test_a_run_that_was_stopped_makes_the_package_of_one_that_was_not(
    emulate: Emulate, model: Path, own_text: Path, tmp_path: Path
) -> None:
    straight = emulate()
    config = DistillationConfig(
        steps=6, batch=2, context=16, lr=1e-3, other_lr=1e-3, precision="float32"
    )
    wanted = emulating.Emulation(
        str(model), 1, 2, tmp_path / "stopped", config, text=own_text, checkpoint_every=2
    )
    steps: list[int] = []

    class Stopped(Exception):
        pass

    def watch(name: str, **fields: Any) -> None:
        if name != "distilling":
            return
        steps.append(fields["step"])
        if len(steps) == 5:
            raise Stopped

    with pytest.raises(Stopped):
        emulating.emulate(wanted, watch)
    assert not wanted.out.exists()
    assert wanted.checkpoints.exists()
    resumed = emulating.emulate(wanted, watch)
    assert steps == [1, 2, 3, 4, 5, 5, 6]
    assert resumed | {"package": ""} == straight | {"package": ""}
    assert not wanted.checkpoints.exists()


def test_a_package_that_was_distilled_before_is_signed_as_it_is(
    emulate: Emulate, keys: KeyFiles, model: Path, tmp_path: Path, capsys: Any
) -> None:
    before = emulate()
    command = [
        "emulate", str(model), "--from", before["package"], "--keys", str(keys.directory),
        "--out", str(tmp_path / "signed"), "--format", "json",
    ]  # fmt: skip
    assert cli.main(command) == 0
    (after,) = json.loads(capsys.readouterr().out)
    assert (before["signed"], after["signed"]) == (False, True)
    assert after["owner_key"] == keys.identity().public_key.hex()
    for same in ("emulator_digest", "full_digest", "kept", "values_outside_middle"):
        assert after[same] == before[same]
    read_emulator_package(tmp_path / "signed", keys.identity().public_key)


def test_a_package_of_another_model_is_not_signed(
    emulate: Emulate, keys: KeyFiles, tmp_path: Path
) -> None:
    before = emulate()
    other = build("llama")
    with torch.no_grad():
        other.model.norm.weight.add_(1)
    other.save_pretrained(tmp_path / "other")
    ByT5Tokenizer(extra_ids=0).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="was made from the model"):
        emulating.take_over(
            str(tmp_path / "other"), Path(before["package"]), tmp_path / "signed", keys.identity()
        )
    assert not (tmp_path / "signed").exists()


def test_another_runs_checkpoint_is_not_gone_on_from(emulate: Emulate, tmp_path: Path) -> None:
    emulate("--seed", "3")
    kept = tmp_path / "emulator.distilling"
    (tmp_path / "emulator").rename(tmp_path / "first")
    kept.mkdir()
    state = {"identity": {"seed": 4}, "step": 1, "curve": []}
    (kept / "checkpoint.json").write_text(json.dumps(state))
    with pytest.raises(ConfigError, match=r"emulator\.distilling holds the checkpoint of another"):
        emulate("--seed", "3")


def test_layers_are_chosen_by_what_the_owners_text_loses_without_them(
    emulate: Emulate, tmp_path: Path
) -> None:
    row = emulate("--layers", "importance")
    kept = row["kept"]
    assert len(kept) == 2
    assert set(kept) <= {1, 2, 3, 4}


def test_without_distillation_the_package_says_that_its_layers_are_verbatim(
    emulate: Emulate, tmp_path: Path
) -> None:
    row = emulate("--steps", "0")
    assert "kd" not in row
    package = read_emulator_package(tmp_path / "emulator")
    assert package.emulator.meta.distillation is None
    assert "verbatim" in (tmp_path / "emulator" / "README.md").read_text()
    with pytest.raises(ConfigError, match="not signed"):
        read_emulator_package(tmp_path / "emulator", bytes(32))


@pytest.mark.parametrize("pattern", ["**/*.txt", "**/*.py"])
def test_a_classifier_is_distilled_on_paragraphs_without_labels(
    pattern: str, emulate: Emulate, own_text: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "classifier"
    save_classifier(EncoderClassifier(build("bert"), ["a", "b", "c"]), folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(set(PROSE.lower().split()))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(folder)
    if pattern == "**/*.py":
        with pytest.raises(ConfigError, match="no paragraph"):
            emulate("--pattern", pattern, source=folder)
        return
    row = emulate("--pattern", pattern, source=folder)
    assert row["task"] == "classification"
    assert "lm" not in row
    assert 0 <= row["agreement"] <= 1


def test_an_encoder_without_a_head_is_refused(emulate: Emulate, tmp_path: Path) -> None:
    build("bert").save_pretrained(tmp_path / "bert")
    ByT5Tokenizer(extra_ids=0).save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match="without a task"):
        emulate(source=tmp_path / "bert")


def test_a_model_of_no_supported_family_is_refused_with_those_that_are(
    emulate: Emulate, tmp_path: Path
) -> None:
    config = GPTNeoConfig(
        vocab_size=264, hidden_size=8, num_layers=2, attention_types=[[["global"], 2]], num_heads=2
    )
    GPTNeoForCausalLM(config).save_pretrained(tmp_path / "neo")
    ByT5Tokenizer(extra_ids=0).save_pretrained(tmp_path / "neo")
    with pytest.raises(ConfigError, match=r"'gpt_neo' cannot be split; supported are llama"):
        emulate(source=tmp_path / "neo")


@pytest.mark.parametrize(
    ("more", "edge", "keep", "said"),
    [
        ((), 3, 1, r"edge = 3: a model of 6 layers has no middle then; take 1 to 2"),
        ((), 1, 5, r"keep = 5: there are 4 middle layers"),
        (("--context", "64"), 1, 2, r"--context 64: the model reads at most 32 tokens"),
        (("--lr", "0"), 1, 2, "lr"),
        (("--steps", "-1"), 1, 2, "steps = -1"),
        (("--threads", "0"), 1, 2, "--threads 0"),
        (("--checkpoint-every", "0"), 1, 2, "--checkpoint-every 0"),
        (("--text", "nowhere"), 1, 2, "there is no such folder"),
    ],
)
def test_what_cannot_work_is_refused_with_what_would(
    more: tuple[str, ...], edge: int, keep: int, said: str, emulate: Emulate, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        emulate(*more, edge=edge, keep=keep)
    assert not (tmp_path / "emulator").exists()


def test_what_lies_in_the_place_of_the_package_is_left_alone(
    emulate: Emulate, tmp_path: Path
) -> None:
    (tmp_path / "emulator").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        emulate()


def test_only_an_owner_signs(emulate: Emulate, tmp_path: Path) -> None:
    tenant = create_keys(tmp_path / "tenant", Party("tenant", "bank-1"))
    with pytest.raises(ConfigError, match="not of an owner"):
        emulate("--keys", str(tenant.directory))
    with pytest.raises(ConfigError, match=r"identity\.json"):
        emulate("--keys", str(tmp_path))


def test_signing_is_never_forgotten_silently(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        cli.main(["emulate", str(model), "--keep", "1", "--out", str(tmp_path / "e")])


def test_an_audit_may_lie_in_the_owners_folder_and_nothing_else_may(
    emulate: Emulate, tmp_path: Path
) -> None:
    emulate("--steps", "0")
    (tmp_path / "emulator" / "audit.json").write_text("{}")
    read_emulator_package(tmp_path / "emulator")
    (tmp_path / "emulator" / "notes.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"notes\.json"):
        read_emulator_package(tmp_path / "emulator")
