"""What an owner sees of its model versions on the command line, and writes out of them."""

import asyncio
import json
import shutil
import sys
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from secagg.errors import ConfigError
from secagg_models.base import load_base
from secagg_owner.cli import main
from secagg_owner.config import Config, OffsiteModel
from secagg_owner.registry import Entry, ModelRegistry
from tests.coordinator.federation import Enrolled, federation
from tests.owner.test_lora_rounds import texts
from tests.owner.test_offsite_rounds import (
    all_edge_tenants,
    emulator,
    full,
    owner_config,
)
from tests.owner.test_owner_rounds import own

__all__ = ["emulator", "full", "texts"]


@pytest.fixture(scope="module", params=["lora", "edges"])
def run_once(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, enrolled: Enrolled,
    full: Path, emulator: Path, texts: Path,
) -> Config:  # fmt: skip
    """Two rounds; nobody is running any more."""
    data = tmp_path_factory.mktemp("tuned")

    async def scenario() -> Config:
        async with federation(enrolled, data) as running, AsyncExitStack() as stack:
            await all_edge_tenants(stack, running, data, emulator, texts)
            config = owner_config(running, data, full, emulator, texts, kind=request.param)
            await own(config)
            return config

    return asyncio.run(scenario())


@pytest.fixture
def tuned(run_once: Config, tmp_path: Path) -> tuple[Path, ModelRegistry]:
    """A configuration file over a copy of that owner's data, and its registry."""
    shutil.copytree(run_once.data, tmp_path / "data")
    file = tmp_path / "owner.toml"
    file.write_text(toml_of(run_once, tmp_path / "data"))
    return file, ModelRegistry(tmp_path / "data" / "models")


def toml_of(config: Config, data: Path) -> str:
    model = config.model
    assert isinstance(model, OffsiteModel)
    return f"""
coordinator = "{config.coordinator}"
keys = "{config.keys}"
data = "{data}"
[model]
kind = "offsite"
full = "{model.full}"
emulator = "{model.emulator}"
update = "{model.update}"
rank = {model.rank}
scaling = {model.scaling}
targets = {list(model.targets)}
[training]
steps = {config.training.steps}
batch = {config.training.batch}
context = {config.training.context}
precision = "float32"
[round]
rounds = 2
[text]
path = "{config.text.path}"
windows = 8
"""


def told(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    """What a command prints as JSON."""
    assert main([*map(str, arguments), "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main([*map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_status_says_where_the_owner_stands_and_what_is_next(
    tuned: tuple[Path, ModelRegistry], emulator: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, registry = tuned
    (facts,) = told(capsys, "status", "--config", file)
    assert (facts["rounds_done"], facts["models"], facts["current"]) == (2, 3, 3)
    assert facts["published_version"] == 3
    assert facts["figures"] == dict(registry.entry(3).figures)
    assert facts["emulator"]["manifest"] == registry.entry(3).emulator_manifest
    assert facts["emulator"]["audit"].startswith("none")
    assert "plug-in" in facts["next"]
    assert "rounds_done=2" in printed(capsys, "status", "--config", file)


def test_the_audits_verdict_is_shown_only_of_this_very_package(
    tuned: tuple[Path, ModelRegistry], emulator: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file, registry = tuned
    own_copy = tmp_path / "emulator"
    shutil.copytree(emulator, own_copy)
    file.write_text(file.read_text().replace(f'"{emulator}"', f'"{own_copy}"'))
    digest = registry.entry(1).emulator_manifest
    verdicts = [{"clause": "verbatim.middle_max", "outcome": "fail", "sentence": "all of it"}]
    audit = {"format": "secagg-audit/1", "released": {}, "manifest_digest": digest}
    for changes, words in (
        ({"passes": True, "verdicts": []}, "passed"),
        ({"passes": False, "verdicts": verdicts}, "failed: verbatim.middle_max"),
        ({"manifest_digest": "00" * 32}, "of another package"),
        ({"format": "something else"}, "unreadable"),
    ):
        (own_copy / "audit.json").write_text(json.dumps(audit | changes))
        (facts,) = told(capsys, "status", "--config", file)
        assert facts["emulator"]["audit"].startswith(words)


def test_versions_are_listed_compared_and_rolled_back_to_the_bit(
    tuned: tuple[Path, ModelRegistry], capsys: pytest.CaptureFixture[str]
) -> None:
    file, registry = tuned
    rows = told(capsys, "versions", "--config", file)
    assert [(row["number"], row["kind"], row["current"]) for row in rows] == [
        (1, "start", False), (2, "round", False), (3, "round", True),
    ]  # fmt: skip
    assert "current=yes" in printed(capsys, "versions", "list", "--config", file)

    (found,) = told(capsys, "versions", "compare", "2", "3", "--config", file)
    assert found["same_plugged"] is False
    assert {"plugged_digest", "update_sha256", "origin"} <= found["lineage"].keys()
    assert all(0 < distance < 2 for distance in found["distances"].values())
    difference = (
        registry.entry(3).figures["validation_nats_per_byte"]
        - registry.entry(2).figures["validation_nats_per_byte"]
    )
    assert found["figures"]["validation_nats_per_byte"] == difference

    arguments = ("versions", "rollback", "2", "--reason", "worse", "--config", file)
    (entry,) = told(capsys, *arguments)
    assert (entry["number"], entry["restores"], entry["reason"]) == (4, 2, "worse")
    assert entry["plugged_digest"] == registry.entry(2).plugged_digest
    assert registry.update(4) == registry.update(2)
    (found,) = told(capsys, "versions", "compare", "2", "4", "--config", file)
    assert found["same_plugged"] is True
    assert set(found["distances"].values()) == {0.0}
    (facts,) = told(capsys, "status", "--config", file)
    assert (facts["current"], facts["published_version"]) == (4, 0)
    assert "'secagg owner publish'" in facts["next"]
    assert "distance=0" in printed(capsys, "versions", "compare", "2", "4", "--config", file)


def test_a_plugged_folder_loads_as_the_measured_model_and_reverses_to_the_full_one(
    tuned: tuple[Path, ModelRegistry], full: Path, emulator: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file, registry = tuned
    entry, out = registry.entry(3), tmp_path / "tuned-model"
    (row,) = told(capsys, "plug-in", "--config", file, "--out", out)
    assert (row["digest"], row["model"]) == (entry.plugged_digest, 3)
    assert load_base(str(out)).digest == entry.plugged_digest != entry.base_digest
    written = json.loads((out / "lineage.json").read_text())
    assert written["update_manifest"] == entry.update_manifest
    assert written["origin"] == entry.origin

    again = tmp_path / "again"
    (row,) = told(capsys, "plug-in", "--reverse", out, "--out", again)
    assert row["digest"] == entry.base_digest == load_base(str(full)).digest
    before, after = (
        load_base(str(full)).model.state_dict(),
        load_base(str(again)).model.state_dict(),
    )
    assert all(torch.equal(before[name], after[name]) for name in before)

    version = file.parent / "data" / "versions" / str(entry.published_version)
    (row,) = told(
        capsys, "plug-in", "--full", full, "--emulator", emulator, "--update", version,
        "--out", tmp_path / "by-files",
    )  # fmt: skip
    assert row["digest"] == entry.plugged_digest
    (row,) = told(capsys, "plug-in", "--config", file, "--model", "1", "--out", tmp_path / "first")
    assert row["digest"] == entry.base_digest


def test_what_does_not_fit_together_is_not_plugged_in(
    tuned: tuple[Path, ModelRegistry], full: Path, emulator: Path, tmp_path: Path
) -> None:
    file, registry = tuned
    version = file.parent / "data" / "versions" / "3"
    by_files = ("--emulator", emulator, "--update", version)
    for arguments, words in (
        (("--config", file, "--reverse", tmp_path), "one of these"),
        (("--full", full), "one of these"),
        (("--full", emulator, *by_files), "was made from"),
        (("--full", full, "--emulator", emulator, "--update", tmp_path), "No such file"),
        (("--config", file, "--model", "9"), "there is no model version 9"),
        (("--reverse", full), "no lineage.json"),
    ):
        with pytest.raises(ConfigError, match=words):
            main(["plug-in", *map(str, arguments), "--out", str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="exists already"):
        main(["plug-in", "--config", str(file), "--out", str(tmp_path)])
    registry.change(3, plugged_digest="00" * 32)
    with pytest.raises(ConfigError, match="is not the one that it was measured with"):
        main(["plug-in", "--config", str(file), "--out", str(tmp_path / "out")])
    registry.change(3, emulator_manifest="00" * 32)
    with pytest.raises(ConfigError, match="another package"):
        main(["plug-in", "--config", str(file), "--out", str(tmp_path / "out")])


def test_a_plugged_folder_that_was_changed_does_not_reverse(
    tuned: tuple[Path, ModelRegistry], tmp_path: Path
) -> None:
    file, _ = tuned
    out, again = tmp_path / "tuned-model", tmp_path / "again"
    main(["plug-in", "--config", str(file), "--out", str(out)])
    for name, words in (
        ("replaced.safetensors", "was changed"),
        ("model.safetensors", "changed since it was plugged"),
    ):
        tensors = load_file(out / name)
        changed = {n: t + 1 if t.is_floating_point() else t for n, t in tensors.items()}
        save_file(changed, out / name, metadata={"format": "pt"})
        with pytest.raises(ConfigError, match=words):
            main(["plug-in", "--reverse", str(out), "--out", str(again)])
        save_file(tensors, out / name, metadata={"format": "pt"})
    (out / "replaced.safetensors").unlink()
    with pytest.raises(ConfigError, match="nothing to put back"):
        main(["plug-in", "--reverse", str(out), "--out", str(again)])


async def secagg(*arguments: str | Path) -> tuple[int, str, str]:
    """A process of its own: exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "secagg", *map(str, arguments),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


def test_an_emulator_without_an_audit_is_published_only_by_force_and_the_lineage_says_so(
    enrolled: Enrolled, tmp_path: Path, full: Path, emulator: Path, texts: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            config = owner_config(running, tmp_path, full, emulator, texts, kind="lora")
            file = tmp_path / "owner.toml"
            file.write_text(toml_of(config, tmp_path / "owner"))
            code, _, err = await secagg("owner", "publish", "--config", file)
            assert (code, "never audited" in err) == (2, True), err
            assert not (tmp_path / "owner" / "models").exists()
            code, _, _ = await secagg("owner", "audit", emulator, "--full", full, "--weights-only")
            code, _, err = await secagg("owner", "publish", "--config", file)
            (emulator / "audit.json").unlink()  # nobody signed it
            assert (code, "audit.signature" in err) == (2, True), err
            code, _, err = await secagg("owner", "publish", "--config", file, "--force")
            assert (code, "go together" in err) == (2, True), err
            code, out, err = await secagg(
                "owner", "publish", "--config", file, "--force", "--reason", "a trial",
                "--format", "json",
            )  # fmt: skip
            assert code == 0, err
            assert json.loads(out) == [{"version": 1}]
            code, out, _ = await secagg("owner", "published", "--config", file, "--format", "json")
            assert [row["version"] for row in json.loads(out)] == [1]

    asyncio.run(scenario())
    entry = ModelRegistry(tmp_path / "owner" / "models").entry(1)
    assert entry.forced == ("a trial (audit.missing)",)
    (line,) = (tmp_path / "owner" / "forced.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "a trial"


# ---------------------------------------------------------------------- the registry by itself


def entry_of(number: int, **changes: Any) -> Entry:
    start = Entry(number, "start", 0, "", "aa" * 32, "bb" * 32, figures={"loss": 1.0})
    return replace(start, **changes)


def test_a_version_appears_whole_or_not_at_all_and_may_be_written_again_after_a_crash(
    tmp_path: Path,
) -> None:
    registry = ModelRegistry(tmp_path / "models")
    registry.add(entry_of(1), b"one")
    (tmp_path / "models" / ".2.new").mkdir()  # what a crash leaves behind
    (tmp_path / "models" / ".2.new" / "update.safetensors").write_bytes(b"half")
    assert [entry.number for entry in registry.entries()] == [1]
    registry.add(entry_of(2, kind="round", parent=1), b"two")
    registry.add(entry_of(2, kind="round", parent=1), b"two again")
    assert registry.update(2) == b"two again"
    assert [entry.number for entry in registry.entries()] == [1, 2]


def test_a_change_keeps_all_the_rest_of_a_lineage(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path)
    added = registry.add(entry_of(1, origin={"context": "00"}, forced=("why",)), b"one")
    changed = registry.change(1, published_version=7)
    assert changed == replace(added, published_version=7) == registry.entry(1)


@pytest.mark.parametrize(
    "spoilt", [b"", b"[]", b"{}", b'{"number": 1}', b"\xff", b"{" * 10_000], ids=range(6)
)
def test_a_spoilt_lineage_is_one_clear_error(tmp_path: Path, spoilt: bytes) -> None:
    registry = ModelRegistry(tmp_path)
    registry.add(entry_of(1), b"one")
    (tmp_path / "1" / "lineage.json").write_bytes(spoilt)
    with pytest.raises(ConfigError, match="not the lineage"):
        registry.entries()


def test_a_rollback_names_what_it_restores_and_nothing_else_does() -> None:
    with pytest.raises(ConfigError, match="rollback"):
        entry_of(2, kind="rollback")
    with pytest.raises(ConfigError, match="rollback"):
        entry_of(2, kind="round", restores=1)
