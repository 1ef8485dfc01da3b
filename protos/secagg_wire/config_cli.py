"""Check a node's configuration and its files before it runs.

One line for each finding; exit code 0 when nothing is wrong, 2 otherwise. The kind of file
(coordinator, tenant, owner) is found by its keys, or given with --kind.

  secagg config check tenant.toml
  secagg config check coordinator.toml --format json
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

from secagg.errors import ConfigError
from secagg_wire.key_files import ROLES, KeyFiles, Party, Role, read_public, read_secret
from secagg_wire.settings import read_toml
from secagg_wire.tls import (
    check_pair,
    check_validity,
    party_of,
    read_certificate,
    subject_names,
)

# Nodes are found by name: this package imports none of them.
_LOADERS: Final[Mapping[Role, tuple[str, str]]] = {
    "coordinator": ("secagg_coordinator.config", "load"),
    "tenant": ("secagg_tenant.config", "load_config"),
    "owner": ("secagg_owner.config", "load_config"),
}
_EXIT_WRONG = 2
_SOON = datetime.timedelta(days=30)
_LITTLE_SPACE = 1 << 30
_NO_SPACE = 1 << 26
Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, and what is so."""

    level: Level
    subject: str
    message: str


def main(argv: list[str]) -> int:
    """Run `secagg config ...`."""
    options = _parser().parse_args(argv)
    findings = list(check(options.file, options.kind))
    wrong = any(finding.level == "error" for finding in findings)
    if options.format == "json":
        print(json.dumps({"ok": not wrong, "findings": [asdict(f) for f in findings]}))
    else:
        for finding in findings:
            print(f"{finding.level:8}{finding.subject:14}{finding.message}")
    return _EXIT_WRONG if wrong else 0


def check(path: Path, kind: Role | None = None) -> Iterator[Finding]:
    """Everything that can be checked without connecting to anybody."""
    try:
        kind = kind or kind_of(path)
        config = _load(kind, path)
    except ConfigError as error:
        yield Finding("error", "file", str(error))
        return
    yield Finding("ok", "file", f"a valid {kind}'s configuration")
    keys = KeyFiles(config.keys)
    for subject, look in _CHECKS.items():
        yield from _guarded(subject, partial(look, kind, config, keys))
    for required in _required(kind, config):
        if required.exists():
            yield Finding("ok", "files", f"{required} is there")
        else:
            yield Finding("error", "files", f"{required} does not exist")


def kind_of(path: Path) -> Role:
    """Whose configuration a file is, by its keys.

    Raises:
        ConfigError: it cannot be told.
    """
    values = read_toml(path)
    if "coordinator" not in values:
        if "listen" in values or {"keys", "data"} <= values.keys():
            return "coordinator"
        raise ConfigError(f"{path}: neither a coordinator's file nor a tenant's or owner's; --kind")
    return "owner" if "round" in values or "policy" not in values else "tenant"


def _load(kind: Role, path: Path) -> Any:
    module, name = _LOADERS[kind]
    load: Callable[[Path], Any] = getattr(importlib.import_module(module), name)
    return load(path)


def _required(kind: Role, config: Any) -> tuple[Path, ...]:
    required = getattr(importlib.import_module(_LOADERS[kind][0]), "required_files", None)
    return () if required is None else tuple(required(config))


def _guarded(subject: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except ConfigError as error:
        yield Finding("error", subject, str(error))


def _check_keys(kind: Role, config: Any, keys: KeyFiles) -> Iterator[Finding]:
    party = keys.party()
    if party.role != kind:
        raise ConfigError(f"{keys.directory} holds the keys of {party}, not of a {kind}")
    identity = keys.identity()
    read_secret(keys.tls_key)
    yield Finding("ok", "keys", f"{party}, public key {identity.public_key.hex()[:16]}...")


def _check_certificate(kind: Role, config: Any, keys: KeyFiles) -> Iterator[Finding]:
    now, where = datetime.datetime.now(datetime.UTC), str(keys.certificate)
    chain, party = read_public(keys.certificate), keys.party()
    certificate = read_certificate(chain, where)
    check_pair(chain, read_secret(keys.tls_key), keys)
    check_validity(certificate, now, where)
    if party_of(certificate) != party:
        raise ConfigError(f"{where} is of {party_of(certificate)}, and these keys are of {party}")
    authority = read_certificate(read_public(keys.authority), str(keys.authority))
    check_validity(authority, now, str(keys.authority))
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError):
        raise ConfigError(f"{where} was not issued by {keys.authority}") from None
    ends = certificate.not_valid_after_utc
    level: Level = "warning" if ends - now < _SOON else "ok"
    yield Finding(level, "certificate", f"of {party}, valid until {ends:%Y-%m-%d}")
    if kind == "coordinator":
        hosts = [str(name.value) for name in subject_names(certificate)]
        yield Finding("ok", "certificate", f"for {', '.join(hosts[1:]) or 'no host at all'}")


def _check_roster(kind: Role, config: Any, keys: KeyFiles) -> Iterator[Finding]:
    roster, digest = keys.read_roster(), keys.read_roster().digest.hex()
    pinned = getattr(getattr(config, "policy", None), "roster_digest", digest)
    if pinned != digest:
        raise ConfigError(f"{keys.roster} has digest {digest}, policy.roster_digest is {pinned}")
    party = keys.party()
    if party.role == "tenant" and not _lists(roster, party, keys):
        raise ConfigError(f"{keys.roster} holds another key for {party}, or none; enrol again")
    how = "pinned" if kind == "tenant" else "on file"
    yield Finding("ok", "roster", f"{len(roster.members)} tenants, {how} as {digest}")


def _lists(roster: Any, party: Party, keys: KeyFiles) -> bool:
    own = keys.identity().public_key
    return party.name in roster and bool(roster[party.name].public_key == own)


def _check_data(kind: Role, config: Any, keys: KeyFiles) -> Iterator[Finding]:
    data: Path = config.data
    there = next(parent for parent in (data, *data.parents) if parent.exists())
    probe = there / ".secagg-writable"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"cannot write in {there}: {error.strerror}") from None
    free = shutil.disk_usage(there).free
    if free < _NO_SPACE:
        raise ConfigError(f"{free >> 20} MiB are free for {data}; make room")
    level: Level = "warning" if free < _LITTLE_SPACE else "ok"
    yield Finding(level, "data", f"{data}: {free / _LITTLE_SPACE:.1f} GiB free")


def _check_schemes(kind: Role, config: Any, keys: KeyFiles) -> Iterator[Finding]:
    """Says something only where a scheme that this node is to run lacks its packages."""
    if find_spec("numba") is not None:
        return
    cure = "run: pip install 'secagg[ckks]'"
    if kind == "owner" and config.round.scheme == "ckks":
        raise ConfigError(f"round.scheme is ckks, and its packages are not installed; {cure}")
    if kind == "tenant" and "ckks" in config.policy.schemes:
        lacking = "the packages of scheme ckks are not installed: its plans will be declined"
        yield Finding("warning", "schemes", f"{lacking}; {cure}")


_CHECKS: Final[Mapping[str, Callable[[Role, Any, KeyFiles], Iterator[Finding]]]] = {
    "keys": _check_keys,
    "certificate": _check_certificate,
    "roster": _check_roster,
    "data": _check_data,
    "schemes": _check_schemes,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="secagg config",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    checking = commands.add_parser("check", help="check a file and what it names")
    checking.add_argument("file", type=Path, metavar="FILE")
    checking.add_argument("--kind", choices=ROLES)
    checking.add_argument("--format", choices=("text", "json"), default="text")
    return parser
