"""Uploads on disk: where protected vectors wait until root, length and signature are verified.

One directory a round, one file a tenant, holding the wire bytes as they came. The files of verified
uploads stay until retention ends, so that the transcript can be recomputed. A full disk or quota
fails that upload with QuotaExceeded; what was committed before stays readable, and the tenant may
continue when there is room. Nothing here is secret: every byte is under the tenant's masks.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from secagg_wire.refusals import QuotaExceeded


class SpoolQuota:
    """Bytes that all rounds' uploads may take together; counts what is on disk."""

    def __init__(self, root: Path, limit: int) -> None:
        self._limit = limit
        self._turn = threading.Lock()
        self._used = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())

    def take(self, size: int) -> None:
        """Reserve `size` bytes.

        Raises:
            QuotaExceeded: they do not fit.
        """
        with self._turn:
            if self._used + size > self._limit:
                raise QuotaExceeded(
                    f"the spool's quota of {self._limit} bytes is used up; the operator can raise "
                    "limits.spool_bytes or shorten retention"
                )
            self._used += size

    def give_back(self, size: int) -> None:
        """Release `size` bytes."""
        with self._turn:
            self._used -= size


class DiskSpool:
    """The uploads of one round; a `secagg.aggregator.Spool`."""

    def __init__(self, directory: Path, quota: SpoolQuota) -> None:
        self._directory = directory
        self._quota = quota
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, participant: str) -> Path:
        """Where this upload lies."""
        return self._directory / f"{participant}.bin"

    def append(self, participant: str, data: bytes) -> None:
        """Add bytes at the end of an upload, all of them or none.

        Raises:
            QuotaExceeded: the quota or the disk is full.
        """
        self._quota.take(len(data))
        try:
            _append(self.path(participant), data)
        except OSError as error:
            self._quota.give_back(len(data))
            raise QuotaExceeded(
                f"the coordinator cannot keep this upload ({error.strerror}); "
                "it can go on when the operator has made room"
            ) from error

    def read(self, participant: str, sizes: Iterable[int]) -> Iterator[bytes]:
        """The upload again, in pieces of the given sizes."""
        with self.path(participant).open("rb") as file:
            for size in sizes:
                yield file.read(size)

    def discard(self, participant: str) -> None:
        """Forget an upload that was not finished."""
        path = self.path(participant)
        with suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            self._quota.give_back(size)

    def uploads(self) -> dict[str, Path]:
        """The files that are here, by tenant."""
        return {path.stem: path for path in sorted(self._directory.glob("*.bin"))}


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        before = file.tell()
        try:
            file.write(data)
            file.flush()
        except OSError:
            os.truncate(path, before)
            raise


def purge(directory: Path, quota: SpoolQuota) -> None:
    """Delete a round's uploads when its retention has ended."""
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    shutil.rmtree(directory, ignore_errors=True)
    quota.give_back(size)
