"""Model versions on disk: safetensors files under a manifest of hashes, and no pickle anywhere.

A version's files lie under the SHA-256 of its manifest; the database gives it a number once all of
them are in place and verified. What is being published lies in a directory of its own until then,
so that a broken publication leaves nothing that anybody could download.

The coordinator stores and serves bytes. It never loads a model; tenants verify what they download
against the manifest, and the manifest against the plan and the owner's key that they pin. Here a
signature is only held against the key that came with it, so that a spoilt one is told early.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path
from typing import IO

from secagg.errors import ConfigError
from secagg_coordinator.records import VersionRecord
from secagg_coordinator.store import Store
from secagg_wire.manifest import FileEntry, Manifest
from secagg_wire.refusals import (
    DigestMismatch,
    InvalidRequest,
    OffsetMismatch,
    QuotaExceeded,
    UnknownVersion,
)
from secagg_wire.signed_manifest import ManifestSignature

_HEADER_LIMIT = 100_000_000  # as the safetensors format has it


class Registry:
    """All versions. Its methods block; call them in a thread."""

    def __init__(self, directory: Path, store: Store, limit: int) -> None:
        self._directory = directory
        self._store = store
        self._limit = limit
        self._turn = threading.Lock()
        shutil.rmtree(directory / "incoming", ignore_errors=True)
        (directory / "incoming").mkdir(parents=True)

    def version(self, number: int) -> tuple[VersionRecord, Manifest]:
        """A version by number, 0 for the newest.

        Raises:
            UnknownVersion: there is none.
        """
        record = self._store.version(number)
        if record is None:
            which = f"version {number}" if number else "version at all yet"
            raise UnknownVersion(f"there is no model {which}")
        return record, Manifest.decode(record.manifest)

    def file(self, number: int, name: str) -> tuple[Path, FileEntry]:
        """Where a file of a version lies.

        Raises:
            UnknownVersion: there is no such version or file.
        """
        record, manifest = self.version(number)
        entry = manifest.entry(name)
        if entry is None:
            raise UnknownVersion(f"version {record.version} has no file {name[:128]!r}")
        return self._home(record.manifest_sha256) / entry.name, entry

    def publication(
        self, manifest_bytes: bytes, signature: ManifestSignature | None = None
    ) -> Publication:
        """Begin a new version.

        Raises:
            ConfigError: the manifest is malformed.
            InvalidRequest: the signature is not over this manifest.
            QuotaExceeded: its files would not fit.
        """
        manifest = Manifest.decode(manifest_bytes)
        _require_match(manifest_bytes, signature)
        used = sum(version.total_size for version in self._store.versions())
        if used + manifest.total_size > self._limit:
            raise QuotaExceeded(
                f"this version has {manifest.total_size} bytes and {self._limit - used} are left; "
                "raise limits.model_bytes"
            )
        passing = self._directory / "incoming" / os.urandom(8).hex()
        return Publication(manifest, passing, signature)

    def known(
        self, manifest_bytes: bytes, signature: ManifestSignature | None = None
    ) -> VersionRecord | None:
        """The version that has this manifest already; a signature that it lacked is kept.

        Raises:
            InvalidRequest: the signature is not over this manifest.
        """
        record = self._store.version_of(hashlib.sha256(manifest_bytes).digest())
        if record is None or signature in (None, record.signature):
            return record
        _require_match(manifest_bytes, signature)
        with self._store.writing() as transaction:
            transaction.sign_version(record.version, signature)
        return self._store.version(record.version)

    def commit(self, publication: Publication) -> tuple[VersionRecord, bool]:
        """Give a complete publication its number; the second value says whether it is new."""
        publication.require_complete()
        manifest = publication.manifest
        with self._turn:
            if (known := self._store.version_of(manifest.digest)) is not None:
                publication.discard()
                return known, False
            home = self._home(manifest.digest)
            shutil.rmtree(home, ignore_errors=True)
            publication.directory.replace(home)
            with self._store.writing() as transaction:
                transaction.add_version(
                    manifest.encode(), manifest.digest, manifest.total_size, publication.signature
                )
        record = self._store.version_of(manifest.digest)
        if record is None:
            raise ConfigError("the version just written is not in the database")
        return record, True

    def _home(self, manifest_sha256: bytes) -> Path:
        return self._directory / manifest_sha256.hex()


class Publication:
    """A version on its way in: files in the manifest's order, each verified at its last byte."""

    def __init__(
        self, manifest: Manifest, directory: Path, signature: ManifestSignature | None = None
    ) -> None:
        self.manifest = manifest
        self.signature = signature
        self.directory = directory
        self._done: set[str] = set()
        self._entry: FileEntry | None = None
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._size = 0
        directory.mkdir()
        for entry in manifest.files:
            if entry.size == 0:
                self._verify_empty(entry)

    def write(self, name: str, offset: int, payload: bytes) -> None:
        """The next piece.

        Raises:
            InvalidRequest, OffsetMismatch, DigestMismatch, QuotaExceeded: see refusals.py.
        """
        file = self._file_for(name, offset)
        entry = self._entry
        if entry is None or self._size + len(payload) > entry.size:
            raise InvalidRequest(f"{name[:128]!r} is longer than its manifest says")
        try:
            file.write(payload)
        except OSError as error:
            raise QuotaExceeded(f"the disk is full ({error.strerror}); publish again") from error
        self._digest.update(payload)
        self._size += len(payload)
        if self._size == entry.size:
            self._finish(entry, file)

    def require_complete(self) -> None:
        """Demand every file of the manifest.

        Raises:
            InvalidRequest: some are missing.
        """
        missing = [e.name for e in self.manifest.files if e.name not in self._done]
        if missing:
            raise InvalidRequest(f"the publication ended without {missing[:5]}")

    def discard(self) -> None:
        """Leave nothing behind."""
        if self._file is not None:
            self._file.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _file_for(self, name: str, offset: int) -> IO[bytes]:
        if self._entry is None or self._file is None:
            self._begin(name)
        elif self._entry.name != name:
            raise InvalidRequest(f"{self._entry.name!r} is not complete and {name[:128]!r} begins")
        if offset != self._size:
            raise OffsetMismatch(f"a piece at byte {offset} came and {self._size} are there")
        if self._file is None:
            raise InvalidRequest("no file has begun")
        return self._file

    def _begin(self, name: str) -> None:
        entry = self.manifest.entry(name)
        if entry is None or name in self._done:
            raise InvalidRequest(f"{name[:128]!r} is not in the manifest, or came twice")
        self._entry, self._digest, self._size = entry, hashlib.sha256(), 0
        self._file = (self.directory / entry.name).open("wb")

    def _finish(self, entry: FileEntry, file: IO[bytes]) -> None:
        file.flush()
        os.fsync(file.fileno())
        file.close()
        self._entry = self._file = None
        if self._digest.digest() != entry.sha256:
            raise DigestMismatch(f"{entry.name!r} is not the file whose hash the manifest has")
        if entry.name.endswith(".safetensors"):
            check_safetensors(self.directory / entry.name)
        self._done.add(entry.name)
        self._size = 0

    def _verify_empty(self, entry: FileEntry) -> None:
        (self.directory / entry.name).touch()
        if hashlib.sha256().digest() != entry.sha256:
            raise DigestMismatch(f"{entry.name!r} is empty and its hash is another")
        if entry.name.endswith(".safetensors"):
            raise InvalidRequest(f"{entry.name!r} is empty: no safetensors file")
        self._done.add(entry.name)


def _require_match(manifest: bytes, signature: ManifestSignature | None) -> None:
    if signature is not None and not signature.verifies(manifest):
        raise InvalidRequest("the signature that came with the manifest is not over it")


def check_safetensors(path: Path) -> None:
    """Demand a safetensors header: 8 bytes length, then JSON whose offsets fill the file.

    Raises:
        InvalidRequest: this is another format under that name.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
            raise InvalidRequest(f"{path.name!r} is no safetensors file")
        try:
            header = json.loads(file.read(length))
            ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
            end = max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            raise InvalidRequest(f"{path.name!r} has no safetensors header") from None
    if end != size - 8 - length:
        raise InvalidRequest(f"{path.name!r} is shorter or longer than its header says")
