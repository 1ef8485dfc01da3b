"""An owner that opens rounds of flat vectors with whole tenant nodes, over loopback TLS."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secagg.errors import ConfigError, RoundAborted
from secagg.identity import Roster
from secagg.plan import RoundPlan
from secagg_owner.config import Config
from secagg_owner.rounds import OwnerRun
from secagg_owner.service import OwnerConnection
from secagg_owner.subject import make_subject
from secagg_wire.client import BackOff
from secagg_wire.enrol import write_roster
from secagg_wire.event_log import EventLog
from secagg_wire.key_files import KeyFiles
from tests.coordinator.federation import TENANTS, Enrolled, Federation, federation
from tests.tenant.running import all_joined, drawn


def config_of(running: Federation, data: Path, **round_table: Any) -> Config:
    return Config.model_validate(
        {
            "coordinator": f"127.0.0.1:{running.coordinator.port}",
            "keys": running.enrolled.keys["ona"].directory,
            "data": data / "owner",
            "model": {"kind": "vector", "length": 400},
            "round": {"wait_seconds": 20, **round_table},
        }
    )


async def own(config: Config, rounds: int | None = None) -> list[dict[str, Any]]:
    log = EventLog(level="debug", stream=io.StringIO())
    connection = OwnerConnection(config.coordinator, KeyFiles(config.keys), log, BackOff(0.01, 0.1))
    try:
        return await OwnerRun(config, make_subject(config), connection, log).run(rounds)
    finally:
        await connection.close()


def test_rounds_one_after_the_other_each_with_its_verified_sum(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> list[dict[str, Any]]:
        async with federation(enrolled, tmp_path) as running, all_joined(running, tmp_path):
            return await own(config_of(running, tmp_path, rounds=2))

    results = asyncio.run(scenario())
    assert [result["round"] for result in results] == [1, 2]
    assert all(result["survivors"] == list(TENANTS) for result in results)
    folder = tmp_path / "owner/rounds/1"
    level_sum = np.load(folder / "opened_sum.npy")
    plan = RoundPlan.decode((folder / "plan.bin").read_bytes())
    expected = sum(drawn(plan, name).astype(np.float64) for name in TENANTS)
    error = np.abs(level_sum * plan.quantiser.scale - expected).max()
    assert error <= len(TENANTS) * plan.quantiser.scale


def test_suite_and_neighbours_of_the_configuration_are_those_of_the_plan(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    allowing = {"suites": ("x25519",), "complete_up_to": 4}

    async def scenario() -> list[dict[str, Any]]:
        async with (
            federation(enrolled, tmp_path) as running,
            all_joined(running, tmp_path, policy=allowing),
        ):
            return await own(config_of(running, tmp_path, suite="x25519", neighbours=4))

    (result,) = asyncio.run(scenario())
    assert result["survivors"] == list(TENANTS)
    plan = RoundPlan.decode((tmp_path / "owner/rounds/1/plan.bin").read_bytes())
    assert (plan.suite, plan.share_count, plan.complete) == ("x25519", 4, False)


def test_a_restarted_owner_goes_on_with_the_round_in_flight(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> list[dict[str, Any]]:
        async with federation(enrolled, tmp_path) as running:
            config = config_of(running, tmp_path, rounds=1, wait_for_tenants=0)
            first = asyncio.create_task(own(config))
            while not list((tmp_path / "owner").glob("rounds/1/plan.bin")):
                await asyncio.sleep(0)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            async with all_joined(running, tmp_path):
                return await own(config)

    results = asyncio.run(scenario())
    assert [(r["round"], r["outcome"]) for r in results] == [(1, "opened")]


def test_an_aborted_round_stops_the_owner_with_its_reason(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            running_owner = asyncio.create_task(
                own(config_of(running, tmp_path, wait_for_tenants=0))
            )
            while not (rounds := running.coordinator.rounds._open):
                await asyncio.sleep(0)
            await running.coordinator.rounds.abort(next(iter(rounds)), "wrong model")
            await running_owner

    with pytest.raises(RoundAborted, match="wrong model"):
        asyncio.run(scenario())
    result = json.loads((tmp_path / "owner/rounds/1/result.json").read_text())
    assert result["outcome"] == "aborted"
    assert not (tmp_path / "owner/rounds/1/opened_sum.npy").exists()


def test_tenants_that_stay_away_are_named(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            federation(enrolled, tmp_path) as running,
            all_joined(running, tmp_path, without=("eve",)),
        ):
            await own(config_of(running, tmp_path, wait_seconds=1))

    with pytest.raises(ConfigError, match="missing: eve"):
        asyncio.run(scenario())


def test_another_roster_at_the_coordinator_is_found_before_any_round(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    keys = KeyFiles(enrolled.keys["ona"].directory)

    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            write_roster(keys.directory, Roster(enrolled.roster.members[:4]))
            await own(config_of(running, tmp_path))

    try:
        with pytest.raises(ConfigError, match="roster"):
            asyncio.run(scenario())
    finally:
        write_roster(keys.directory, enrolled.roster)
