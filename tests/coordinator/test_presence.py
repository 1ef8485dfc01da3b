"""Leases, streams that are taken up again, leaving, stopping: who is waited for, and who hears."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from secagg.errors import Step
from secagg.plan import RoundPlan
from secagg_coordinator.leases import Leases
from secagg_coordinator.views import status_of
from secagg_wire import refusals
from secagg_wire.v1 import owner_service_pb2 as owner_pb
from secagg_wire.v1 import round_pb2
from secagg_wire.v1 import round_service_pb2 as pb
from tests.coordinator.federation import (
    CALL_S,
    TENANTS,
    Enrolled,
    Federation,
    ManualClock,
    Tenant,
    federation,
    goes_silent,
    play,
    refusal,
    vectors,
)

LENGTH = 50


def cast(running: Federation, plan: RoundPlan) -> list[Tenant]:
    inputs = vectors(LENGTH)
    return [running.tenant(name, plan, inputs[name]) for name in TENANTS]


def test_a_tenant_whose_lease_ended_is_a_dropout_after_its_grace(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            plan = enrolled.plan(LENGTH)
            await running.open(plan)
            tenants = cast(running, plan)
            playing = asyncio.create_task(play(tenants, cyd=goes_silent))
            for tenant in tenants:
                await (tenant.agreed if tenant.name == "cyd" else tenant.uploaded).wait()
            lease = running.config.lease
            await running.let_pass(lease.seconds + lease.grace_seconds - 0.01)
            status = await running.status(plan.context)
            assert status.step == round_pb2.STEP_MASKED_INPUT
            await running.let_pass(0.02)
            await playing
            status = await running.ended(plan.context)
            assert "cyd" not in status.survivors
            assert len(status.survivors) == 4
            assert [(e.tenant, e.reason) for e in status.excluded] == [("cyd", "its lease ended")]

    asyncio.run(scenario())


def test_who_renews_its_lease_is_waited_for(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            plan = enrolled.plan(LENGTH)
            await running.open(plan)
            ada = cast(running, plan)[0]
            for _ in range(20):
                reply = await ada.renew()
                assert reply.lease_ms == running.config.lease.seconds * 1000
                await running.let_pass(5)
            status = await running.status(plan.context)
            assert status.outcome == round_pb2.ROUND_OUTCOME_RUNNING
            # The others were never there: they have the grace of those who may be starting.
            assert {e.tenant for e in status.excluded} == set(TENANTS[1:])

    asyncio.run(scenario())


def test_a_tenant_that_was_left_behind_hears_that_it_is_out(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            plan = enrolled.plan(LENGTH)
            await running.open(plan)
            ada, bob = cast(running, plan)[:2]
            for _ in range(7):
                await bob.renew()
                await running.let_pass(5)
            error = await refusal(ada.send(ada.participant.start()))
            assert type(error) is refusals.LeftRound
            assert error.__notes__ == [grpc.StatusCode.FAILED_PRECONDITION.name]

    asyncio.run(scenario())


def test_nobody_waits_for_a_tenant_that_declined_and_its_clause_is_shown(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            plan = enrolled.plan(LENGTH)
            await running.open(plan)
            eve, *others = reversed(cast(running, plan))
            request = pb.DeclineRoundRequest(
                context=plan.context, tenant="eve", reason="PolicyRefused", clause="max_clip"
            )
            await eve.stub.DeclineRound(request, timeout=CALL_S)
            await eve.stub.DeclineRound(request, timeout=CALL_S)
            await play(others)
            status = await running.ended(plan.context)
            assert tuple(status.survivors) == TENANTS[:4]
            (excluded,) = status.excluded
            assert (excluded.tenant, excluded.reason) == (
                "eve",
                "declined: PolicyRefused (max_clip)",
            )
            request.reason = "a\nb"
            error = await refusal(eve.stub.DeclineRound(request, timeout=CALL_S))
            assert type(error) in (refusals.RoundEnded, refusals.InvalidRequest)

    asyncio.run(scenario())


def test_too_few_survivors_abort_visibly_and_nothing_opens(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            plan = enrolled.plan(LENGTH)
            await running.open(plan)
            tenants = cast(running, plan)
            playing = asyncio.create_task(play(tenants, cyd=goes_silent, dan=goes_silent))
            for tenant in tenants:
                silent = tenant.name in ("cyd", "dan")
                await (tenant.agreed if silent else tenant.uploaded).wait()
            await running.let_pass(plan.deadlines.masked_input_ms / 1000)
            await playing
            status = await running.ended(plan.context)
            assert status.outcome == round_pb2.ROUND_OUTCOME_ABORTED
            assert "3 participants are left and the plan needs 4" in status.reason
            assert tenants[0].ended.reason == status.reason
            download = running.owner().DownloadSum(
                owner_pb.DownloadSumRequest(context=plan.context), timeout=CALL_S
            )
            assert type(await refusal(download)) is refusals.WrongStep
            transcript = running.owner().DownloadTranscript(
                owner_pb.DownloadTranscriptRequest(context=plan.context), timeout=CALL_S
            )
            assert sum([len(part.payload) async for part in transcript]) > 1000

    asyncio.run(scenario())


async def first_event(stream: Any) -> Any:
    async for event in stream:
        return event
    raise AssertionError("the stream ended")


def test_a_stream_is_taken_up_after_the_last_event_dealt_with(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            plan = enrolled.plan(LENGTH)
            await running.open(plan)
            tenants = cast(running, plan)
            ada = tenants[0]
            offered = await first_event(ada.watch())
            assert offered.round_offered.plan == plan.encode()
            again = await first_event(ada.watch())
            assert again == offered
            for tenant in tenants:
                await tenant.send(tenant.participant.start())
            keys = await first_event(ada.watch(resume_after=offered.event_id))
            assert keys.step_message.step == round_pb2.STEP_ADVERTISE_KEYS
            assert keys.event_id > offered.event_id
            assert (await ada.renew()).last_event_id == keys.event_id

    asyncio.run(scenario())


def test_a_tenant_ahead_of_this_database_hears_everything(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            plan = enrolled.plan(LENGTH)
            await running.open(plan)
            offered = await first_event(cast(running, plan)[0].watch(resume_after=10_000))
            assert offered.round_offered.plan == plan.encode()

    asyncio.run(scenario())


def test_of_an_ended_round_only_its_end_is_heard(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            plan = enrolled.plan(LENGTH)
            await running.open(plan)
            tenants = cast(running, plan)
            await play(tenants)
            event = await first_event(tenants[0].watch())
            assert event.round_ended.context == plan.context
            assert event.round_ended.outcome == round_pb2.ROUND_OUTCOME_OPENED
            assert tuple(event.round_ended.survivors) == TENANTS

    asyncio.run(scenario())


def test_a_newer_stream_of_a_tenant_ends_the_older_one(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            plan = enrolled.plan(LENGTH)
            await running.open(plan)
            ada = cast(running, plan)[0]
            older = ada.watch()
            await older.read()
            newer = ada.watch()
            await newer.read()
            error = await refusal(older)
            assert type(error) is refusals.Superseded
            newer.cancel()

    asyncio.run(scenario())


def test_late_answers_to_an_opened_round_are_welcome(enrolled: Enrolled, tmp_path: Path) -> None:
    """Four of five answers open the sum; the fifth tenant must not see an error."""

    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            plan = enrolled.plan(LENGTH)
            await running.open(plan)
            tenants = cast(running, plan)
            await play(tenants)  # raises if any submission is refused
            assert all(tenant.ended is not None for tenant in tenants)

    asyncio.run(scenario())


def test_stopping_aborts_the_round_tells_the_cohort_and_ends_the_streams(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            plan = enrolled.plan(LENGTH)
            await running.open(plan)
            stream = cast(running, plan)[0].watch()
            await stream.read()
            await running.coordinator.rounds.drain(0)
            ended = (await stream.read()).round_ended
            assert ended.outcome == round_pb2.ROUND_OUTCOME_ABORTED
            assert "shutting down" in ended.reason
            error = await refusal(running.open(plan.next_round(2)))
            assert type(error) is refusals.ShuttingDown
            stopping = asyncio.create_task(running.coordinator.stop(0))
            error = await refusal(stream)
            assert error.__notes__ == [grpc.StatusCode.UNAVAILABLE.name]
            await stopping
        await restarted(enrolled, tmp_path, plan)

    asyncio.run(scenario())


async def restarted(enrolled: Enrolled, directory: Path, plan: RoundPlan) -> None:
    async with federation(enrolled, directory) as running:
        status = await running.status(plan.context)
        assert status.outcome == round_pb2.ROUND_OUTCOME_ABORTED
        await running.open(plan.next_round(2))


def test_the_owner_sees_who_is_there(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            await cast(running, enrolled.plan(LENGTH))[1].renew()
            reply = await running.owner().GetRoster(owner_pb.GetRosterRequest(), timeout=CALL_S)
            assert reply.roster == enrolled.roster.encode()
            assert [p.tenant for p in reply.presence if p.live] == ["bob"]
            await running.let_pass(running.config.lease.seconds)
            reply = await running.owner().GetRoster(owner_pb.GetRosterRequest(), timeout=CALL_S)
            assert not any(p.live for p in reply.presence)
            assert [p.tenant for p in reply.presence if p.last_heard_at_ms] == ["bob"]

    asyncio.run(scenario())


def test_progress_of_a_round_is_shown_until_its_end(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            plan = enrolled.plan(LENGTH)
            context = await running.open(plan)
            status = await running.status(context)
            assert status.deadline_in_ms == plan.deadlines.steps[Step.ADVERTISE_KEYS]
            await play(cast(running, plan))
            status = await running.ended(context)
            assert status.deadline_in_ms == 0
            totals = {u.tenant: (u.committed_size, u.total_size) for u in status.uploads}
            assert set(totals) == set(TENANTS)
            assert all(done == total > 0 for done, total in totals.values())
            rounds = (
                await running.owner().ListRounds(owner_pb.ListRoundsRequest(), timeout=CALL_S)
            ).rounds
            assert [r.context for r in rounds] == [context]

    asyncio.run(scenario())


@pytest.mark.parametrize("seconds", [0.5, 6.0])
def test_a_lease_holds_for_its_seconds_and_no_longer(seconds: float) -> None:
    clock = ManualClock()
    leases = Leases(seconds, clock)
    assert not leases.live("ada")
    leases.renew("ada")
    assert leases.live("ada")
    clock.now += seconds
    assert not leases.live("ada")


def test_a_status_read_while_the_round_ends_is_still_a_status(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    """The store was read before the end, the driver after it: it waits for nothing any more."""

    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            context = await running.open(enrolled.plan(LENGTH))
            rounds = running.coordinator.rounds
            driver = rounds._open[context]
            before = rounds._host.store.round(context)
            assert before is not None
            assert before.outcome == "running"
            await rounds.abort(context, "wrong model")
            status = status_of(before, driver.live())
            assert status.outcome == round_pb2.ROUND_OUTCOME_RUNNING
            assert status.deadline_in_ms == 0

    asyncio.run(scenario())
