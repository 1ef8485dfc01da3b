"""The leaves of an ended round, as they are served to those who recompute its sum.

An upload's audit paths are written beside the round when they are first asked for, and deleted with
the uploads when retention ends. Memory is one leaf.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

from secagg import merkle
from secagg.plan import RoundPlan
from secagg.scheme import leaf_places
from secagg_coordinator import archive, audit_paths
from secagg_coordinator.records import RoundRecord
from secagg_wire.refusals import NoLongerKept

_building = threading.Lock()


class RoundLeaves:
    """One round's. Methods block; call them in a thread."""

    def __init__(self, data: Path, record: RoundRecord) -> None:
        plan = RoundPlan.decode(record.plan)
        self._uploads = archive.spool_of(data, record.context)
        self._directory = archive.directory_of(data, record.context)
        self._sizes = [place.size for place in leaf_places(plan)]
        self._starts = [0, *accumulate(self._sizes)]
        self._survivors = record.opened.survivors

    @property
    def count(self) -> int:
        """How many leaves an upload has, and the sum."""
        return len(self._sizes)

    def require_kept(self) -> None:
        """Demand every survivor's upload.

        Raises:
            NoLongerKept: retention has ended.
        """
        with _kept():
            for tenant in self._survivors:
                self._upload(tenant).stat()
            archive.sum_paths(self._directory).stat()

    def upload(self, tenant: str, number: int) -> tuple[bytes, tuple[bytes, ...]]:
        """One leaf of a survivor's upload, and its audit path.

        Raises:
            NoLongerKept: retention has ended.
        """
        with _kept():
            with self._upload(tenant).open("rb") as file:
                file.seek(self._starts[number])
                data = file.read(self._sizes[number])
            return data, audit_paths.read(self._paths_of(tenant), self.count, number)

    def claimed(self, number: int) -> tuple[bytes, ...]:
        """The audit path of a leaf of the sum.

        Raises:
            NoLongerKept: this round ended before sums were announced by their root.
        """
        with _kept():
            return audit_paths.read(archive.sum_paths(self._directory), self.count, number)

    def _upload(self, tenant: str) -> Path:
        return self._uploads / f"{tenant}.bin"

    def _paths_of(self, tenant: str) -> Path:
        file = archive.upload_paths(self._directory) / tenant
        with _building:
            if not file.exists():
                with self._upload(tenant).open("rb") as source:
                    pieces = (source.read(size) for size in self._sizes)
                    audit_paths.write(file, [merkle.bulk_leaf_hash(piece) for piece in pieces])
        return file


@contextmanager
def _kept() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NoLongerKept(
            "the uploads of this round are no longer kept (retention.hours); "
            "its sum cannot be recomputed any more"
        ) from None
