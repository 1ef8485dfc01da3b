"""Which version serves at this tenant: approved, rejected, rolled back, by figures or by people.

`data/serving.json` names the version that the tenant's own application should load: folder, number
and every file's SHA-256. It is the last approved version that was not rejected or rolled back
since; without one the base serves as it is. A rejected version stays in the rounds, since what a
tenant trains from must not depend on what it measured.

Going back restores bytes: a version's files are hashed against its manifest before it serves
again. The last word on a version is kept with all earlier ones; nothing is deleted.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from secagg.errors import ConfigError
from secagg_tenant.store import TenantStore
from secagg_tenant.trainer import ModelVersion
from secagg_tenant.versions import VersionFiles

SERVING_FILE = "serving.json"
Decider = Literal["measured", "operator"]


@dataclass(frozen=True, slots=True)
class Decisions:
    """See the module's docstring. Another process of this tenant may decide at the same time."""

    store: TenantStore
    versions: VersionFiles
    data: Path

    def serving(self) -> ModelVersion | None:
        """The version in use, None where that is the bare base.

        Raises:
            ConfigError: its files are not what its manifest says.
        """
        digest = self.store.approved()
        return None if digest is None else self._version(digest)

    def in_use(self) -> ModelVersion | None:
        """The same for measuring, without hashing every file of it.

        Raises:
            ConfigError: it is gone from the disk.
        """
        digest = self.store.approved()
        if digest is None:
            return None
        version = self.versions.at_hand(digest, self.store.number_of(digest))
        return version if version is not None else self._version(digest)

    def record(self, digest: bytes, verdict: str, decider: Decider, reason: str) -> None:
        """A word on a version; what serves follows from it.

        Raises:
            ConfigError: an approved version's files are not what its manifest says.
        """
        if verdict == "approved":
            self._version(digest)
        if decider == "measured" and self.store.decision(digest) is not None:
            return  # an operator spoke while its files were read
        self.store.add_decision(digest, verdict, decider, reason)
        self.publish()

    def decide(self, number: int, verdict: Literal["approved", "rejected"], reason: str) -> None:
        """An operator's word on the version with this number.

        Raises:
            ConfigError: this tenant has accepted no such version, or its files are damaged.
        """
        digest = self.store.digest_of(number)
        if digest is None:
            raise ConfigError(
                f"this tenant has accepted no version {number}; 'secagg tenant versions' lists them"
            )
        self.record(digest, verdict, "operator", reason)

    def roll_back(self, reason: str) -> ModelVersion | None:
        """Take the version in use out of it; the one approved before serves again, bit for bit.

        Raises:
            ConfigError: none is in use, or the files of the one before are damaged.
        """
        digest = self.store.approved()
        if digest is None:
            raise ConfigError("no version is in use, so there is nothing to roll back")
        self.store.add_decision(digest, "rolled back", "operator", reason)
        self.publish()
        return self.serving()

    def publish(self) -> None:
        """Write `serving.json` anew.

        Raises:
            ConfigError: the version in use is damaged; the file names the base then.
        """
        while True:  # another process may decide while this one reads a version's files
            digest = self.store.approved()
            try:
                version = None if digest is None else self._version(digest)
            except ConfigError:
                self._write(None)
                raise
            self._write(version)
            if self.store.approved() == digest:
                return

    def _write(self, version: ModelVersion | None) -> None:
        facts: dict[str, object] = {"number": 0, "digest": None}
        if version is not None:
            manifest = version.manifest
            facts = {
                "number": version.number,
                "digest": manifest.digest.hex(),
                "folder": str(version.directory.resolve()),
                "files": {entry.name: entry.sha256.hex() for entry in manifest.files},
            }
        path = self.data / SERVING_FILE
        passing = path.with_name(f"{path.name}.{os.getpid()}.new")
        try:
            passing.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            os.replace(passing, path)
        except OSError as error:
            passing.unlink(missing_ok=True)
            raise ConfigError(
                f"{path} cannot be written: {error.strerror}. It names what it named before; what "
                "was decided is kept, and the next decision or 'join' writes it"
            ) from None

    def _version(self, digest: bytes) -> ModelVersion:
        number = self.store.number_of(digest)
        version = self.versions.at_hand(digest, number)
        if version is None or not self.versions.intact(version):
            raise ConfigError(
                f"version {number} is not in {self.versions.directory / digest.hex()} as its "
                "manifest says: bring the folder back, or reject the version"
            )
        return version
