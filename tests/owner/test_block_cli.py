"""`secagg owner block` makes signed packages, tenants admit them, and the gate counts what left."""

import argparse
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ByT5Tokenizer

from secagg.errors import ConfigError
from secagg_models import updates
from secagg_models.audit.policy import AuditPolicy, VerbatimClauses
from secagg_models.audit.release import Release
from secagg_models.base import load_base, model_digest
from secagg_models.block_cut import BlockCut
from secagg_models.block_weights import BlockShape, shape_for
from secagg_models.package import load_full_model
from secagg_models.plug_in import plugged_in
from secagg_models.series.forecaster import Forecaster, ForecasterShape, save_forecaster
from secagg_models.split import Split
from secagg_models.train import Schedule, TrainingConfig
from secagg_models.version import UpdateMeta
from secagg_owner import cli
from secagg_owner.audit_gate import BLOCKS_FILE, BlockRelease, read_blocks
from secagg_owner.block_gate import require_block
from secagg_owner.block_package import BlockPackage, read_block_package, write_block_package
from secagg_owner.config import load_config
from secagg_owner.registry import Entry, ModelRegistry
from secagg_owner.state import OwnerFiles
from secagg_tenant.admit import Pins, admit
from secagg_wire.enrol import create_keys
from secagg_wire.key_files import KeyFiles, Party
from secagg_wire.manifest import Manifest
from tests.models.emulators import moved
from tests.models.families import build

LAYERS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("owner") / "model"
    build("llama", LAYERS).to(torch.bfloat16).save_pretrained(folder)
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyFiles:
    return create_keys(tmp_path_factory.mktemp("keys") / "owner", Party("owner", "acme"))


def command(model: Path, out: Path, *more: str) -> list[str]:
    return ["block", str(model), "--block", "1", "--out", str(out), "--format", "json", *more]


def test_a_signed_block_is_made_and_admitted_by_its_digest(
    model: Path, keys: KeyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command(model, tmp_path / "b", "--keys", str(keys.directory))) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["block_layers"], row["held"], row["layers"]) == ([2, 3], "block", LAYERS)
    digest = bytes.fromhex(row["manifest_sha256"])
    assert read_block_package(tmp_path / "b", keys.identity().public_key, digest).digest == digest
    done = admit(tmp_path / "b", Pins(keys.identity().public_key, digest), seed=1)
    assert done.report.passed, done.report.first_refusal
    assert done.emulator is not None
    assert done.emulator.digest == row["block_digest"]
    other = admit(tmp_path / "b", Pins(keys.identity().public_key, bytes(32)), seed=1)
    refusal = other.report.first_refusal
    assert refusal is not None
    assert refusal.clause == "manifest_digest"


def test_a_forecasters_block_has_no_package_and_it_says_why() -> None:
    with pytest.raises(ConfigError, match="tenants have a forecaster whole"):
        load_full_model("shipped-series")


def test_a_tenants_keys_sign_no_block(model: Path, tmp_path: Path) -> None:
    tenant = create_keys(tmp_path / "keys", Party("tenant", "t1"))
    with pytest.raises(ConfigError, match="not of an owner"):
        cli.main(command(model, tmp_path / "b", "--keys", str(tenant.directory)))


@pytest.fixture
def packages(model: Path, tmp_path: Path) -> list[BlockPackage]:
    full = load_full_model(str(model))
    return [
        write_block_package(tmp_path / str(b), full, BlockCut(LAYERS, 3, b, "block"), None)
        for b in range(2)
    ]


def passed(package: BlockPackage, data: Path, reason: str | None = None, **more: Any) -> Any:
    return require_block(
        package.signed.folder, package.digest, package.block.meta, AuditPolicy(**more), reason,
        data=data,
    )  # fmt: skip


def test_one_block_of_three_leaves_and_a_second_one_does_not(
    packages: list[BlockPackage], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    assert not passed(packages[0], data).forced
    assert not passed(packages[0], data).forced  # the same one again shows nothing new
    with pytest.raises(ConfigError, match=r"verbatim.layers_max.*layers \[0, 1, 2, 3\] of 6"):
        passed(packages[1], data)
    assert len(read_blocks(data / BLOCKS_FILE)) == 1


def test_a_forced_block_is_written_down_with_its_reason(
    packages: list[BlockPackage], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    passed(packages[0], data)
    with pytest.raises(ConfigError, match="not empty"):
        passed(packages[1], data, " ")
    passage = passed(packages[1], data, "all tenants are ours")
    assert passage.refused == ("verbatim.layers_max",)
    (line,) = (data / "forced.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "all tenants are ours"
    assert [block.shown for block in read_blocks(data / BLOCKS_FILE)] == [(0, 1), (2, 3)]


@pytest.mark.parametrize(("audited", "layers"), [(True, "[0, 1, 5]"), (False, "[0, 1, 2, 3, 5]")])
def test_what_emulators_showed_before_counts_and_all_they_had_where_nobody_looked(
    packages: list[BlockPackage], tmp_path: Path, audited: bool, layers: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    layout = "33" * 32 if audited else ""
    release = Release("11" * 32, "22" * 32, layout, Split(LAYERS, 1, (2, 3)), 0, 0, {}, {})
    (data / "releases.jsonl").write_text(json.dumps(release.to_json()) + "\n")
    with pytest.raises(ConfigError, match=re.escape(layers)):
        passed(packages[0], data)
    assert not passed(packages[0], data, verbatim=VerbatimClauses(layers_max=0.9)).forced


def test_a_log_that_was_damaged_is_told(tmp_path: Path) -> None:
    (tmp_path / BLOCKS_FILE).write_text('{"manifest_digest": 1}\n')
    with pytest.raises(ConfigError, match="line 1: not a block"):
        read_blocks(tmp_path / BLOCKS_FILE)


@pytest.fixture
def learnt(packages: list[BlockPackage], model: Path, tmp_path: Path) -> Path:
    """An owner whose first version is block 1 after a round, and its configuration file."""
    package, full = packages[1], load_full_model(str(model))
    shape = BlockShape(LAYERS, 3, 1, "block")
    update = moved(updates.start(package.block.model, shape, 2), 9)
    training = TrainingConfig(1, 1, 8, 0.1, Schedule(1), 1)
    meta, data = UpdateMeta(package.block.digest, shape, training).to_json(), updates.save(update)
    with plugged_in(full.model, update, package.block.meta.cut) as plugged:
        digest = model_digest(plugged.state_dict())
    entry = Entry(1, "start", 0, "", full.digest, digest, package.digest.hex(), meta=meta)
    ModelRegistry(tmp_path / "data" / "models").add(entry, data)
    OwnerFiles(tmp_path / "data").change(model=1)
    version = tmp_path / "version"
    version.mkdir()
    (version / "block.safetensors").write_bytes(data)
    manifest = Manifest.of({"block.safetensors": data}, meta)
    (version / "manifest.json").write_bytes(manifest.encode())
    others = updates.start(packages[0].block.model, BlockShape(LAYERS, 3, 0, "block"), 2)
    save_file(others.conditioning, tmp_path / "others.safetensors")
    file = tmp_path / "owner.toml"
    file.write_text(
        f"""
coordinator = "c:1"
keys = "keys"
data = "data"
[model]
kind = "block"
full = "{model}"
package = "1"
block = 1
conditioning = "others.safetensors"
"""
    )
    return file


def told(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    assert cli.main([*map(str, arguments), "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    return row


def test_a_block_is_written_into_the_full_model_and_taken_out_again_bit_for_bit(
    learnt: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry, out = ModelRegistry(tmp_path / "data" / "models").entry(1), tmp_path / "tuned"
    row = told(capsys, "plug-in", "--config", learnt, "--out", out)
    assert row["digest"] == entry.plugged_digest != entry.base_digest
    assert load_full_model(str(out)).digest == entry.plugged_digest
    kept = load_file(out / "conditioning.safetensors")
    assert {name.split(".")[1] for name in kept} == {"0", "1"}
    again = told(capsys, "plug-in", "--reverse", out, "--out", tmp_path / "again")
    assert again["digest"] == entry.base_digest
    assert load_full_model(str(tmp_path / "again")).digest == load_full_model(str(model)).digest
    by_files = ("--full", model, "--block", tmp_path / "1", "--update", tmp_path / "version")
    row = told(capsys, "plug-in", *by_files, "--out", tmp_path / "by-files")
    assert row["digest"] == entry.plugged_digest


def test_status_names_the_package_and_what_comes_after_the_rounds(
    learnt: Path, packages: list[BlockPackage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = told(capsys, "status", "--config", learnt)
    assert facts["emulator"]["manifest"] == packages[1].digest.hex()
    assert "audit" not in facts["emulator"]
    assert facts["current"] == 1
    OwnerFiles(tmp_path / "data").change(rounds_done=1)
    registry = ModelRegistry(tmp_path / "data" / "models")
    registry.change(1, published_version=1)
    assert "plug-in" in told(capsys, "status", "--config", learnt)["next"]


def test_a_forecaster_is_written_with_its_block_in_it_and_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(2)
    forecaster = Forecaster(
        ForecasterShape(width=16, layers=2, heads=2, intermediate=24, patch=4, context=32)
    )
    save_forecaster(forecaster, tmp_path / "full")
    base = load_base(str(tmp_path / "full"))
    cut = BlockCut(2, 2, 1, "all")
    update = moved(updates.start(base.model, shape_for(base.model, cut, prefix=True), 3), 7)
    data = updates.save(update)
    training = TrainingConfig(1, 1, 8, 0.1, Schedule(1), 1)
    meta = UpdateMeta(base.digest, update.shape, training).to_json()
    (tmp_path / "version").mkdir()
    (tmp_path / "version" / "block.safetensors").write_bytes(data)
    manifest = Manifest.of({"block.safetensors": data}, meta)
    (tmp_path / "version" / "manifest.json").write_bytes(manifest.encode())
    files = ("--full", tmp_path / "full", "--update", tmp_path / "version")
    row = told(capsys, "plug-in", *files, "--out", tmp_path / "tuned")
    tuned = load_base(str(tmp_path / "tuned"))
    assert isinstance(tuned.model, Forecaster)
    assert tuned.digest == row["digest"] != base.digest
    again = told(capsys, "plug-in", "--reverse", tmp_path / "tuned", "--out", tmp_path / "again")
    assert again["digest"] == base.digest == load_base(str(tmp_path / "again")).digest


def test_a_block_that_does_not_fit_is_not_plugged_in(
    learnt: Path, model: Path, tmp_path: Path
) -> None:
    version, out = tmp_path / "version", tmp_path / "out"
    for arguments, words in (
        (("--block", tmp_path / "0", "--update", version), "trained on a model of digest"),
        (("--update", version), "trained on a model of digest"),
        (("--block", tmp_path / "1", "--emulator", tmp_path / "1", "--update", version), "one of"),
        (("--emulator", tmp_path / "1", "--update", version), "not emulator"),
    ):
        with pytest.raises(ConfigError, match=words):
            cli.main(["plug-in", "--full", str(model), *map(str, arguments), "--out", str(out)])
        assert not out.exists()


def test_no_round_is_opened_with_a_block_that_its_gate_does_not_let_out(
    learnt: Path, keys: KeyFiles, tmp_path: Path
) -> None:
    learnt.write_text(learnt.read_text().replace('keys = "keys"', f'keys = "{keys.directory}"'))
    before = BlockRelease("11" * 32, "22" * 32, LAYERS, (4, 5))
    (tmp_path / "data" / BLOCKS_FILE).write_text(json.dumps(asdict(before)) + "\n")
    with pytest.raises(ConfigError, match="may not leave"):  # before anything is connected to
        cli.main(["publish", "--config", str(learnt)])
    with pytest.raises(ConfigError, match="go together"):
        cli.main(["publish", "--config", str(learnt), "--force"])
    options = argparse.Namespace(force=True, reason="both are ours")
    forced = cli._pass_gate(load_config(learnt), options)
    assert forced == "both are ours (verbatim.layers_max)"
    (tmp_path / "others.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"others.safetensors does not exist"):
        cli.main(["publish", "--config", str(learnt)])
