"""The owner's own model versions: every state that a round or a rollback led to, with its lineage.

DATA/models/N/update.safetensors     what is plugged into the full model
DATA/models/N/lineage.json           `Entry`: what it was made from, by digests, and its figures

Numbers count from 1 and are this owner's own; a version that was published has the coordinator's
number beside it. Nothing is ever overwritten but figures and the mark of publication: going back is
a new entry with the older one's bytes. An entry appears whole or not at all, and its update is held
against the entry's hash whenever it is read.

Not here: what the update means (secagg_models), publishing (rounds.py). No torch is needed to list.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from secagg.errors import ConfigError
from secagg.identity import sha256

UPDATE_FILE: Final = "update.safetensors"
LINEAGE_FILE: Final = "lineage.json"
Kind = Literal["start", "round", "rollback"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One state of the model. Digests are in hex, an empty one means that there is none.

    `parent` is the entry before it (0 for the first) and `restores` the one that a rollback goes
    back to. `base_digest` names the full model, `plugged_digest` the full model with the update in
    it, `meta` is what its manifest says. `origin` is the round whose sum it was made from
    (`manifest.Origin`): context, root of the sum, hash of the transcript.
    """

    number: int
    kind: Kind
    parent: int
    update_sha256: str
    base_digest: str
    plugged_digest: str
    emulator_manifest: str = ""
    restores: int = 0
    round: int = 0
    rounds_done: int = 0
    origin: Mapping[str, str] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    published_version: int = 0
    update_manifest: str = ""
    reason: str = ""
    forced: tuple[str, ...] = ()
    created_at: float = 0.0

    def __post_init__(self) -> None:
        if self.number < 1 or self.kind not in get_args(Kind):
            raise ConfigError("a model version has a number from 1 and one of three kinds")
        if (self.kind == "rollback") != (self.restores > 0):
            raise ConfigError(
                "a rollback names the version that it restores, and nothing else does"
            )

    def encode(self) -> bytes:
        """The contents of `lineage.json`."""
        return json.dumps(asdict(self), indent=2, sort_keys=True).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Entry:
        """Inverse of `encode`.

        Raises:
            ConfigError: not the lineage of a version.
        """
        try:
            values = json.loads(data)
            return cls(**(values | {"forced": tuple(values["forced"])}))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError("not the lineage of a model version of this program") from None


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two versions differ: lineage (both values), figures (b minus a), distances by tensor."""

    a: int
    b: int
    same_plugged: bool
    lineage: Mapping[str, tuple[Any, Any]]
    figures: Mapping[str, float]
    distances: Mapping[str, float] = field(default_factory=dict)


_COMPARED = (
    "kind", "parent", "restores", "round", "base_digest", "emulator_manifest", "update_sha256",
    "update_manifest", "plugged_digest", "origin", "published_version", "meta",
)  # fmt: skip


class ModelRegistry:
    """See the module's docstring; `directory` is DATA/models."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def entries(self) -> tuple[Entry, ...]:
        """All versions, oldest first."""
        numbers = [int(p.name) for p in self._directory.glob("*") if p.name.isdecimal()]
        return tuple(self.entry(number) for number in sorted(numbers))

    def entry(self, number: int) -> Entry:
        """One version.

        Raises:
            ConfigError: there is none of this number, or its lineage is damaged.
        """
        path = self._home(number) / LINEAGE_FILE
        if not path.exists():
            known = [p.name for p in self._directory.glob("*") if p.name.isdecimal()]
            raise ConfigError(
                f"there is no model version {number}; "
                f"there are {', '.join(sorted(known, key=int)) or 'none yet'}"
            )
        try:
            entry = Entry.decode(path.read_bytes())
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        if entry.number != number:
            raise ConfigError(f"{path} is the lineage of version {entry.number}; restore the right")
        return entry

    def update(self, number: int) -> bytes:
        """A version's update, checked against its lineage.

        Raises:
            ConfigError: there is no such version, or its file is not the one that was written.
        """
        entry, path = self.entry(number), self._home(number) / UPDATE_FILE
        data = path.read_bytes() if path.exists() else b""
        if sha256(data).hex() != entry.update_sha256:
            raise ConfigError(
                f"{path} is missing or was changed since it was written; restore it from a backup"
            )
        return data

    def add(self, entry: Entry, update: bytes) -> Entry:
        """Keep a version, whole or not at all. The newest may be written again, after a crash."""
        entry = replace(
            entry, update_sha256=sha256(update).hex(), created_at=entry.created_at or time.time()
        )
        passing = self._directory / f".{entry.number}.new"
        shutil.rmtree(passing, ignore_errors=True)
        passing.mkdir(parents=True)
        _write(passing / UPDATE_FILE, update)
        _write(passing / LINEAGE_FILE, entry.encode())
        home = self._home(entry.number)
        shutil.rmtree(home, ignore_errors=True)
        os.replace(passing, home)
        return entry

    def change(self, number: int, **changes: Any) -> Entry:
        """Note a publication, or figures."""
        entry = replace(self.entry(number), **changes)
        passing = self._home(number) / f".{LINEAGE_FILE}.new"
        _write(passing, entry.encode())
        os.replace(passing, self._home(number) / LINEAGE_FILE)
        return entry

    def compare(self, a: int, b: int) -> Comparison:
        """What differs between two versions, as far as their lineage tells."""
        first, second = self.entry(a), self.entry(b)
        differing = {
            name: (getattr(first, name), getattr(second, name))
            for name in _COMPARED
            if getattr(first, name) != getattr(second, name)
        }
        figures = {
            name: second.figures[name] - first.figures[name]
            for name in first.figures
            if name in second.figures
        }
        same = first.plugged_digest == second.plugged_digest
        return Comparison(a, b, same, differing, figures)

    def _home(self, number: int) -> Path:
        return self._directory / str(number)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
