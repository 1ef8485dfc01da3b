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
        self._sizes: dict[str, int] = {}
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, participant: str) -> Path:
        """Where this upload lies."""
        return self._directory / f"{participant}.bin"

    def append(self, participant: str, data: bytes | memoryview) -> None:
        """Add bytes at the end of an upload, all of them or none.

        Raises:
            QuotaExceeded: the quota or the disk is full.
        """
        self._quota.take(len(data))
        try:
            _write_at(self.path(participant), self._sizes.get(participant, 0), data)
        except OSError as error:
            self._quota.give_back(len(data))
            raise QuotaExceeded(
                f"the coordinator cannot keep this upload ({error.strerror}); "
                "it can go on when the operator has made room"
            ) from error
        self._sizes[participant] = self._sizes.get(participant, 0) + len(data)

    def read(self, participant: str, sizes: Iterable[int]) -> Iterator[bytes]:
        """The upload again, in pieces of the given sizes."""
        with self.path(participant).open("rb") as file:
            for size in sizes:
                yield file.read(size)

    def discard(self, participant: str) -> None:
        """Forget an upload that was not finished."""
        self.path(participant).unlink(missing_ok=True)
        self._quota.give_back(self._sizes.pop(participant, 0))

    def uploads(self) -> dict[str, Path]:
        """The files that are here, by tenant."""
        return {path.stem: path for path in sorted(self._directory.glob("*.bin"))}


def _write_at(path: Path, offset: int, data: bytes | memoryview) -> None:
    # What an earlier, failed write left beyond `offset` is overwritten.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            offset, view = offset + written, view[written:]
    finally:
        os.close(descriptor)


def purge(directory: Path, quota: SpoolQuota) -> None:
    """Delete a round's uploads when its retention has ended."""
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    shutil.rmtree(directory, ignore_errors=True)
    quota.give_back(size)
