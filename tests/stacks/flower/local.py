"""Flower in one process, without its network: real messages, a real ClientApp, no memory but
Flower's.

Each message is taken apart into Flower's objects (the chunks that travel) and put together again,
on both ways. It is answered by a ClientApp with a fresh Context, as by a new process: what survives
between two messages is `context.state`, which Flower keeps, and the tenant's folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from uuid import uuid4

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from numpy.typing import NDArray

from secagg_embed import TenantFolder, Terms, make_tenants
from secagg_embed.flower import Pace, SecureAggregation, secagg_mod

Fault = Literal["lost", "reply lost", "crash", "reply crash", "down"]
"""What goes wrong with a letter: it or its reply is lost (nothing comes back), the app crashes
before or after it answered (an Error comes back), or Flower says that the node is unavailable."""

NAMES = ("ada", "bob", "cyd", "dee", "eve")
NODES = {name: 10**18 + 7 * i for i, name in enumerate(NAMES)}
RUN_CONFIG = {"learning-rate": 0.5, "local-epochs": 1, "name": "a run"}
MODEL: Mapping[str, NDArray[np.generic]] = {
    "head.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "head.bias": np.zeros(3, np.float32),
    "norm.num_batches_tracked": np.array(41),
}


@dataclass
class LocalGrid(Grid):
    """See the module's docstring. `faults` are by node and by the number of the letter to it."""

    apps: Mapping[int, ClientApp]
    configs: Mapping[int, dict[str, bool | float | int | str]]
    faults: Mapping[tuple[int, int], Fault] = field(default_factory=dict)
    run_config: Mapping[str, bool | float | int | str] = field(default_factory=lambda: RUN_CONFIG)
    letters: Counter[int] = field(default_factory=Counter)
    exchanges: int = 0
    clock: float = 0.0
    states: dict[int, RecordDict] = field(default_factory=dict)
    replied: list[Message] = field(default_factory=list)
    _ready: dict[str, Message] = field(default_factory=dict)

    def sleep(self, seconds: float) -> None:
        self.clock += seconds

    @property
    def pace(self) -> Pace:
        """Waiting takes no time."""
        return Pace(timeout_s=30.0, now=lambda: self.clock, sleep=self.sleep)

    @property
    def run(self) -> Run:
        return Run.create_empty(1)

    def set_run(self, run: Run) -> None:
        pass

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid4().hex
            ids.append(message.metadata.message_id)
            self._deliver(over_the_wire(message))
        self.exchanges += bool(ids)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._ready.pop(one) for one in message_ids if one in self._ready]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> None:
        node = message.metadata.dst_node_id
        fault = self.faults.get((node, self.letters[node]))
        self.letters[node] += 1
        match fault:
            case "lost":
                return
            case "down":
                reply = _error(message, ErrorCode.NODE_UNAVAILABLE, "node unavailable")
            case "crash":
                reply = _error(message, ErrorCode.CLIENT_APP_CRASHED, "killed")
            case _:
                reply = self._answer(node, message)
        if fault == "reply crash":
            reply = _error(message, ErrorCode.CLIENT_APP_CRASHED, "killed")
        if fault != "reply lost":
            reply = over_the_wire(reply)
            self._ready[message.metadata.message_id] = reply
            self.replied.append(copy(reply))  # a strategy may give its own another content

    def _answer(self, node: int, message: Message) -> Message:
        state = self.states.get(node, RecordDict())
        context = Context(1, node, dict(self.configs[node]), state, dict(self.run_config))
        try:
            reply = self.apps[node](message, context)
        except Exception as error:  # noqa: BLE001 (as Flower does)
            return _error(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, repr(error))
        self.states[node] = context.state
        return reply


def over_the_wire(message: Message) -> Message:
    """The message as it arrives: taken apart into bytes and put together from them."""
    objects = {key: one.deflate() for key, one in get_all_nested_objects(message).items()}
    arrived = inflate_object_from_contents(message.object_id, objects)
    assert isinstance(arrived, Message)
    arrived.metadata.__dict__["_message_id"] = message.metadata.message_id
    return arrived


def _error(message: Message, code: int, reason: str) -> Message:
    return Message(Error(code, reason), reply_to=message)


# ---------------------------------------------------------------------------- the users' code


def arrays_of(tensors: Mapping[str, NDArray[np.generic]]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(tensors[name])) for name in tensors})


def updated(node: int, record: ArrayRecord, server_round: int = 1) -> ArrayRecord:
    """What this node's training makes of a model: it depends on both, and is another each round."""
    rng = np.random.default_rng([node, server_round])
    after = {}
    for name, array in record.items():
        before = array.numpy()
        if before.dtype.kind == "f":
            step = rng.uniform(-0.2, 0.2, before.shape) + 0.05 * np.tanh(before)
            after[name] = (before + step).astype(before.dtype)
        else:
            after[name] = before + 3
    return arrays_of(after)


def examples(node: int) -> int:
    return 10 * (1 + _place(node))


def loss(node: int) -> float:
    return 0.25 * (1 + _place(node))


def _place(node: int) -> int:
    places = {known: place for place, known in enumerate(NODES.values())}
    return places.get(node, 1)


def plain_train(message: Message, context: Context) -> Message:
    """A train function as Flower's users write it."""
    server_round = int(message.content["config"]["server-round"])
    arrays = updated(context.node_id, message.content["arrays"], server_round)
    metrics = MetricRecord(
        {"num-examples": examples(context.node_id), "train_loss": loss(context.node_id)}
    )
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def plain_evaluate(message: Message, context: Context) -> Message:
    """And an evaluate function."""
    metrics = MetricRecord({"num-examples": 5, "accuracy": 0.5 + loss(context.node_id) / 10})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


Train = Callable[[Message, Context], Message]


def client_app(
    train: Train = plain_train, *, mods: Iterable[object] = (secagg_mod,), on_evaluate: bool = True
) -> ClientApp:
    app = ClientApp()
    chain = list(mods)
    app.train(mods=chain)(train)
    app.evaluate(mods=chain if on_evaluate else [])(plain_evaluate)
    return app


@dataclass(frozen=True)
class Federation:
    """Tenants in folders, and a node for each."""

    folders: Mapping[str, Path]

    @classmethod
    def create(cls, root: Path) -> Federation:
        return cls(make_tenants(root / "tenants", NAMES))

    @property
    def roster_file(self) -> Path:
        return self.folders[NAMES[0]] / "roster.bin"

    def home(self, name: str) -> TenantFolder:
        return TenantFolder(self.folders[name])

    def grid(
        self,
        faults: Mapping[tuple[str, int], Fault] | None = None,
        apps: Mapping[str, ClientApp] | None = None,
        app: ClientApp | None = None,
    ) -> LocalGrid:
        app = app or client_app()
        return LocalGrid(
            {node: (apps or {}).get(name, app) for name, node in NODES.items()},
            {NODES[name]: {"secagg-folder": str(path)} for name, path in self.folders.items()},
            {(NODES[name], nth): fault for (name, nth), fault in (faults or {}).items()},
        )

    def strategy(self, inner: object, grid: LocalGrid, **given: object) -> SecureAggregation:
        settings: dict[str, object] = {
            "roster": self.roster_file,
            "terms": Terms(clip=1.0, max_weight=50),
            "run_config": RUN_CONFIG,
            "pace": grid.pace,
        }
        return SecureAggregation(inner, **{**settings, **given})  # type: ignore[arg-type]
