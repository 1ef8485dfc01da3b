"""Tenant nodes in real rounds over TLS: what opens, what is left behind, what a restart does."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

import secagg_tenant.round
from secagg.encoding import Quantiser
from secagg_tenant.store import read_report
from secagg_wire.v1 import round_pb2
from tests.coordinator.federation import TENANTS, Enrolled, Federation, federation
from tests.tenant.running import all_joined, config_of, drawn, joined, opened_sum


def test_five_nodes_open_the_sum_of_what_they_drew(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            federation(enrolled, tmp_path) as running,
            all_joined(running, tmp_path) as nodes,
        ):
            plan = enrolled.plan(length=70_000)
            context = await running.open(plan)
            status = await running.ended(context)
            assert status.outcome == round_pb2.ROUND_OUTCOME_OPENED, status.reason
            assert list(status.survivors) == list(TENANTS)
            total = (await opened_sum(running, context)) * plan.quantiser.scale
            # Weight 1 of at most 100 is what each sends.
            expected = sum(drawn(plan, name).astype(np.float64) for name in TENANTS) / 100
            assert np.abs(total - expected).max() <= len(TENANTS) * plan.quantiser.scale
            for node in nodes.values():
                ended = await node.until("round_ended")
                assert ended["outcome"] == "opened"

    asyncio.run(scenario())


def test_nothing_secret_is_left_after_a_round(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            federation(enrolled, tmp_path) as running,
            all_joined(running, tmp_path) as nodes,
        ):
            await running.ended(await running.open(enrolled.plan()))
            await nodes["ada"].until("round_ended")

    asyncio.run(scenario())
    data = tmp_path / "ada"
    assert not list((data / "round-keys").glob("*.key"))
    assert not list((data / "rounds").iterdir())


def test_the_next_round_adds_the_residual_of_the_last(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            federation(enrolled, tmp_path) as running,
            all_joined(running, tmp_path) as nodes,
        ):
            coarse = {"quantiser": Quantiser(1.0, 4)}
            totals = np.zeros(500)
            expected = np.zeros(500)
            for number in (1, 2, 3):
                plan = enrolled.plan(500, number).next_round(number, **coarse, max_weight=1)
                context = await running.open(plan)
                assert (await running.ended(context)).outcome == round_pb2.ROUND_OUTCOME_OPENED
                totals += (await opened_sum(running, context)) * plan.quantiser.scale
                expected += sum(drawn(plan, name).astype(np.float64) for name in TENANTS)
                for node in nodes.values():
                    await node.until("round_ended", round=number)
            # Without feedback the errors of three rounds would add up; with it one round's remain.
            assert np.abs(totals - expected).max() <= len(TENANTS) * plan.quantiser.scale

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["ada"])
def test_a_node_stopped_in_mid_upload_finishes_the_round_when_it_is_back(
    enrolled: Enrolled, tmp_path: Path, name: str
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            slow = config_of(running, name, tmp_path, upload={"max_bytes_per_second": 200_000})
            fast = config_of(running, name, tmp_path)
            async with all_joined(running, tmp_path, without=(name,)):
                plan = enrolled.plan(length=200_000)
                async with joined(running, slow) as node:
                    context = await running.open(plan)
                    # What was sent last may not have arrived; what was sent before it has.
                    await node.until("upload_progress", sent=150_000)
                async with joined(running, fast) as node:
                    restored = await node.until("round_restored")
                    assert restored["step"] == "masked_input"
                    started = await node.until("upload_started")
                    assert 0 < started["offset"] < started["bytes"]
                    status = await running.ended(context)
                    assert list(status.survivors) == list(TENANTS)
                    total = (await opened_sum(running, context)) * plan.quantiser.scale
                    expected = sum(drawn(plan, each).astype(np.float64) for each in TENANTS) / 100
                    assert np.abs(total - expected).max() <= len(TENANTS) * plan.quantiser.scale

    asyncio.run(scenario())


def test_a_node_stopped_in_its_slot_waits_for_a_slots_end_again(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a restart would tell that the training had ended by then."""
    waits = [3600.0, 0.0]
    waiting = asyncio.Event()

    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            config = config_of(running, "ada", tmp_path)

            def to_slot(training: object, elapsed: float) -> float:
                if training is not config.training:
                    return 0.0
                waiting.set()
                return waits.pop(0)

            monkeypatch.setattr(secagg_tenant.round, "seconds_to_slot", to_slot)
            async with all_joined(running, tmp_path, without=("ada",)):
                async with joined(running, config) as node:
                    context = await running.open(enrolled.plan())
                    await waiting.wait()
                async with joined(running, config) as node:
                    status = await running.ended(context)
                    await node.until("round_ended")
            assert list(status.survivors) == list(TENANTS)
            assert waits == []

    asyncio.run(scenario())


def test_a_node_whose_round_key_is_gone_gives_the_round_up_and_joins_the_next(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            slow = config_of(running, "ada", tmp_path, upload={"max_bytes_per_second": 100_000})
            async with all_joined(running, tmp_path, without=("ada",)):
                async with joined(running, slow) as node:
                    first = await running.open(enrolled.plan(length=200_000))
                    await node.until("upload_progress")
                node.tenant.round_keys.destroy_all()
                async with joined(running, config_of(running, "ada", tmp_path)) as node:
                    gone = await node.until("round_given_up")
                    assert gone["error"] == "StaleState"
                    status = await running.ended(first)
                    assert list(status.survivors) == [n for n in TENANTS if n != "ada"]
                    second = await running.open(enrolled.plan(round_number=2))
                    assert list((await running.ended(second)).survivors) == list(TENANTS)

    asyncio.run(scenario())


def test_the_opened_sum_is_exactly_what_the_nodes_encoded(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        encoded = tmp_path / "encoded"
        tables = {"demonstration": {"encoded_dir": encoded}}
        async with (
            federation(enrolled, tmp_path) as running,
            all_joined(running, tmp_path, **tables) as nodes,
        ):
            context = await running.open(enrolled.plan(length=3000))
            await running.ended(context)
            files = [np.load(encoded / "round-1" / f"{name}.npy") for name in TENANTS]
            assert all(levels.dtype == np.int64 for levels in files)
            assert np.array_equal(np.sum(files, axis=0), await opened_sum(running, context))
            for node in nodes.values():
                assert node.heard("demonstration_wrote_plaintext")

    asyncio.run(scenario())


def test_a_clip_that_cuts_much_is_a_local_warning(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            wild = config_of(running, "ada", tmp_path, training={"spread": 3, "weight": 100})
            async with (
                all_joined(running, tmp_path, without=("ada",)),
                joined(running, wild) as node,
            ):
                await running.ended(await running.open(enrolled.plan()))
                warned = await node.until("clip_too_small")
                assert 0.5 < warned["share"] < 0.8

    asyncio.run(scenario())


@pytest.mark.parametrize("value", [np.nan, 0.0, 3e38])
def test_extreme_trainings_show_in_no_round(
    enrolled: Enrolled, tmp_path: Path, value: float
) -> None:
    """They may come from private data: no number at all, no change at all, or finite values whose
    residual leaves none to the next round. Zeros leave as often as they come."""
    np.save(tmp_path / "away.npy", np.full(500, value, np.float32))

    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            away = config_of(running, "ada", tmp_path, training={"file": tmp_path / "away.npy"})
            async with (
                all_joined(running, tmp_path, without=("ada",)),
                joined(running, away) as node,
            ):
                for number in (1, 2):
                    plan = enrolled.plan(500, number)
                    status = await running.ended(await running.open(plan))
                    assert list(status.survivors) == list(TENANTS), (number, status.excluded)
                    await node.until("round_ended", round=number)
                assert bool(node.heard("training_ran_away")) == (value != 0)

    asyncio.run(scenario())


def test_a_change_of_zero_is_sent_as_zero(enrolled: Enrolled, tmp_path: Path) -> None:
    np.save(tmp_path / "away.npy", np.full(500, np.nan, np.float32))
    encoded = tmp_path / "encoded"

    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            away = config_of(
                running, "ada", tmp_path, training={"file": tmp_path / "away.npy"},
                demonstration={"encoded_dir": encoded},
            )  # fmt: skip
            async with all_joined(running, tmp_path, without=("ada",)), joined(running, away):
                await running.ended(await running.open(enrolled.plan(500)))

    asyncio.run(scenario())
    assert not np.load(encoded / "round-1" / "ada.npy").any()


def test_a_training_that_fails_shows_in_no_round(enrolled: Enrolled, tmp_path: Path) -> None:
    """It may fail for what lies in the data, or for how many there are."""
    (tmp_path / "broken.npy").write_bytes(b"broken")

    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            broken = config_of(running, "ada", tmp_path, training={"file": tmp_path / "broken.npy"})
            async with (
                all_joined(running, tmp_path, without=("ada",)),
                joined(running, broken) as node,
            ):
                for number in (1, 2):
                    plan = enrolled.plan(500, number)
                    status = await running.ended(await running.open(plan))
                    assert list(status.survivors) == list(TENANTS), (number, status.excluded)
                failed = await node.until("training_failed")
                assert failed["error"] == "ConfigError"
                assert "broken.npy" in failed["reason"]

    asyncio.run(scenario())


def test_status_shows_rounds_and_the_audit_log(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            federation(enrolled, tmp_path) as running,
            all_joined(running, tmp_path) as nodes,
        ):
            await running.ended(await running.open(enrolled.plan()))
            await nodes["ada"].until("round_ended")

    asyncio.run(scenario())
    report = read_report(tmp_path / "ada/tenant.sqlite")
    assert [(row["number"], row["state"]) for row in report["rounds"]] == [("1", "opened")]
    assert [row["event"] for row in report["audit"]] == [
        "plan_accepted", "input_left", "round_ended"
    ]  # fmt: skip


STOPS = ("plan_offered", "joined", "upload_started", "upload_finished", "answered")


def test_a_node_stopped_anywhere_comes_back_and_the_round_opens_over_all(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def stop_and_return(running: Federation, number: int, event: str) -> None:
        config = config_of(running, "ada", tmp_path)
        plan = enrolled.plan(length=100_000, round_number=number)
        async with joined(running, config) as node:
            await node.until("connected")
            context = await running.open(plan)
            await node.until(event)
        async with joined(running, config) as node:
            status = await running.ended(context)
            assert list(status.survivors) == list(TENANTS), (event, status.reason)
            total = (await opened_sum(running, context)) * plan.quantiser.scale
            expected = sum(drawn(plan, each).astype(np.float64) for each in TENANTS) / 100
            assert np.abs(total - expected).max() <= 2 * len(TENANTS) * plan.quantiser.scale
            await node.until("connected")

    async def scenario() -> None:
        async with (
            federation(enrolled, tmp_path) as running,
            all_joined(running, tmp_path, without=("ada",)),
        ):
            for number, event in enumerate(STOPS, 1):
                await stop_and_return(running, number, event)

    asyncio.run(scenario())
