"""Where the parties of a measured round run: each in a process of its own, many in one, or here.

A process begins with a small round of its own. It then has loaded what a round needs and has copied
the pages of its parent that a round writes to, as a node that has been up for a while.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

_fork = multiprocessing.get_context("fork")


class Seat(Protocol):
    """Where a party runs."""

    def ask(self, method: str, *arguments: object) -> Any:
        """Call a method of the party."""

    def end(self) -> None:
        """The party is not needed any more."""


class Here:
    """A party in this process."""

    def __init__(self, party: object) -> None:
        self._party = party

    def ask(self, method: str, *arguments: object) -> Any:
        """See `Seat`."""
        return getattr(self._party, method)(*arguments)

    def end(self) -> None:
        """See `Seat`."""


class Forked:
    """A party in a process of its own, which ends with this one."""

    def __init__(self, party: object, warm_up: Callable[[], object]) -> None:
        self._pipe, theirs = _fork.Pipe()
        self._process = _fork.Process(target=_serve, args=(self._pipe, theirs, party, warm_up))
        self._process.start()
        theirs.close()
        self._receive()

    def ask(self, method: str, *arguments: object) -> Any:
        """See `Seat`."""
        self._pipe.send((method, arguments))
        return self._receive()

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError("a process of the benchmark died; it has said why above") from None

    def end(self) -> None:
        """See `Seat`. Waits for the process."""
        if not self._pipe.closed:
            self._pipe.send(None)
            self._process.join()
            self._pipe.close()


def _serve(
    parents: Connection, own: Connection, party: object, warm_up: Callable[[], object]
) -> None:
    parents.close()
    try:
        warm_up()
        gc.collect()
        gc.freeze()
        own.send("ready")
        _answer(own, party)
    finally:
        _end_children()


def _answer(own: Connection, party: object) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101  this is a child
    # Processes forked later hold the parent's end of this pipe too: its closing tells nothing.
    while own in wait([own, parent.sentinel]) and (call := own.recv()) is not None:
        method, arguments = call
        own.send(getattr(party, method)(*arguments))


def _end_children() -> None:
    """A process that ends waits for its children, and these for their next call."""
    for child in multiprocessing.active_children():
        child.terminate()


atexit.register(_end_children)


class Crowd:
    """Many parties as one, which a process may serve."""

    def __init__(self, parties: Mapping[int, object]) -> None:
        self._parties = parties

    def act(self, index: int, method: str, *arguments: object) -> Any:
        """Call a method of one of them."""
        return getattr(self._parties[index], method)(*arguments)


class Place:
    """One party's seat in the process of a crowd."""

    def __init__(self, process: Forked, index: int) -> None:
        self._process = process
        self._index = index

    def ask(self, method: str, *arguments: object) -> Any:
        """See `Seat`."""
        return self._process.ask("act", self._index, method, *arguments)

    def end(self) -> None:
        """The first to leave ends the process of all."""
        self._process.end()
