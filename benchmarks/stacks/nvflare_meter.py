"""What running parties use: CPU of their processes, bytes of their TCP connections, by polling.

Bytes are those of the sockets, TLS included, as Linux counts them (`ss -ti`). Processes are told
apart by their parents: a site's are its own process and one child for each job. Both are
cumulative, so that only the ends of an interval matter; between two samples they are interpolated.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil

_PID = re.compile(r"pid=(\d+)")
_SENT = re.compile(r"\bbytes_sent:(\d+)")
_RECEIVED = re.compile(r"\bbytes_received:(\d+)")

_LOOK_EVERY = 10  # samples from one search for processes to the next

Processes = Callable[[str], list[psutil.Process]]


@dataclass(frozen=True, slots=True)
class Used:
    """By one party, cumulative or within an interval."""

    cpu_s: float
    sent: float
    received: float


class Meter(threading.Thread):
    """Samples `parties` from `start()` until `stop()`; then `between` answers."""

    def __init__(
        self, parties: tuple[str, ...], processes: Processes, port: int, period_s: float = 0.2
    ) -> None:
        super().__init__(daemon=True)
        self._parties = parties
        self._processes = processes
        self._port = port
        self._period_s = period_s
        self._over = threading.Event()
        self._known: dict[str, list[psutil.Process]] = {}
        self._times: list[float] = []
        self._samples: dict[str, list[tuple[float, float, float]]] = {p: [] for p in parties}

    def run(self) -> None:
        """Sample until stopped."""
        count = 0
        while not self._over.wait(self._period_s):
            if count % _LOOK_EVERY == 0:
                self._known = {party: self._processes(party) for party in self._parties}
            count += 1
            pids = {party: self._cpu(party) for party in self._parties}
            sockets = _sockets(self._port)
            self._times.append(time.time())
            for party, cpu in pids.items():
                sent = sum(sockets.get(pid, (0, 0))[0] for pid in cpu)
                received = sum(sockets.get(pid, (0, 0))[1] for pid in cpu)
                self._samples[party].append((sum(cpu.values()), sent, received))

    def stop(self) -> None:
        """End the sampling."""
        self._over.set()
        self.join()

    def between(self, party: str, begin: float, end: float) -> Used:
        """What a party used between two times of the wall clock."""
        samples = np.array(self._samples[party])
        ends = [[np.interp(t, self._times, row) for row in samples.T] for t in (begin, end)]
        cpu, sent, received = np.subtract(ends[1], ends[0])
        return Used(float(cpu), float(sent), float(received))

    def _cpu(self, party: str) -> dict[int, float]:
        """Seconds of each of a party's processes, of all their threads."""
        seconds = {}
        for process in self._known[party]:
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            seconds[process.pid] = times.user + times.system
        return seconds


def _sockets(port: int) -> dict[int, tuple[int, int]]:
    """(sent, received) of each process's connections to or from `port`."""
    filters = f"( sport = :{port} or dport = :{port} )"
    listed = subprocess.run(
        ["ss", "-tinpHO", "state", "established", filters],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    total: dict[int, tuple[int, int]] = {}
    for line in listed.splitlines():
        if (pid := _PID.search(line)) is None:
            continue
        sent, received = (
            int(found[1]) if (found := which.search(line)) else 0 for which in (_SENT, _RECEIVED)
        )
        before = total.get(int(pid[1]), (0, 0))
        total[int(pid[1])] = before[0] + sent, before[1] + received
    return total
