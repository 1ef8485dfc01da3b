"""Whole rounds: five participants over real TLS, and what is left on disk of them."""

import asyncio
import hashlib
import json
from pathlib import Path

import numpy as np
from sqlalchemy import create_engine, select

from secagg.plan import RoundPlan
from secagg.transcript import verify_transcript
from secagg_coordinator import schema
from secagg_wire.v1 import owner_service_pb2 as owner_pb
from secagg_wire.v1 import round_pb2
from tests.coordinator.federation import (
    CALL_S,
    TENANTS,
    Enrolled,
    Federation,
    federation,
    goes_silent,
    play,
    vectors,
)

LENGTH = 1000


def levels(plan: RoundPlan, vector: np.ndarray, weight: int) -> np.ndarray:
    """Only for vectors on the grid times full weight: no rounding is left to chance."""
    return np.rint(vector * weight / plan.max_weight * plan.quantiser.max_level).astype(np.int64)


async def download_sum(
    running: Federation, context: bytes
) -> tuple[owner_pb.SumHeader, np.ndarray]:
    stream = running.owner().DownloadSum(
        owner_pb.DownloadSumRequest(context=context), timeout=CALL_S
    )
    parts = [part async for part in stream]
    data = b"".join(part.payload for part in parts[1:])
    assert hashlib.sha256(data).digest() == parts[0].header.level_sum_sha256
    return parts[0].header, np.frombuffer(data, "<i8")


def test_sum_over_tls_is_exact_though_one_tenant_never_uploads(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        plan, inputs = enrolled.plan(LENGTH), vectors(LENGTH)
        async with federation(enrolled, tmp_path, evidence=tmp_path / "evidence") as running:
            context = await running.open(plan)
            tenants = [running.tenant(name, plan, inputs[name], 100) for name in TENANTS]
            playing = asyncio.create_task(play(tenants, dan=goes_silent))
            for tenant in tenants:
                await (tenant.agreed if tenant.name == "dan" else tenant.uploaded).wait()
            await running.let_pass(plan.deadlines.masked_input_ms / 1000)
            await playing
            status = await running.ended(context)
            survivors = tuple(name for name in TENANTS if name != "dan")
            assert status.outcome == round_pb2.ROUND_OUTCOME_OPENED
            assert tuple(status.survivors) == survivors
            assert [(e.tenant, e.step) for e in status.excluded] == [
                ("dan", round_pb2.STEP_MASKED_INPUT)
            ]
            header, total = await download_sum(running, context)
            assert (header.length, header.total_weight) == (LENGTH, 400)
            assert tuple(header.survivors) == survivors
            expected = sum(levels(plan, inputs[name], 100) for name in survivors)
            np.testing.assert_array_equal(total, expected)
            check_evidence(tmp_path / "evidence" / "round-1", plan, survivors, total)
            check_steps(status)
            await check_transcript(running, header, survivors)
            assert announced(tmp_path) == {"U1", "U2", "U3", "quorum"}

    asyncio.run(scenario())


def check_evidence(
    directory: Path, plan: RoundPlan, survivors: tuple[str, ...], total: np.ndarray
) -> None:
    view = json.loads((directory / "plan.json").read_text())
    assert view["context"] == plan.context.hex()
    assert view["cohort"] == list(TENANTS)
    assert (directory / "plan.bin").read_bytes() == plan.encode()
    np.testing.assert_array_equal(np.load(directory / "opened_sum.npy"), total)
    uploads = {path.stem: path.stat().st_size for path in (directory / "upload").iterdir()}
    assert tuple(sorted(uploads)) == survivors
    assert len(set(uploads.values())) == 1
    assert (directory / "transcript").stat().st_size > 0


async def check_transcript(
    running: Federation, header: owner_pb.SumHeader, survivors: tuple[str, ...]
) -> None:
    (record,) = (
        await running.owner().ListRounds(owner_pb.ListRoundsRequest(), timeout=CALL_S)
    ).rounds
    stream = running.owner().DownloadTranscript(
        owner_pb.DownloadTranscriptRequest(context=record.context), timeout=CALL_S
    )
    transcript = b"".join([part.payload async for part in stream])
    assert hashlib.sha256(transcript).digest() == header.transcript_sha256
    verified = verify_transcript(transcript, running.enrolled.roster)
    assert verified.survivors == survivors
    assert verified.dropouts == ("dan",)


def announced(directory: Path) -> set[str]:
    engine = create_engine(f"sqlite:///{directory / 'data' / 'coordinator.sqlite'}")
    with engine.connect() as connection:
        names = set(connection.execute(select(schema.announcements.c.name)).scalars())
    engine.dispose()
    return names


def check_steps(status: round_pb2.RoundStatus) -> None:
    assert [step.step for step in status.steps] == [1, 2, 3, 4, 5, 6]
    upload = status.steps[3]
    assert upload.seconds == 600  # the deadline passed by the test's clock
    assert sorted(upload.answered) == ["ada", "bob", "cyd", "eve"]
    assert all(step.bytes_received > 0 for step in status.steps)


def test_a_second_round_follows_the_first_and_a_used_number_is_refused(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        inputs = vectors(LENGTH)
        async with federation(enrolled, tmp_path) as running:
            for number in (1, 2):
                plan = enrolled.plan(LENGTH, round_number=number)
                context = await running.open(plan)
                await play([running.tenant(name, plan, inputs[name], 100) for name in TENANTS])
                status = await running.ended(context)
                assert tuple(status.survivors) == TENANTS
                header, _ = await download_sum(running, context)
                assert header.total_weight == 500

    asyncio.run(scenario())
