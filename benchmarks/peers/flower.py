"""One round of Flower's SecAgg+, timed for one client and for the server.

Flower's own code runs unmodified: `secaggplus_mod` around a ClientApp whose `fit` returns a ready
vector, and `SecAggPlusWorkflow` on the complete graph. Each client and the server are processes of
their own, called one after another, after a small round in each (as for `secagg bench`); messages
pass as Flower's own protobuf. Left out, in Flower's favour: gRPC or REST, SuperLink, SuperNode and
their database, training.

The last floor(n * dropout) clients answer with an error when masked vectors are collected. The
opened mean is compared with the survivors' own: a round that was halted or wrong is an error.

  python flower.py --n 10 --d 1000000 --dropout 0.2 --reps 3
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import flwr.compat.common.recorddict_compat as compat
import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.error import Error
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Stage
from flwr.common.secure_aggregation.secaggplus_constants import Key as SecAggKey
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as WireMessage
from flwr.server import LegacyContext, ServerConfig, SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.serverapp.grid import Grid
from flwr.supercore.task_identity import TaskIdentity
from forked import Cpu, Forked, Here, peak_rss_mb

_FIRST_NODE = 1 << 40
_EXAMPLES = 100
_OF_CLIENTS = ("client_cpu_s", "up")
_TOLERANCE = 1e-4  # the mean of values quantised to 22 bits over a range of 16


def vector(index: int, length: int) -> np.ndarray:
    """What client `index` submits."""
    return np.random.default_rng(index).uniform(-1, 1, length).astype(np.float32)


class Client:
    """One client: bytes of a message in, bytes of the reply out."""

    def __init__(self, index: int, length: int, mods: Sequence[Any] = (secaggplus_mod,)) -> None:
        self._index = index
        self._length = length
        self._mods = list(mods)
        self._cpu = Cpu()
        self._app: ClientApp | None = None
        self._context = _context()

    def prepare(self) -> None:
        """Make the vector that training would have left."""
        own = vector(self._index, self._length)

        class Ready(NumPyClient):
            def fit(self, parameters: Any, config: Any) -> Any:
                return [own], _EXAMPLES, {}

        self._app = ClientApp(client_fn=lambda context: Ready().to_client(), mods=self._mods)

    def answer(self, request: bytes) -> bytes:
        """Measured: decode, the app with the module around it, encode."""
        with self._cpu.running():
            message = message_from_proto(WireMessage.FromString(request))
            reply = self._app(message, self._context)
            return message_to_proto(reply).SerializeToString()

    def report(self) -> tuple[float, float]:
        """(CPU seconds, peak MiB) so far."""
        return self._cpu.seconds, peak_rss_mb()


class LoopGrid(Grid):
    """Hands each message to its client and waits. What the pipes cost is not the server's."""

    def __init__(self, clients: dict[int, Here | Forked], silent: frozenset[int]) -> None:
        self.up = dict.fromkeys(clients, 0)
        self.cpu = Cpu()
        self._clients = clients
        self._silent = silent

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Deliver all, one after another."""
        return [self._deliver(message) for message in messages]

    def _deliver(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        settings = message.content.config_records.get(RECORD_KEY_CONFIGS, {})
        stage = settings.get(SecAggKey.STAGE)
        if node in self._silent and stage == Stage.COLLECT_MASKED_VECTORS:
            return Message(Error(code=0, reason="silent"), reply_to=message)
        request = message_to_proto(message).SerializeToString()
        with self.cpu.paused():
            reply = self._clients[node].ask("answer", request)
        self.up[node] += len(reply)
        return message_from_proto(WireMessage.FromString(reply))

    def get_node_ids(self) -> list[int]:
        """All nodes."""
        return list(self._clients)

    def set_run(self, run: object) -> None:
        """There is one run."""

    @property
    def run(self) -> NoReturn:
        """The workflow does not ask."""
        raise NotImplementedError

    def create_message(self, *args: object, **kwargs: object) -> NoReturn:
        """The workflow does not ask."""
        raise NotImplementedError

    def push_messages(self, messages: object) -> NoReturn:
        """The workflow does not ask."""
        raise NotImplementedError

    def pull_messages(self, message_ids: object) -> NoReturn:
        """The workflow does not ask."""
        raise NotImplementedError


class Server:
    """One round with its clients, which run where `place` says."""

    mods: Sequence[Any] = (secaggplus_mod,)

    def __init__(self, tenants: int, length: int, dropout: float, place: type) -> None:
        self._count = tenants
        self._length = length
        self._alive = tenants - int(tenants * dropout + 1e-9)
        self._place = place

    def run(self) -> dict[str, Any]:
        """The round, and what it took."""
        nodes = [_FIRST_NODE + index for index in range(self._count)]
        clients = {node: self._start(index) for index, node in enumerate(nodes)}
        alive = nodes[: self._alive]
        grid = LoopGrid(clients, frozenset(nodes) - frozenset(alive))
        context = server_context(self.participants(nodes), grid)
        with grid.cpu.running():
            opened = self.aggregate(grid, context)
        peak = peak_rss_mb()
        self._check(opened)
        reports = {node: client.ask("report") for node, client in clients.items()}
        for client in clients.values():
            client.end()
        return {
            "client_cpu_s": [reports[node][0] for node in alive],
            "server_cpu_s": grid.cpu.seconds,
            "up": [grid.up[node] for node in alive],
            "client_peak_rss_mb": max(reports[node][1] for node in alive),
            "server_peak_rss_mb": peak,
        }

    def participants(self, nodes: list[int]) -> list[int]:
        """Who is sampled."""
        return nodes

    def aggregate(self, grid: Grid, context: LegacyContext) -> list[np.ndarray]:
        """Measured."""
        SecAggPlusWorkflow(1.0, 0.6)(grid, context)
        record = context.state.array_records[MAIN_PARAMS_RECORD]
        return parameters_to_ndarrays(compat.arrayrecord_to_parameters(record, True))

    def _start(self, index: int) -> Here | Forked:
        client = Client(index, self._length, self.mods)
        kind = type(self)
        started = Here(client) if self._place is Here else Forked(client, lambda: warm_up(kind))
        started.ask("prepare")
        return started

    def _check(self, opened: list[np.ndarray]) -> None:
        if sum(part.size for part in opened) != self._length:
            raise SystemExit("Flower halted the round")
        mean = np.zeros(self._length)
        for index in range(self._alive):
            mean += vector(index, self._length)
        if not np.allclose(opened[0], mean / self._alive, atol=_TOLERANCE):
            raise SystemExit("Flower opened another sum")


def warm_up(kind: type[Server]) -> None:
    """A small round within this process."""
    kind(3, 1000, 0.0, Here).run()


def _context() -> Context:
    return Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})


def server_context(nodes: list[int], grid: Grid) -> LegacyContext:
    """What Flower's ServerApp would have prepared."""
    manager = SimpleClientManager()
    for node in nodes:
        manager.register(GridClientProxy(node_id=node, grid=grid, run_id=1))
    context = LegacyContext(
        _context(),
        config=ServerConfig(num_rounds=1),
        strategy=FedAvg(
            fraction_fit=1.0, min_fit_clients=len(nodes), min_available_clients=len(nodes)
        ),
        client_manager=manager,
    )
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    # The model that goes down is one number: only the aggregation is measured.
    context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(
        ndarrays_to_parameters([np.zeros(1, np.float32)]), True
    )
    return context


def main(kind: type[Server], peer: str, summary: str) -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--n", type=int, default=10)
    parser.add_argument("--d", type=int, default=1_000_000)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--reps", type=int, default=3)
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    # Flower's runtime sets these in a process that it starts.
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    rounds = []
    for _ in range(options.reps):
        server = kind(options.n, options.d, options.dropout, Forked)
        process = Forked(server, lambda: warm_up(kind))
        rounds.append(process.ask("run"))
        process.end()
    facts = {"peer": peer, "version": importlib.metadata.version("flwr"), **vars(options)}
    print(json.dumps(facts | _medians(rounds, options.d)))


def _medians(rounds: list[dict[str, Any]], length: int) -> dict[str, float]:
    every = {key: [one for measured in rounds for one in measured[key]] for key in _OF_CLIENTS}
    return {
        "client_cpu_s": statistics.median(every["client_cpu_s"]),
        "server_cpu_s": statistics.median(one["server_cpu_s"] for one in rounds),
        "bytes_up_per_param": statistics.median(every["up"]) / length,
        "client_peak_rss_mb": max(one["client_peak_rss_mb"] for one in rounds),
        "server_peak_rss_mb": max(one["server_peak_rss_mb"] for one in rounds),
    }


if __name__ == "__main__":
    main(Server, "Flower SecAgg+", (__doc__ or "").split("\n")[0])
