"""Where the bytes of uploads wait until root, length and signature are verified."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol


class Spool(Protocol):
    """Where the bytes of uploads wait. An error of `append` fails that upload and nothing else."""

    def append(self, participant: str, data: bytes | memoryview) -> None:
        """Add bytes at the end of a participant's upload."""

    def read(self, participant: str, sizes: Iterable[int]) -> Iterator[bytes | memoryview]:
        """The upload again, in pieces of the given sizes."""

    def discard(self, participant: str) -> None:
        """Forget an upload."""


class MemorySpool:
    """A spool for tests and simulations; it keeps the very bytes that it is given."""

    def __init__(self) -> None:
        self._uploads: dict[str, list[bytes | memoryview]] = {}

    def append(self, participant: str, data: bytes | memoryview) -> None:
        """See `Spool`."""
        self._uploads.setdefault(participant, []).append(data)

    def read(self, participant: str, sizes: Iterable[int]) -> Iterator[bytes | memoryview]:
        """See `Spool`."""
        given = iter(self._uploads.get(participant, ()))
        rest = memoryview(b"")
        for size in sizes:
            parts: list[memoryview] = []
            while size:
                rest = rest or memoryview(next(given))
                parts.append(rest[:size])
                size, rest = size - len(parts[-1]), rest[size:]
            yield parts[0] if len(parts) == 1 else b"".join(parts)

    def discard(self, participant: str) -> None:
        """See `Spool`."""
        self._uploads.pop(participant, None)
