"""Enrolment from keys to a pinned roster, and each thing that may go wrong on the way."""

import datetime
import json
import stat
from pathlib import Path

import pytest

from secagg.errors import ConfigError
from secagg.identity import Roster
from secagg_wire.enrol import (
    Authority,
    Request,
    create_authority,
    create_keys,
    extend_roster,
    issue,
    make_request,
    write_bundle,
)
from secagg_wire.enrol_cli import main
from secagg_wire.key_files import KeyFiles, Party
from secagg_wire.tls import party_of, read_certificate

NOW = datetime.datetime(2030, 5, 1, tzinfo=datetime.UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return create_authority(tmp_path / "authority", "fed", NOW)


def tenant(tmp_path: Path, name: str) -> KeyFiles:
    return create_keys(tmp_path / name, Party("tenant", name))


def request_of(keys: KeyFiles) -> Request:
    return make_request(keys, (), NOW)


def altered(keys: KeyFiles, path: Path, **changes: object) -> Request:
    fields = json.loads(request_of(keys).encode())
    path.write_text(json.dumps(fields | changes))
    return Request.read(path)


def test_private_files_are_closed_to_others(tmp_path: Path, authority: Authority) -> None:
    keys = tenant(tmp_path, "a")
    for path in (keys.seed, keys.tls_key, authority.key_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_seed_that_others_can_read_is_refused(tmp_path: Path) -> None:
    keys = tenant(tmp_path, "a")
    keys.seed.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        keys.identity()


def test_requests_become_certificates_and_a_roster(tmp_path: Path, authority: Authority) -> None:
    requests = [request_of(tenant(tmp_path, name)) for name in ("b", "a", "c")]
    hub = create_keys(tmp_path / "hub", Party("coordinator", "hub"))
    requests.append(make_request(hub, ("localhost", "127.0.0.1"), NOW))
    roster = extend_roster(None, requests)
    assert roster is not None
    assert [member.tenant for member in roster.members] == ["a", "b", "c"]
    for bundle in issue(authority, requests, NOW):
        directory = write_bundle(tmp_path / "out", bundle, b"ca", roster)
        certificate = read_certificate((directory / "tls.pem").read_bytes(), "")
        assert party_of(certificate) == bundle.party
    assert Roster.decode((tmp_path / "out/a/roster.bin").read_bytes()) == roster


def test_keys_are_never_overwritten_without_force(tmp_path: Path) -> None:
    before = tenant(tmp_path, "a").seed.read_bytes()
    with pytest.raises(ConfigError, match="--force"):
        tenant(tmp_path, "a")
    assert (tmp_path / "a/identity.seed").read_bytes() == before
    create_keys(tmp_path / "a", Party("tenant", "a"), force=True)
    assert (tmp_path / "a/identity.seed").read_bytes() != before


@pytest.mark.parametrize(
    "changes",
    [{"group": "other"}, {"created": int(NOW.timestamp()) + 1}, {"member_proof": "00" * 64},
     {"signature": "00" * 64}],
)  # fmt: skip
def test_an_altered_request_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    request = altered(tenant(tmp_path, "a"), tmp_path / "r.json", **changes)
    with pytest.raises(ConfigError, match="altered"):
        request.verify(NOW)


def test_a_foreign_tls_key_in_a_request_is_refused(tmp_path: Path) -> None:
    foreign = request_of(tenant(tmp_path, "b")).csr
    request = altered(tenant(tmp_path, "a"), tmp_path / "r.json", csr=foreign)
    with pytest.raises(ConfigError, match="altered"):
        request.verify(NOW)


def test_a_request_for_another_name_is_refused(tmp_path: Path) -> None:
    keys = tenant(tmp_path, "a")
    about = json.loads(keys.about.read_text())
    signed_as_b = tmp_path / "identity.json"
    csr = request_of(keys).csr
    keys.about.write_text(json.dumps(about | {"name": "b"}))
    request = make_request(keys, (), NOW)
    forged = altered(keys, signed_as_b, **(json.loads(request.encode()) | {"csr": csr}))
    with pytest.raises(ConfigError):
        forged.verify(NOW)


@pytest.mark.parametrize("days", [31, -1])
def test_a_request_too_old_or_from_the_future_is_refused(tmp_path: Path, days: int) -> None:
    request = request_of(tenant(tmp_path, "a"))
    with pytest.raises(ConfigError, match="days ago"):
        request.verify(NOW + datetime.timedelta(days=days))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "secagg enrolment request 1"}'])
def test_a_file_that_is_no_request_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ConfigError, match="no enrolment request"):
        Request.read(tmp_path / "r.json")


def test_a_tenant_gets_no_host_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="coordinator alone"):
        make_request(tenant(tmp_path, "a"), ("localhost",), NOW)


def test_another_key_under_an_enrolled_name_needs_replace(tmp_path: Path) -> None:
    roster = extend_roster(None, [request_of(tenant(tmp_path, "a"))])
    fresh = create_keys(tmp_path / "new", Party("tenant", "a"))
    with pytest.raises(ConfigError, match="--replace a"):
        extend_roster(roster, [request_of(fresh)])
    replaced = extend_roster(roster, [request_of(fresh)], replace=frozenset({"a"}))
    assert replaced is not None
    assert replaced["a"].public_key == fresh.identity().public_key


def test_an_expired_authority_issues_nothing(tmp_path: Path, authority: Authority) -> None:
    later = NOW + datetime.timedelta(days=4000)
    with pytest.raises(ConfigError, match="expired"):
        issue(authority, [request_of(tenant(tmp_path, "a"))], later)


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a/../b", "x" * 64, "ä"])
def test_names_that_do_not_suit_files_and_urns_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        Party("tenant", name)


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def test_the_commands_enrol_three_tenants(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("init", "--role", "authority", "--name", "fed", "--dir", tmp_path / "authority")
    for name in ("a", "b", "c"):
        run("init", "--role", "tenant", "--name", name, "--dir", tmp_path / name)
        run("request", "--dir", tmp_path / name, "--out", tmp_path / f"{name}.json")
    capsys.readouterr()
    requests = [tmp_path / f"{name}.json" for name in ("a", "b", "c")]
    run("approve", *requests, "--authority", tmp_path / "authority", "--out", tmp_path / "out",
        "--yes", "--format", "json")  # fmt: skip
    answer = json.loads(capsys.readouterr().out)
    digest = answer["roster_digest"]
    run("accept", tmp_path / "out/a", "--dir", tmp_path / "a", "--roster-digest", digest)
    assert KeyFiles(tmp_path / "a").read_roster().digest.hex() == digest
    with pytest.raises(ConfigError, match="not the one given"):
        main(["accept", str(tmp_path / "out/b"), "--dir", str(tmp_path / "b"),
              "--roster-digest", "00" * 32])  # fmt: skip
    with pytest.raises(ConfigError, match="issued for another key"):
        main(["accept", str(tmp_path / "out/b"), "--dir", str(tmp_path / "c"),
              "--roster-digest", digest])  # fmt: skip
    run("show", tmp_path / "a")
    assert digest in capsys.readouterr().out


def test_no_command_prints_a_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("init", "--role", "tenant", "--name", "a", "--dir", tmp_path / "a", "--format", "json")
    run("request", "--dir", tmp_path / "a")
    run("show", tmp_path / "a", "--format", "json")
    seed = (tmp_path / "a/identity.seed").read_text().strip()
    out, err = capsys.readouterr()
    assert seed not in out + err + (tmp_path / "a/request.json").read_text()
