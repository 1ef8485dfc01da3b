"""Approved, rejected, rolled back: what serves is always a version's own bytes, or the base."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from secagg.errors import ConfigError
from secagg_tenant.cli import main
from secagg_tenant.decisions import SERVING_FILE, Decisions
from secagg_tenant.store import TenantStore, read_report
from secagg_tenant.trainer import ModelVersion
from secagg_tenant.versions import VersionFiles
from secagg_wire.manifest import Manifest


@dataclass
class Desk:
    """A tenant's data folder with three accepted versions, and what an operator types."""

    data: Path
    config: Path
    decisions: Decisions
    digests: dict[int, bytes]

    def type(self, *words: str) -> int:
        return main([*words, "--config", str(self.config), "--format", "json"])

    def served(self) -> int:
        """As the tenant's own application reads it."""
        named = json.loads((self.data / SERVING_FILE).read_text())
        if named["digest"] is None:
            return 0
        data = (Path(named["folder"]) / "weights.safetensors").read_bytes()
        assert data == weights(named["number"])
        return int(named["number"])


def weights(number: int) -> bytes:
    return bytes([number]) * 1000


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    data = tmp_path / "data"
    data.mkdir()
    config = tmp_path / "tenant.toml"
    config.write_text(
        'coordinator = "localhost:8470"\nkeys = "keys"\ndata = "data"\n'
        f'[policy]\nroster_digest = "{"ab" * 32}"\n[training]\ntrainer = "vector"\n'
    )
    store, versions = TenantStore(data / "tenant.sqlite"), VersionFiles(data / "versions")
    digests = {}
    for number in (1, 2, 3):
        manifest = Manifest.of({"weights.safetensors": weights(number)})
        folder = versions.directory / manifest.digest.hex()
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_bytes(weights(number))
        (folder / "manifest.json").write_bytes(manifest.encode())
        store.add_version(manifest.digest, number, "beginning")
        digests[number] = manifest.digest
    yield Desk(data, config, Decisions(store, versions, data), digests)
    store.close()


def test_rolling_back_restores_the_bytes_of_the_version_approved_before(desk: Desk) -> None:
    for number in (1, 2):
        desk.decisions.record(desk.digests[number], "approved", "measured", "")
    assert desk.served() == 2
    assert desk.type("rollback", "--reason", "customers complained") == 0
    assert desk.served() == 1
    assert desk.type("rollback") == 0
    assert desk.served() == 0
    with pytest.raises(ConfigError, match="nothing to roll back"):
        desk.type("rollback")


def test_an_operator_overrules_what_was_measured_both_ways(desk: Desk) -> None:
    desk.decisions.record(desk.digests[1], "approved", "measured", "")
    desk.decisions.record(desk.digests[2], "rejected", "measured", "")
    assert desk.served() == 1
    desk.type("approve", "2")
    assert desk.served() == 2
    desk.type("reject", "2")
    assert desk.served() == 1


def test_what_is_undecided_or_rejected_never_serves(desk: Desk) -> None:
    for number, verdict in ((1, "undecided"), (2, "rejected")):
        desk.decisions.record(desk.digests[number], verdict, "measured", "")
        assert desk.served() == 0
    with pytest.raises(ConfigError, match="no version 9"):
        desk.type("approve", "9")


def test_a_version_whose_files_were_changed_is_neither_approved_nor_rolled_back_to(
    desk: Desk,
) -> None:
    for number in (1, 2):
        desk.decisions.record(desk.digests[number], "approved", "measured", "")
    spoiled = desk.data / "versions" / desk.digests[1].hex() / "weights.safetensors"
    spoiled.write_bytes(weights(1)[:-1] + b"x")
    with pytest.raises(ConfigError, match="reject the version"):
        desk.type("rollback")
    assert desk.served() == 0  # the base, rather than what was taken back or is spoiled
    with pytest.raises(ConfigError, match="as its manifest says"):
        desk.type("approve", "1")
    desk.type("reject", "1")
    desk.type("approve", "3")
    assert desk.served() == 3


class Interrupted(VersionFiles):
    """An operator rejects version 1 while another process still reads its files."""

    @classmethod
    def by(cls, desk: Desk) -> Decisions:
        return Decisions(desk.decisions.store, cls(desk.decisions.versions.directory), desk.data)

    def intact(self, version: ModelVersion) -> bool:
        found = super().intact(version)
        store = TenantStore(self.directory.parent / "tenant.sqlite")
        if store.decision(version.manifest.digest) in (None, "approved"):
            plain = VersionFiles(self.directory)
            Decisions(store, plain, self.directory.parent).decide(1, "rejected", "")
        store.close()
        return found


def test_what_is_rejected_while_its_files_are_read_does_not_serve(desk: Desk) -> None:
    Interrupted.by(desk).record(desk.digests[1], "approved", "measured", "")
    assert desk.decisions.store.decision(desk.digests[1]) == "rejected"
    assert desk.served() == 0
    desk.decisions.record(desk.digests[1], "approved", "operator", "")
    assert desk.served() == 1
    Interrupted.by(desk).publish()
    assert desk.served() == 0


def test_every_word_on_a_version_is_kept(desk: Desk) -> None:
    desk.type("approve", "1", "--reason", "first")
    desk.type("rollback", "--reason", "second")
    report = read_report(desk.data / "tenant.sqlite")
    assert [(row["number"], row["verdict"], row["reason"]) for row in report["decisions"]] == [
        (1, "approved", "first"), (1, "rolled back", "second")
    ]  # fmt: skip
    assert [row["event"] for row in report["audit"]] == ["version_decided"] * 2


def test_versions_are_listed_with_what_was_decided(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.decisions.store.add_evaluation(desk.digests[2], {"held_out_loss": 0.5})
    desk.type("approve", "2")
    capsys.readouterr()
    desk.type("versions")
    rows = {row["number"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows[2]["serving"]
    assert rows[2]["held_out_loss"] == 0.5
    assert (rows[2]["verdict"], rows[2]["decided_by"]) == ("approved", "operator")
    assert rows[1]["verdict"] is None
    assert main(["versions", "--config", str(desk.config)]) == 0
    assert "approved" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_is_told_and_names_what_it_named_before(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.type("approve", "1")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("secagg_tenant.decisions.os.replace", full)
        with pytest.raises(ConfigError, match=r"cannot be written: No space left.*is kept"):
            desk.type("approve", "2")
    assert desk.served() == 1
    assert not list(desk.data.glob("*.new"))
    desk.decisions.publish()  # as 'join' does
    assert desk.served() == 2


def test_a_database_that_cannot_be_written_is_told(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(TenantStore, "add_decision", full)
    with pytest.raises(ConfigError, match=r"disk is full. 'secagg tenant versions' shows"):
        desk.type("approve", "1")


def test_a_decision_that_cannot_be_audited_is_none(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made again after the disk has room, a rollback would otherwise go back twice."""
    for number in (1, 2, 3):
        desk.type("approve", str(number))

    def full(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(TenantStore, "audit", full)
        with pytest.raises(ConfigError, match="disk is full"):
            desk.type("rollback")
    desk.type("rollback")
    assert desk.served() == 2
