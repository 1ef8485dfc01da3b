"""The committee that holds the key shares of scheme `ckks`: named at enrolment, part of the roster
that everybody pins.
"""

import datetime
import json
from pathlib import Path

import pytest

from secagg.errors import ConfigError
from secagg.identity import Roster
from secagg_wire.enrol import create_keys, extend_roster, make_request
from secagg_wire.enrol_cli import main
from secagg_wire.key_files import KeyFiles, Party

NAMES = ("ada", "bob", "cyd")


def enrol(directory: Path, *options: str) -> Roster:
    """Approve the tenants' requests with these options; the roster as a party gets it."""
    now = datetime.datetime.now(datetime.UTC)
    authority, approved = directory / "authority", directory / "approved"
    if not authority.exists():
        main(["init", "--role", "authority", "--name", "fed", "--dir", str(authority)])
    requests = []
    for name in NAMES:
        path = directory / f"{name}.json"
        if not path.exists():
            keys = create_keys(directory / name, Party("tenant", name))
            path.write_bytes(make_request(keys, (), now).encode())
        requests.append(str(path))
    main([
        "approve", *requests, "--authority", str(authority), "--out", str(approved), "--yes",
        *options,
    ])  # fmt: skip
    return KeyFiles(approved / "ada").read_roster()


def test_the_committee_is_named_once_stands_and_is_replaced(tmp_path: Path) -> None:
    assert enrol(tmp_path).committee == ()
    first = enrol(tmp_path, "--committee", "cyd,ada")
    assert first.committee == ("ada", "cyd")
    assert enrol(tmp_path) == first
    second = enrol(tmp_path, "--committee", "bob, cyd")
    assert second.committee == ("bob", "cyd")
    assert second.digest != first.digest
    assert enrol(tmp_path, "--committee", "").committee == ()


def test_a_stranger_in_the_committee_is_one_clear_error_and_changes_nothing(
    tmp_path: Path,
) -> None:
    before = enrol(tmp_path, "--committee", "ada,bob")
    with pytest.raises(ConfigError, match="committee names eve, mallory, and the roster has no"):
        enrol(tmp_path, "--committee", "ada,mallory,eve")
    assert enrol(tmp_path) == before


def test_extending_a_roster_keeps_its_committee(tmp_path: Path) -> None:
    roster = enrol(tmp_path, "--committee", "ada,bob")
    assert extend_roster(roster, []) == roster


def test_both_sides_are_shown_the_committee(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roster = enrol(tmp_path, "--committee", "ada,bob")
    assert "committee of 2: ada, bob" in capsys.readouterr().out
    digest = ("--roster-digest", roster.digest.hex())
    main(["accept", str(tmp_path / "approved/ada"), "--dir", str(tmp_path / "ada"), *digest])
    assert "committee: ada, bob" in capsys.readouterr().out
    main(["show", str(tmp_path / "ada")])
    assert "committee      ada, bob" in capsys.readouterr().out
    main(["show", str(tmp_path / "authority")])
    assert "committee: ada, bob" in capsys.readouterr().out
    main(["show", str(tmp_path / "authority"), "--format", "json"])
    assert json.loads(capsys.readouterr().out)["roster"]["committee"] == ["ada", "bob"]
