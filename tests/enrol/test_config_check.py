"""`secagg config check`: each mistake is one clear finding, and what is right is said too."""

import datetime
import json
from pathlib import Path

import pytest

from secagg_wire.config_cli import check, main
from secagg_wire.enrol import (
    create_authority,
    create_keys,
    extend_roster,
    issue,
    make_request,
    write_bundle,
    write_roster,
)
from secagg_wire.key_files import Party

NOW = datetime.datetime.now(datetime.UTC)
VECTOR = '[training]\ntrainer = "vector"\n'


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    """Keys of three tenants, an owner and a coordinator, with a roster."""
    authority = create_authority(tmp_path / "authority", "fed", NOW)
    parties = [Party("tenant", name) for name in ("a", "b", "c")]
    parties += [Party("owner", "o"), Party("coordinator", "hub")]
    keys = {party: create_keys(tmp_path / party.name, party) for party in parties}
    requests = [
        make_request(keys[party], ("localhost",) if party.name == "hub" else (), NOW)
        for party in parties
    ]
    roster = extend_roster(None, requests)
    for bundle in issue(authority, requests, NOW):
        write_bundle(tmp_path, bundle, authority.certificate_file.read_bytes(), roster)
    return tmp_path


def digest_of(federation: Path) -> str:
    return str(json.loads((federation / "a/roster.json").read_text())["digest"])


def tenant_file(federation: Path, text: str = VECTOR, *, name: str = "a", pin: str = "") -> Path:
    path = federation / "tenant.toml"
    pin = pin or digest_of(federation)
    path.write_text(
        f'coordinator = "localhost:8470"\nkeys = "{name}"\ndata = "data"\n'
        f'[policy]\nroster_digest = "{pin}"\n{text}'
    )
    return path


def errors(path: Path) -> list[str]:
    return [f"{f.subject}: {f.message}" for f in check(path) if f.level == "error"]


def test_a_good_tenant_is_well_and_says_so(
    federation: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(tenant_file(federation))]) == 0
    shown = capsys.readouterr().out
    assert {line.split()[1] for line in shown.splitlines()} == {
        "file", "keys", "certificate", "roster", "data"
    }  # fmt: skip


def test_coordinator_and_owner_files_are_told_apart(federation: Path) -> None:
    coordinator = federation / "coordinator.toml"
    coordinator.write_text('keys = "hub"\ndata = "hub-data"\n')
    assert errors(coordinator) == []
    owner = federation / "owner.toml"
    owner.write_text(
        'coordinator = "localhost:8470"\nkeys = "o"\ndata = "o-data"\n'
        '[model]\nkind = "vector"\nlength = 10\n[round]\nrounds = 1\n'
    )
    assert errors(owner) == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[training]\n", "training"),
        ('[training]\ntrainer = "magic"\n', "training"),
        (VECTOR + "[upload]\nmax_bytes_per_second = -1\n", "max_bytes_per_second"),
        (VECTOR + "surprise = 1\n", "surprise"),
        (VECTOR + "[surprise]\n", "surprise"),
        ('[training]\ntrainer = "lora"\ntext = "text"\n', "model.base_digest"),
        ("[training\n", "not TOML"),
        (VECTOR + "weight = 0\n", "weight"),
    ],
)
def test_each_wrong_value_is_one_error_that_names_its_key(
    federation: Path, text: str, names: str
) -> None:
    (found,) = errors(tenant_file(federation, text))
    assert names in found
    assert "\n" not in found


def test_a_missing_file_a_bad_port_and_no_configuration_at_all(federation: Path) -> None:
    assert "No such file" in errors(federation / "nothing.toml")[0]
    path = tenant_file(federation)
    path.write_text(path.read_text().replace(":8470", ""))
    assert "HOST:PORT" in errors(path)[0]
    path.write_text("x = 1\n")
    assert "--kind" in errors(path)[0]


def test_another_roster_than_the_pinned_one(federation: Path) -> None:
    (found,) = errors(tenant_file(federation, pin="00" * 32))
    assert found.startswith("roster: ")
    (found,) = errors(tenant_file(federation, pin="abc"))
    assert "64 hexadecimal digits" in found


def test_keys_of_another_role(federation: Path) -> None:
    found = errors(tenant_file(federation, name="o"))
    assert "not of a tenant" in found[0]


def test_a_key_that_others_can_read(federation: Path) -> None:
    (federation / "a/tls.key").chmod(0o640)
    assert all("chmod 600" in found for found in errors(tenant_file(federation)))


def test_a_certificate_of_another_tenant(federation: Path) -> None:
    (federation / "a/tls.pem").write_bytes((federation / "b/tls.pem").read_bytes())
    (found,) = errors(tenant_file(federation))
    assert found.startswith("certificate: ")
    assert "another key" in found


def test_a_certificate_that_has_expired(federation: Path) -> None:
    authority = create_authority(federation / "old", "old", NOW - datetime.timedelta(days=20))
    then = NOW - datetime.timedelta(days=10)
    keys = create_keys(federation / "late", Party("tenant", "late"))
    (bundle,) = issue(authority, [make_request(keys, (), then)], then, days=5)
    write_bundle(federation, bundle, authority.certificate_file.read_bytes(), None)
    write_roster(keys.directory, extend_roster(None, [make_request(keys, (), NOW)]))  # type: ignore[arg-type]
    pin = json.loads((keys.directory / "roster.json").read_text())["digest"]
    (found,) = errors(tenant_file(federation, name="late", pin=pin))
    assert "expired" in found


def test_missing_keys_are_told_as_missing(federation: Path) -> None:
    (federation / "a/identity.json").unlink()
    keys = errors(tenant_file(federation, VECTOR))[0]
    assert "cannot read" in keys
    assert "'secagg keys init' makes it" in keys


def test_a_missing_certificate_and_a_missing_text(federation: Path) -> None:
    (federation / "a/tls.pem").unlink()
    missing = '[training]\ntrainer = "vector"\nfile = "nowhere.npy"\n'
    certificate, files = errors(tenant_file(federation, missing))
    assert "secagg keys approve" in certificate
    assert "nowhere.npy does not exist" in files


def test_the_environment_overrides_and_is_checked_too(
    federation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tenant_file(federation)
    monkeypatch.setenv("SECAGG_TENANT__UPLOAD__MAX_BYTES_PER_SECOND", "-5")
    assert "max_bytes_per_second" in errors(path)[0]
    monkeypatch.setenv("SECAGG_TENANT__UPLOAD__MAX_BYTES_PER_SECOND", "5000")
    assert errors(path) == []


def test_json_form(federation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tenant_file(federation, "[training]\n")), "--format", "json"]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert answer["findings"][0]["subject"] == "file"
