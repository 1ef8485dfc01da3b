"""Waking those who wait: streams sleep on a key and are woken when something about it changed.

A notice carries nothing; whoever wakes reads the store. So none can be lost or come out of order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from secagg_wire.refusals import ShuttingDown, Superseded

Key = str | bytes  # a tenant id, or a round's context


class Listener:
    """One waiting stream."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._error: Superseded | ShuttingDown | None = None

    def wake(self, error: Superseded | ShuttingDown | None = None) -> None:
        """Let the stream look again, or end with `error`."""
        self._error = self._error or error
        self._event.set()

    def rearm(self) -> None:
        """Before looking: what changes from now on wakes again."""
        if self._error is not None:
            raise self._error
        self._event.clear()

    async def wait(self) -> None:
        """Until the next notice.

        Raises:
            Superseded, ShuttingDown: this stream has to end.
        """
        await self._event.wait()
        if self._error is not None:
            raise self._error


class Notices:
    """All listeners by key. Belongs to one event loop."""

    def __init__(self) -> None:
        self._listeners: dict[Key, list[Listener]] = {}
        self._closed = False

    @contextmanager
    def listening(self, key: Key, *, alone: bool = False) -> Iterator[Listener]:
        """A listener for `key`; with `alone` it takes the place of earlier ones.

        Raises:
            ShuttingDown: the node is stopping.
        """
        if self._closed:
            raise ShuttingDown("the coordinator is stopping; connect again later")
        listeners = self._listeners.setdefault(key, [])
        if alone:
            for other in listeners:
                other.wake(Superseded("a newer stream of this tenant took this one's place"))
        listener = Listener()
        listeners.append(listener)
        try:
            yield listener
        finally:
            listeners.remove(listener)

    def notify(self, *keys: Key) -> None:
        """Wake everybody who waits on one of `keys`."""
        for key in keys:
            for listener in self._listeners.get(key, ()):
                listener.wake()

    def close(self) -> None:
        """End all streams and refuse new ones."""
        self._closed = True
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.wake(ShuttingDown("the coordinator is stopping; connect again later"))
