"""Child processes of the demonstration: started, listened to, killed, and never left behind.

Each child's output is one JSON object a line; it goes to a log file and, parsed, to whoever waits
for an event. On Linux a child also asks the kernel to die with its parent, so that even a SIGKILL
of the demonstration leaves no orphan. A child that dies unasked is one error with its log's tail.

Nothing here knows what the children do. There are no fixed pauses: every wait is for an event or
the child's end, with a deadline.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, TypeVar

from secagg.errors import SecaggError

_T = TypeVar("_T")
Fields = Mapping[str, Any]
Listener = Callable[["Child", "Event"], None]
_LINE_LIMIT = 1 << 22
_GENTLE_END_S = 5.0


class ProcessFailed(SecaggError):
    """A child process ended, or stayed silent, when it should not have."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a child's log: its name, its fields, and when it arrived (seconds since 1970)."""

    name: str
    fields: Fields
    at: float


@dataclass(eq=False)
class Child:
    """A running process, its events so far, and its log file."""

    name: str
    process: asyncio.subprocess.Process
    stdin: asyncio.StreamWriter
    log: Path
    events: list[Event] = field(default_factory=list)
    expected: frozenset[int] = frozenset({0})
    """Exit statuses with which it may end by itself."""
    killed: bool = False
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)
    _closed: bool = False

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.returncode is None

    async def wait_for(
        self,
        name: str,
        *,
        deadline_s: float,
        where: Callable[[Fields], bool] = lambda fields: True,
        after: int = 0,
    ) -> Event:
        """The first event of this name at or behind position `after` that meets `where`.

        Raises:
            ProcessFailed: the child ends, or the deadline passes, without it.
        """
        try:
            async with asyncio.timeout(deadline_s):
                return await self._next(name, where, after)
        except TimeoutError:
            raise ProcessFailed(
                f"{self.name} did not report {name!r} within {deadline_s:.0f} s; {self.tail()}"
            ) from None

    async def _next(self, name: str, where: Callable[[Fields], bool], seen: int) -> Event:
        while True:
            for event in self.events[seen:]:
                if event.name == name and where(event.fields):
                    return event
            seen = len(self.events)
            if self._closed:
                raise ProcessFailed(f"{self.name} ended before it reported {name!r}; {self.tail()}")
            await self._more_than(seen)

    async def _more_than(self, seen: int) -> None:
        async with self._news:
            await self._news.wait_for(lambda: len(self.events) > seen or self._closed)

    async def ended(self) -> int:
        """Wait for the end; the exit status."""
        status = await self.process.wait()
        async with self._news:
            await self._news.wait_for(lambda: self._closed)
        return status

    async def send(self, line: Mapping[str, object]) -> None:
        """Write one JSON line to its standard input."""
        self.stdin.write(json.dumps(line).encode() + b"\n")
        await self.stdin.drain()

    def kill(self) -> None:
        """SIGKILL, as a power cut would do it: no clean-up runs in the child."""
        self.killed = True
        with suppress(ProcessLookupError):
            self.process.kill()

    def tail(self, lines: int = 12) -> str:
        """The end of its log, for an error message."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        except OSError:
            text = []
        shown = "\n  ".join(line[:300] for line in text) or "(nothing)"
        status = self.process.returncode
        state = "it still runs" if status is None else f"its exit status is {status}"
        return f"{state}; the end of {self.log}:\n  {shown}"


class Children:
    """All children of one demonstration; leaving the `async with` block ends every one of them."""

    def __init__(self, logs: Path, listener: Listener = lambda child, event: None) -> None:
        self._logs = logs
        self._listener = listener
        self._running: list[Child] = []
        self._readers: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await asyncio.shield(self.stop_all())

    async def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str]
    ) -> Child:
        """Start a process; what it prints goes to LOGS/NAME.log (appended after a restart)."""
        process = await asyncio.create_subprocess_exec(
            *_leash(command),
            env=dict(environment),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_LINE_LIMIT,
        )
        if process.stdin is None or process.stdout is None:
            raise ProcessFailed(f"{name} was started without pipes")
        child = Child(name, process, process.stdin, self._logs / f"{name}.log")
        self._running.append(child)
        reader = asyncio.create_task(self._read(child, process.stdout))
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        return child

    async def stop(self, child: Child) -> None:
        """SIGTERM, and SIGKILL for what does not end by it."""
        if child.running:
            child.killed = True
            with suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(_GENTLE_END_S):
                    await child.process.wait()
            except TimeoutError:
                child.kill()
        await child.ended()

    async def stop_all(self) -> None:
        """End every child."""
        await asyncio.gather(*(self.stop(child) for child in self._running))

    async def first_death(self) -> str:
        """Wait until a child ends unasked with a status other than 0; says which, and its log."""
        while True:
            for child in self._running:
                status = child.process.returncode
                if status is not None and status not in child.expected and not child.killed:
                    await child.ended()
                    return f"{child.name} ended by itself; {child.tail()}"
            self._ended.clear()
            await self._ended.wait()

    async def _read(self, child: Child, output: asyncio.StreamReader) -> None:
        with child.log.open("a", encoding="utf-8") as log:
            try:
                async for line in output:
                    self._note(child, line.decode(errors="replace"), log)
                    async with child._news:
                        child._news.notify_all()
            finally:
                await child.process.wait()
                child._closed = True
                self._ended.set()
                async with child._news:
                    child._news.notify_all()

    def _note(self, child: Child, line: str, log: TextIO) -> None:
        log.write(line)
        log.flush()
        with suppress(ValueError):
            fields = json.loads(line)
            if isinstance(fields, dict) and "event" in fields:
                event = Event(str(fields["event"]), fields, time.time())
                child.events.append(event)
                self._listener(child, event)


async def until_signal(work: Coroutine[object, object, _T]) -> _T:
    """Ctrl-C and SIGTERM end it: cancelled, so that the children are ended first.

    SIGINT too is asked for: what a shell starts in the background has it ignored.
    """
    task = asyncio.ensure_future(work)
    with suppress(NotImplementedError):
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _leash(command: Sequence[str]) -> list[str]:
    """The command, behind the launcher that lets it die with this process."""
    if sys.platform != "linux":
        return list(command)
    launcher = Path(__file__).with_name("leashed.py")
    return [sys.executable, "-I", "-S", str(launcher), str(os.getpid()), *command]
