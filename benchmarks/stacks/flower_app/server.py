"""The side that starts rounds, with a meter on every message; after each round it notes the totals.

Flower's SecAgg+ works with its workflow of 2024 alone, so that one has a ServerApp of its own.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from secagg_embed.flower import SecureAggregation, Terms

app = ServerApp()
secaggplus = ServerApp()


@app.main()
def rounds(grid: Grid, context: Context) -> None:
    """Plain FedAvg, or secagg around it."""
    config, meter = context.run_config, Meter(grid, context)
    inner = FedAvg(fraction_evaluate=0.0, min_available_nodes=int(config["tenants"]))
    strategy = inner if config["system"] == "fedavg" else protected(inner, context)
    arrays = ArrayRecord({"model": Array(np.zeros(int(config["length"]), np.float32))})
    strategy.start(
        grid, arrays, num_rounds=int(config["rounds"]), evaluate_fn=lambda *_: meter.note()
    )


def protected(inner: FedAvg, context: Context) -> SecureAggregation:
    """The scheme has the system's name."""
    scheme: Any = context.run_config["system"]
    return SecureAggregation(
        inner,
        roster=Path(str(context.run_config["roster"])),
        terms=Terms(clip=0.01, max_weight=100, scheme=scheme),
        run_config=context.run_config,
    )


@secaggplus.main()
def legacy_rounds(grid: Grid, context: Context) -> None:
    """Flower's SecAgg+."""
    config, meter = context.run_config, Meter(grid, context)
    tenants = int(config["tenants"])

    def note(*_: object) -> tuple[float, dict[str, float]]:
        meter.note()
        return 0.0, {}

    strategy = LegacyFedAvg(
        fraction_fit=1.0, fraction_evaluate=0.0, min_fit_clients=tenants,
        min_available_clients=tenants, evaluate_fn=note,
        initial_parameters=ndarrays_to_parameters([np.zeros(int(config["length"]), np.float32)]),
    )  # fmt: skip
    legacy = LegacyContext(
        context, config=ServerConfig(num_rounds=int(config["rounds"])), strategy=strategy
    )
    workflow = SecAggPlusWorkflow(1.0, int(config["threshold"]), max_weight=100.0)
    DefaultWorkflow(fit_workflow=workflow)(grid, legacy)


class Meter:
    """Counts messages and the bytes of their objects, both ways, and takes its own time off."""

    def __init__(self, grid: Any, context: Context) -> None:
        self._out = Path(str(context.run_config["out"]))
        self._processes = json.loads(str(context.run_config["processes"]))
        self._totals = {"messages": 0, "down": 0, "up": 0}
        self._own_cpu_s = self._own_wall_s = 0.0
        self._push, self._pull = grid.push_messages, grid.pull_messages
        grid.push_messages, grid.pull_messages = self.push_messages, self.pull_messages

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        ids = self._push(sent)
        self._count("down", sent)
        self._totals["messages"] += len(sent)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        received = list(self._pull(message_ids))
        failed = [one.error.reason for one in received if one.has_error()]
        if failed:
            raise RuntimeError(f"a tenant failed, and the figures would mean nothing: {failed}")
        self._count("up", received)
        return received

    def note(self) -> MetricRecord | None:
        """One line: the totals so far."""
        facts = {
            **self._totals,
            "at": time.time(),
            "wall_s": time.monotonic() - self._own_wall_s,
            "serverapp_cpu_s": time.process_time() - self._own_cpu_s,
            **{f"{name}_cpu_s": cpu_of_tree(pid) for name, pid in self._processes.items()},
        }
        with self._out.open("a") as out:
            out.write(json.dumps(facts) + "\n")
        return None

    def _count(self, way: str, messages: list[Message]) -> None:
        began_cpu, began = time.process_time(), time.monotonic()
        for message in messages:
            objects = get_all_nested_objects(message).values()
            self._totals[way] += sum(len(one.deflate()) for one in objects)
        self._own_cpu_s += time.process_time() - began_cpu
        self._own_wall_s += time.monotonic() - began


def cpu_of_tree(root: int) -> float:
    """CPU seconds of a process and all that it has started, the ended ones too, but not of us."""
    parents, times = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(stat.parent.name)
        parents[pid] = int(fields[1])
        times[pid] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return sum(used for pid, used in times.items() if _descends(pid, root, parents))


def _descends(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid not in (root, os.getpid()) and pid in parents:
        pid = parents[pid]
    return pid == root
