"""The demonstration's folder: one subfolder for each party, as if it were that party's machine.

    DIR/parties/NAME/{keys, data, config.toml}          only that party's process reads it
    DIR/parties/NAME/{text, series}                     a tenant's private data, whichever it has
    DIR/logs, DIR/evidence, DIR/arms                    what the demonstration keeps
    DIR/report.html, report.json, texts.json or series.json

Keys are fresh in every run: an earlier run's folders are removed first, and only those, and only in
a folder that an earlier run has marked as its own.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secagg.errors import ConfigError
from secagg_wire import enrol_cli
from secagg_wire.key_files import KeyFiles

AUTHORITY, COORDINATOR, OWNER = "authority", "coordinator", "owner"
_MARK = ".secagg-demo"
_FOLDERS = ("parties", "logs", "evidence", "arms")
_FILES = ("report.html", "report.json", "texts.json", "series.json")


@dataclass(frozen=True, slots=True)
class Site:
    """Where everything lies."""

    root: Path

    @classmethod
    def prepare(cls, root: Path) -> Site:
        """Make the folder, or empty it of an earlier demonstration.

        Raises:
            ConfigError: it holds something else, or cannot be written.
        """
        site = cls(root.resolve())
        try:
            site.root.mkdir(parents=True, exist_ok=True)
            if any(site.root.iterdir()) and not (site.root / _MARK).exists():
                raise ConfigError(
                    f"{root} is not empty and an earlier demonstration did not make it; "
                    "choose another --out"
                )
            (site.root / _MARK).touch()
            for name in _FOLDERS:
                shutil.rmtree(site.root / name, ignore_errors=True)
            for name in _FILES:
                (site.root / name).unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot use {root}: {error.strerror}") from None
        return site

    @property
    def logs(self) -> Path:
        """What each process printed."""
        return self.root / "logs"

    @property
    def evidence(self) -> Path:
        """What the rounds left."""
        return self.root / "evidence"

    @property
    def arms(self) -> Path:
        """Adapters of the comparison's arms."""
        return self.root / "arms"

    def party(self, name: str) -> Path:
        """One party's folder."""
        return self.root / "parties" / name

    def write_config(self, name: str, tables: Mapping[str, Any]) -> Path:
        """A party's configuration file."""
        path = self.party(name) / "config.toml"
        path.write_text(toml(tables), encoding="utf-8")
        return path


def enrol(site: Site, tenants: Sequence[str]) -> str:
    """Fresh keys for everybody by `secagg keys`; the roster's digest, which everybody pins.

    The steps are those of real parties, who would each run their own on their own machine and read
    fingerprints to each other by phone.
    """
    roles = {COORDINATOR: "coordinator", OWNER: "owner"} | dict.fromkeys(tenants, "tenant")
    site.logs.mkdir(parents=True, exist_ok=True)
    with (
        (site.logs / "keys.log").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        authority, approved = site.party(AUTHORITY), site.party(AUTHORITY) / "approved"
        _keys("init", "--role", "authority", "--name", "demo-federation", "--dir", authority)
        for name, role in roles.items():
            keys = site.party(name) / "keys"
            _keys("init", "--role", role, "--name", name, "--dir", keys)
            hosts = ("--host", "127.0.0.1") if role == "coordinator" else ()
            _keys("request", "--dir", keys, *hosts)
        requests = [site.party(name) / "keys" / "request.json" for name in roles]
        _keys("approve", *requests, "--authority", authority, "--out", approved, "--yes")
        digest = roster_digest(approved / COORDINATOR)
        for name in roles:
            keys = site.party(name) / "keys"
            _keys("accept", approved / name, "--dir", keys, "--roster-digest", digest)
    return digest


def roster_digest(keys: Path) -> str:
    """The digest of the roster in a key directory, in hex."""
    return KeyFiles(keys).read_roster().digest.hex()


def _keys(*arguments: str | Path) -> None:
    enrol_cli.main([str(argument) for argument in arguments])


def toml(tables: Mapping[str, Any]) -> str:
    """A TOML document of values and one level of tables."""
    values = {name: value for name, value in tables.items() if not isinstance(value, Mapping)}
    nested = {name: value for name, value in tables.items() if isinstance(value, Mapping)}
    lines = [f"{name} = {_value(value)}" for name, value in values.items()]
    for name, table in nested.items():
        lines += ["", f"[{name}]", *(f"{key} = {_value(item)}" for key, item in table.items())]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case Path() | str():
            return json.dumps(str(value), ensure_ascii=False)  # TOML's basic strings are JSON's
        case list() | tuple():
            return f"[{', '.join(map(_value, value))}]"
        case _:
            raise TypeError(f"no TOML for {type(value).__name__}")
