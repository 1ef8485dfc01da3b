"""Objects in processes of their own, so that each has its own CPU clock and its own peak memory.

Shared by the peers' harnesses; it needs nothing but the standard library. Processes are forked, run
one after another, and end with the one that made them.
"""

from __future__ import annotations

import gc
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

_fork = multiprocessing.get_context("fork")


class Cpu:
    """CPU seconds of this process, user and system, all threads, while it is running."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what happens inside."""
        before = time.process_time()
        try:
            yield
        finally:
            self.seconds += time.process_time() - before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens inside `running`."""
        before = time.process_time()
        try:
            yield
        finally:
            self.seconds -= time.process_time() - before


def peak_rss_mb() -> float:
    """The most memory that this process has had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


class Here:
    """An object in this process, called as if it were in another."""

    def __init__(self, served: object) -> None:
        self._served = served

    def ask(self, method: str, *arguments: object) -> Any:
        """Call a method."""
        return getattr(self._served, method)(*arguments)

    def end(self) -> None:
        """Nothing to end."""


class Forked:
    """An object in a process of its own. `warm_up` runs there first, before anything is asked."""

    def __init__(self, served: object, warm_up: Callable[[], object]) -> None:
        self._pipe, theirs = _fork.Pipe()
        self._process = _fork.Process(
            target=_serve, args=(self._pipe, theirs, served, warm_up), daemon=False
        )
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def ask(self, method: str, *arguments: object) -> Any:
        """Call a method there."""
        self._pipe.send((method, arguments))
        try:
            return self._pipe.recv()
        except EOFError:
            raise SystemExit("a process of this benchmark died; it has said why above") from None

    def end(self) -> None:
        """Let the process end and wait for it."""
        self._pipe.send(None)
        self._process.join()


def _serve(
    parents: Connection, own: Connection, served: object, warm_up: Callable[[], object]
) -> None:
    parents.close()
    warm_up()
    gc.collect()
    gc.freeze()
    own.send("ready")
    try:
        while (call := own.recv()) is not None:
            method, arguments = call
            own.send(getattr(served, method)(*arguments))
    except EOFError:
        return
