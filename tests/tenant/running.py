"""Whole tenant nodes in this process, talking over loopback TLS to a real coordinator."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from secagg.plan import RoundPlan
from secagg_tenant.config import Config
from secagg_tenant.connection import Connection
from secagg_tenant.session import Session
from secagg_tenant.tenant import Tenant
from secagg_wire.client import BackOff
from secagg_wire.event_log import EventLog
from secagg_wire.key_files import KeyFiles
from secagg_wire.v1 import owner_service_pb2 as owner_pb
from tests.coordinator.federation import CALL_S, TENANTS, Federation

WAIT_S = 30.0


@dataclass
class Node:
    """One tenant: its log as it grows, and whoever waits for an event in it."""

    tenant: Tenant
    session: asyncio.Task[None] = field(init=False)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    _waiting: list[tuple[Callable[[str, dict[str, Any]], bool], asyncio.Future[dict[str, Any]]]] = (
        field(default_factory=list)
    )

    def heard(self, name: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.events if event == name]

    async def until(self, name: str, **wanted: object) -> dict[str, Any]:
        """The fields of the first event of this name with these fields, past or to come."""

        def fits(event: str, fields: dict[str, Any]) -> bool:
            return event == name and wanted.items() <= fields.items()

        for event, fields in self.events:
            if fits(event, fields):
                return fields
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append((fits, future))
        return await asyncio.wait_for(future, WAIT_S)

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        def take(name: str, fields: dict[str, Any]) -> None:
            self.events.append((name, fields))
            for fits, future in self._waiting:
                if not future.done() and fits(name, fields):
                    future.set_result(fields)

        self.tenant.log.listen(lambda name, fields: loop.call_soon_threadsafe(take, name, fields))


def config_of(running: Federation, name: str, data: Path, **tables: Any) -> Config:
    """A vector-training tenant's configuration."""
    values: dict[str, Any] = {
        "coordinator": f"127.0.0.1:{running.coordinator.port}",
        "keys": running.enrolled.keys[name].directory,
        "data": data / name,
        "policy": {"roster_digest": running.enrolled.roster.digest.hex()},
        "training": {"trainer": "vector", "seed": TENANTS.index(name)},
    }
    for table, changes in tables.items():
        values[table] = {**values.get(table, {}), **changes}
    return Config.model_validate(values)


@asynccontextmanager
async def joined(running: Federation, config: Config) -> AsyncIterator[Node]:
    """A tenant node that runs until the block ends, as if it were stopped by a signal then."""
    log = EventLog(level="debug", stream=io.StringIO())
    with Tenant.open(config, log) as tenant:
        node = Node(tenant)
        node.listen(asyncio.get_running_loop())
        connection = Connection(
            config.coordinator, KeyFiles(config.keys), tenant.name, log, CALL_S,
            BackOff(0.01, 0.1),
        )  # fmt: skip
        session = node.session = asyncio.create_task(Session(tenant, connection).run())
        try:
            yield node
            if session.done():
                session.result()
        finally:
            session.cancel()
            await asyncio.gather(session, return_exceptions=True)
            await connection.close()


@asynccontextmanager
async def all_joined(
    running: Federation, data: Path, *, without: tuple[str, ...] = (), **tables: Any
) -> AsyncIterator[dict[str, Node]]:
    async with AsyncExitStack() as stack:
        nodes = {}
        for name in TENANTS:
            if name not in without:
                config = config_of(running, name, data, **tables)
                nodes[name] = await stack.enter_async_context(joined(running, config))
        yield nodes


def drawn(plan: RoundPlan, name: str, spread: float = 0.5) -> np.ndarray:
    """What a vector tenant submits in a round."""
    bound = spread * plan.quantiser.clip
    generator = np.random.default_rng([TENANTS.index(name), plan.round_number])
    return generator.uniform(-bound, bound, plan.layout.size).astype(np.float32)


async def opened_sum(running: Federation, context: bytes) -> np.ndarray:
    """The level sum as the owner downloads it."""
    request = owner_pb.DownloadSumRequest(context=context)
    data = bytearray()
    async for part in running.owner().DownloadSum(request, timeout=CALL_S):
        data += part.payload
    return np.frombuffer(bytes(data), "<i8")


def logged(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
