"""The manifest of a model version: which files, how long, and their SHA-256.

Its bytes are canonical JSON (sorted keys, no spaces, ASCII), so that a manifest has one digest.
That digest is the round plan's `model_digest`: a tenant checks the manifest against the plan and
the files against the manifest, and believes neither the coordinator nor the version number. A
version that was made from a round's sum says so (`Origin`), so that its sum can be recomputed. A
version that goes back to an older one says so too (`Rollback`): it has that one's files and origin.

File names are plain; nothing here can name a path. Kinds of file that run code when they are loaded
(pickles) have no place in a version and are refused by their suffix.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Any

from secagg.errors import ConfigError
from secagg.identity import sha256

FORMAT = "secagg-model/1"
SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".md", ".jinja", ".model"})
MAX_MANIFEST_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HEX = re.compile(r"[0-9a-f]{64}")
_ORIGIN = ("context", "sum_root", "transcript_sha256")
_ROLLBACK = ("restores", "undoes")
_KEYS = {"files", "format", "meta"}
_OPTIONAL = {"origin", "rollback"}


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file: `size` in bytes, `sha256` of its contents (32 bytes)."""

    name: str
    size: int
    sha256: bytes

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"manifest: {self.name!r} is not a plain file name")
        if PurePath(self.name).suffix not in SUFFIXES:
            raise ConfigError(f"manifest: {self.name!r} is none of {sorted(SUFFIXES)}")
        if not 0 <= self.size < 1 << 53 or len(self.sha256) != 32:
            raise ConfigError(f"manifest: {self.name!r} needs a size in bytes and a SHA-256")


@dataclass(frozen=True, slots=True)
class Origin:
    """The round whose opened sum a version was made from; 32 bytes each.

    `sum_root` is the Merkle root over the sum's leaves (`secagg.recompute.sum_root`). Whoever
    recomputes leaves draws them after it was fixed here.
    """

    context: bytes
    sum_root: bytes
    transcript_sha256: bytes

    def __post_init__(self) -> None:
        if any(len(digest) != 32 for digest in asdict(self).values()):
            raise ConfigError("manifest: an origin has three digests of 32 bytes")

    def to_json(self) -> dict[str, str]:
        """Digests in hex, by their names."""
        return {name: digest.hex() for name, digest in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Any) -> Origin:
        """Inverse of `to_json`.

        Raises:
            ConfigError: not these three digests.
        """
        if set(value) != set(_ORIGIN) or not all(map(_HEX.fullmatch, value.values())):
            raise ConfigError(f"manifest: an origin has {', '.join(_ORIGIN)} in hex, nothing else")
        return cls(*(bytes.fromhex(value[name]) for name in _ORIGIN))


@dataclass(frozen=True, slots=True)
class Rollback:
    """Which version's state this one restores, and which one it takes out of use.

    Manifest digests, 32 bytes each. What the next round trains differs (its place in the schedule),
    so that the restored version's own manifest cannot serve.
    """

    restores: bytes
    undoes: bytes

    def __post_init__(self) -> None:
        if (len(self.restores), len(self.undoes)) != (32, 32) or self.restores == self.undoes:
            raise ConfigError("manifest: a rollback names two versions by digests of 32 bytes")

    def to_json(self) -> dict[str, str]:
        """Digests in hex, by their names."""
        return {"restores": self.restores.hex(), "undoes": self.undoes.hex()}

    @classmethod
    def from_json(cls, value: Any) -> Rollback:
        """Inverse of `to_json`.

        Raises:
            ConfigError: not these two digests.
        """
        if set(value) != set(_ROLLBACK) or not all(map(_HEX.fullmatch, value.values())):
            raise ConfigError(f"manifest: a rollback has {', '.join(_ROLLBACK)} in hex, no more")
        return cls(*(bytes.fromhex(value[name]) for name in _ROLLBACK))


@dataclass(frozen=True, slots=True)
class Manifest:
    """Files by name, sorted, and the publisher's own JSON object beside them.

    `origin` is None for a version that came out of no round, `rollback` for one that restores none.
    """

    files: tuple[FileEntry, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin | None = None
    rollback: Rollback | None = None

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.files]
        if not names or names != sorted(set(names)):
            raise ConfigError("manifest: it needs files, each once and sorted by name")

    @classmethod
    def of(
        cls,
        contents: Mapping[str, bytes],
        meta: Mapping[str, Any] | None = None,
        origin: Origin | None = None,
    ) -> Manifest:
        """The manifest of files that are at hand in memory."""
        entries = (FileEntry(name, len(data), sha256(data)) for name, data in contents.items())
        return cls(tuple(sorted(entries, key=lambda entry: entry.name)), meta or {}, origin)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes: the plan's `model_digest`."""
        return sha256(self.encode())

    @property
    def total_size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    def entry(self, name: str) -> FileEntry | None:
        """The file called `name`, or None."""
        return next((entry for entry in self.files if entry.name == name), None)

    def encode(self) -> bytes:
        """Canonical JSON."""
        files = {e.name: {"sha256": e.sha256.hex(), "size": e.size} for e in self.files}
        value = {"files": files, "format": FORMAT, "meta": dict(self.meta)}
        if self.origin is not None:
            value["origin"] = self.origin.to_json()
        if self.rollback is not None:
            value["rollback"] = self.rollback.to_json()
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Inverse of `encode`.

        Raises:
            ConfigError: not a manifest's canonical bytes.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise ConfigError(f"manifest: {len(data)} bytes are above {MAX_MANIFEST_BYTES}")
        try:
            manifest = _read(json.loads(data))
            if manifest.encode() != data:
                raise ConfigError("manifest: its JSON is not canonical (see secagg_wire.manifest)")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError("manifest: not the JSON of secagg-model/1") from None
        return manifest


def _read(value: Any) -> Manifest:
    if set(value) - _OPTIONAL != _KEYS or value["format"] != FORMAT:
        raise ConfigError(f"manifest: its format is not {FORMAT}")
    return Manifest(
        tuple(_read_entry(name, entry) for name, entry in value["files"].items()),
        value["meta"],
        Origin.from_json(value["origin"]) if "origin" in value else None,
        Rollback.from_json(value["rollback"]) if "rollback" in value else None,
    )


def _read_entry(name: str, value: Any) -> FileEntry:
    if set(value) != {"sha256", "size"} or not _HEX.fullmatch(value["sha256"]):
        raise ConfigError(f"manifest: {name[:128]!r} needs sha256 (hex) and size, nothing else")
    if type(value["size"]) is not int:
        raise ConfigError(f"manifest: the size of {name[:128]!r} is not a whole number")
    return FileEntry(name, value["size"], bytes.fromhex(value["sha256"]))
