"""Online use in real rounds over TLS: data that came are trained on, and nothing else shows."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from secagg_models import updates
from secagg_models.base import Base
from secagg_tenant.config import Config
from secagg_tenant.store import read_report
from secagg_wire.manifest import Manifest
from secagg_wire.v1 import owner_service_pb2 as owner_pb
from secagg_wire.v1 import round_pb2
from tests.coordinator.federation import CALL_S, TENANTS, Enrolled, Federation, federation
from tests.tenant.forecasts import (
    QUIET,
    disturbed,
    signed_over,
    start,
    trained_base,
    write,
)
from tests.tenant.running import Node, config_of, joined

RECOMPUTED_OFF = {"recompute": "off"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return trained_base(tmp_path_factory.mktemp("base"))


def online_config(running: Federation, folder: Path, base: Base) -> Config:
    """Ada forecasts her series, looks at what comes and judges versions."""
    values = config_of(running, "ada", folder, policy=RECOMPUTED_OFF).model_dump()
    values["training"] = {"trainer": "series", "series": folder / "series"}
    values["model"] = {"base": base.source, "base_digest": base.digest}
    values["online"] = {"held_out_windows": 24, "memory_windows": 16, "arrival_windows": 64}
    return Config.model_validate(values)


async def publish(running: Federation, manifest: Manifest, files: dict[str, bytes]) -> int:
    requests = [owner_pb.PublishVersionRequest(manifest=manifest.encode())]
    for name, data in files.items():
        piece = owner_pb.FilePiece(name=name, offset=0, payload=data)
        requests.append(owner_pb.PublishVersionRequest(piece=piece))
    answer = await running.owner().PublishVersion(iter(requests), timeout=CALL_S)
    return int(answer.version)


async def published(running: Federation, base: Base, update: updates.Update) -> tuple[int, bytes]:
    manifest, files = signed_over(base, update)
    return await publish(running, manifest, files), manifest.digest


async def round_of(
    running: Federation, number: int, version: tuple[int, bytes], update: updates.Update
) -> Any:
    plan = running.enrolled.plan(1, number).next_round(
        number, layout=updates.delta_layout(update), model_digest=version[1]
    )
    status = await running.ended(await running.open(plan, version[0]))
    assert status.outcome == round_pb2.ROUND_OUTCOME_OPENED, status.reason
    return status


@dataclass
class Seen:
    """What the coordinator and everybody else can see of a tenant in one round."""

    survivors: list[str]
    steps: list[str]
    upload_bytes: int


SEEN = ("plan_offered", "joined", "upload_started", "upload_finished", "answered", "round_ended")


def seen_of(node: Node, status: Any) -> Seen:
    """The order of what this tenant said to the coordinator, and how much."""
    steps = [name for name, _ in node.events if name in SEEN]
    return Seen(list(status.survivors), steps, node.heard("upload_started")[-1]["bytes"])


def two_rounds(
    enrolled: Enrolled, folder: Path, base: Base, drift_from: int | None
) -> tuple[Seen, Node]:
    """A round, then new data, then another round."""
    folder.mkdir()
    write(folder / "series", QUIET)

    async def scenario() -> tuple[Seen, Node]:
        async with federation(enrolled, folder) as running, AsyncExitStack() as stack:
            node = await stack.enter_async_context(
                joined(running, online_config(running, folder, base))
            )
            for name in TENANTS[1:]:
                config = config_of(running, name, folder, policy=RECOMPUTED_OFF)
                await stack.enter_async_context(joined(running, config))
            update = start(base)
            version = await published(running, base, update)
            await node.until("version_decided", version=version[0])
            await round_of(running, 1, version, update)
            await node.until("round_ended", round=1)
            write(folder / "series", QUIET + 80, drift_from)
            status = await round_of(running, 2, version, update)
            await node.until("round_ended", round=2)
            return seen_of(node, status), node

    return asyncio.run(scenario())


def test_drift_is_known_inside_and_nowhere_else(
    enrolled: Enrolled, tmp_path: Path, base: Base, capfd: pytest.CaptureFixture[str]
) -> None:
    calm, calm_node = two_rounds(enrolled, tmp_path / "calm", base, None)
    drifted, drifted_node = two_rounds(enrolled, tmp_path / "drifted", base, QUIET)
    assert [look["fresh"] for look in drifted_node.heard("data_looked_at")] == [64, 40]
    assert not calm_node.heard("drift_alarm")
    assert drifted_node.heard("drift_alarm")
    report = read_report(tmp_path / "drifted" / "ada" / "tenant.sqlite")
    assert [row["direction"] for row in report["alarms"]] == ["worse"]
    assert drifted == calm
    captured = capfd.readouterr()
    assert "drift" not in (captured.out + captured.err).replace(str(tmp_path / "drifted"), "")


def test_a_rejected_version_does_not_serve_and_is_trained_from_all_the_same(
    enrolled: Enrolled, tmp_path: Path, base: Base
) -> None:
    write(tmp_path / "series", QUIET)

    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running, AsyncExitStack() as stack:
            node = await stack.enter_async_context(
                joined(running, online_config(running, tmp_path, base))
            )
            for name in TENANTS[1:]:
                config = config_of(running, name, tmp_path, policy=RECOMPUTED_OFF)
                await stack.enter_async_context(joined(running, config))
            good, bad = start(base), disturbed(start(base), 3.0)
            first = await published(running, base, good)
            assert (await node.until("version_decided", version=1))["verdict"] == "approved"
            second = await published(running, base, bad)
            assert (await node.until("version_decided", version=2))["verdict"] == "rejected"
            assert node.tenant.store.approved() == first[1]
            status = await round_of(running, 1, second, bad)
            assert "ada" in status.survivors

    asyncio.run(scenario())
