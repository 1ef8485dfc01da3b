"""Bad input to RoundService and OwnerService: one typed error each, and the round goes on."""

import asyncio
import dataclasses
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from secagg.errors import MalformedMessage, ProtocolError, SecaggError, Step
from secagg.identity import sha256
from secagg.messages import Acknowledge, KeyDirectory, Signed
from secagg.outputs import Send
from secagg.plan import RoundPlan
from secagg.records import encode
from secagg_coordinator import schema
from secagg_wire import refusals
from secagg_wire.codec import step_to_wire, submit_request
from secagg_wire.limits import PIECE_BYTES
from secagg_wire.tls import channel_credentials
from secagg_wire.v1 import model_service_pb2 as model_pb
from secagg_wire.v1 import owner_service_pb2 as owner_pb
from secagg_wire.v1 import round_pb2
from secagg_wire.v1 import round_service_pb2 as pb
from secagg_wire.v1 import round_service_pb2_grpc as round_grpc
from tests.coordinator.federation import (
    CALL_S,
    STRANGER,
    TENANTS,
    Enrolled,
    Federation,
    federation,
    participant,
    play,
    refusal,
    vectors,
)

LENGTH = 40


def advertisement(enrolled: Enrolled, name: str, plan: RoundPlan) -> bytes:
    """A fresh AdvertiseKeys; two calls give two different ones."""
    sends = [o for o in participant(enrolled, name, plan).start() if isinstance(o, Send)]
    return sends[0].message


def request(plan: RoundPlan, message: bytes, **changes: Any) -> pb.SubmitMessageRequest:
    """A submission by ada in step 0 whose fields can be spoilt."""
    values = {
        "context": plan.context, "tenant": "ada", "message": message, "digest": sha256(message),
        "step": step_to_wire(Step.ADVERTISE_KEYS),
    }  # fmt: skip
    return pb.SubmitMessageRequest(**(values | changes))


def run(
    enrolled: Enrolled, directory: Path,
    scenario: Callable[[Federation, RoundPlan], Awaitable[None]], **tables: Any,
) -> None:  # fmt: skip
    """Open a round, run the scenario on it."""

    async def whole() -> None:
        async with federation(enrolled, directory, **tables) as running:
            plan = enrolled.plan(LENGTH)
            await running.open(plan)
            await scenario(running, plan)

    asyncio.run(whole())


def check(error: SecaggError, kind: type[SecaggError], code: grpc.StatusCode) -> None:
    assert type(error) is kind, error
    assert error.__notes__ == [code.name]
    assert str(error)


async def finishes_well(running: Federation, plan: RoundPlan) -> None:
    inputs = vectors(LENGTH)
    await play([running.tenant(name, plan, inputs[name]) for name in TENANTS])
    status = await running.ended(plan.context)
    assert tuple(status.survivors) == TENANTS


SPOILT_BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda message: b"",
    "random": lambda message: os.urandom(200),
    "truncated": lambda message: message[:-1],
    "trailing byte": lambda message: message + b"\0",
    "twice": lambda message: message * 2,
    "another version": lambda message: b"\2" + message[1:],
    "for participants": lambda message: encode(KeyDirectory(())),
    "over-long": lambda message: message + bytes(1 << 20),
}


def test_spoilt_messages_are_refused_and_the_round_still_opens(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario(running: Federation, plan: RoundPlan) -> None:
        stub, message = running.rounds_of("ada"), advertisement(enrolled, "ada", plan)
        for name, spoil in SPOILT_BYTES.items():
            call = stub.SubmitMessage(request(plan, spoil(message)), timeout=CALL_S)
            error = await refusal(call)
            assert type(error) is MalformedMessage, name
            assert error.__notes__ == ["INVALID_ARGUMENT"], name
        await finishes_well(running, plan)

    run(enrolled, tmp_path, scenario)


def test_metadata_that_contradicts_the_message_is_refused(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario(running: Federation, plan: RoundPlan) -> None:
        stub, message = running.rounds_of("ada"), advertisement(enrolled, "ada", plan)
        invalid, digest = refusals.InvalidRequest, refusals.DigestMismatch
        spoilt: list[tuple[dict[str, Any], type[SecaggError], grpc.StatusCode]] = [
            ({"digest": bytes(32)}, digest, grpc.StatusCode.INVALID_ARGUMENT),
            ({"digest": b""}, digest, grpc.StatusCode.INVALID_ARGUMENT),
            ({"step": 2}, invalid, grpc.StatusCode.INVALID_ARGUMENT),
            ({"step": 0}, invalid, grpc.StatusCode.INVALID_ARGUMENT),
            ({"step": 99}, invalid, grpc.StatusCode.INVALID_ARGUMENT),
            ({"context": b"short"}, invalid, grpc.StatusCode.INVALID_ARGUMENT),
            ({"context": bytes(32)}, refusals.UnknownRound, grpc.StatusCode.NOT_FOUND),
            ({"tenant": "bob"}, refusals.ForeignIdentity, grpc.StatusCode.PERMISSION_DENIED),
            ({"tenant": ""}, refusals.ForeignIdentity, grpc.StatusCode.PERMISSION_DENIED),
        ]
        for changes, kind, code in spoilt:
            call = stub.SubmitMessage(request(plan, message, **changes), timeout=CALL_S)
            check(await refusal(call), kind, code)
        await finishes_well(running, plan)

    run(enrolled, tmp_path, scenario)


def test_a_message_of_another_step_is_refused_with_the_running_one(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario(running: Federation, plan: RoundPlan) -> None:
        identity = enrolled.keys["ada"].identity()
        early = encode(Signed.create(plan, identity, Acknowledge(bytes(32), bytes(32), ())))
        stub = running.rounds_of("ada")
        error = await refusal(
            stub.SubmitMessage(submit_request("ada", plan.context, early), timeout=CALL_S)
        )
        check(error, refusals.WrongStep, grpc.StatusCode.FAILED_PRECONDITION)
        assert isinstance(error, refusals.WrongStep)
        assert error.step is Step.ADVERTISE_KEYS

    run(enrolled, tmp_path, scenario)


def test_the_same_message_again_is_replayed_and_another_one_is_kept_as_evidence(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario(running: Federation, plan: RoundPlan) -> None:
        stub = running.rounds_of("ada")
        first, second = (advertisement(enrolled, "ada", plan) for _ in range(2))
        for outcome in (pb.SUBMIT_OUTCOME_ACCEPTED, pb.SUBMIT_OUTCOME_REPLAYED):
            reply = await stub.SubmitMessage(request(plan, first), timeout=CALL_S)
            assert reply.outcome == outcome
        error = await refusal(stub.SubmitMessage(request(plan, second), timeout=CALL_S))
        check(error, refusals.ConflictingMessage, grpc.StatusCode.ALREADY_EXISTS)
        (kept,) = conflicts(tmp_path)
        assert (kept["digest"], kept["accepted_digest"]) == (sha256(second), sha256(first))
        assert kept["message"] == second

    run(enrolled, tmp_path, scenario)


def conflicts(directory: Path) -> list[Any]:
    from sqlalchemy import create_engine, select

    engine = create_engine(f"sqlite:///{directory / 'data' / 'coordinator.sqlite'}")
    with engine.connect() as connection:
        rows = list(connection.execute(select(schema.conflicts)).mappings())
    engine.dispose()
    return rows


def test_an_unsigned_second_message_is_no_evidence(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario(running: Federation, plan: RoundPlan) -> None:
        stub, first = running.rounds_of("ada"), advertisement(enrolled, "ada", plan)
        await stub.SubmitMessage(request(plan, first), timeout=CALL_S)
        forged = first[:-1] + bytes([first[-1] ^ 1])
        error = await refusal(stub.SubmitMessage(request(plan, forged), timeout=CALL_S))
        assert isinstance(error, ProtocolError)
        assert conflicts(tmp_path) == []

    run(enrolled, tmp_path, scenario)


def test_a_message_signed_by_somebody_else_is_refused(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario(running: Federation, plan: RoundPlan) -> None:
        message = advertisement(enrolled, "bob", plan)
        error = await refusal(
            running.rounds_of("ada").SubmitMessage(request(plan, message), timeout=CALL_S)
        )
        check(error, ProtocolError, grpc.StatusCode.INVALID_ARGUMENT)

    run(enrolled, tmp_path, scenario)


def test_who_is_not_in_the_roster_gets_nothing(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario(running: Federation, plan: RoundPlan) -> None:
        rounds, models = running.rounds_of(STRANGER), running.models(STRANGER)
        name, denied = {"tenant": STRANGER}, grpc.StatusCode.PERMISSION_DENIED
        calls = [
            rounds.WatchRounds(pb.WatchRoundsRequest(**name), timeout=CALL_S),
            rounds.SubmitMessage(request(plan, b"", **name), timeout=CALL_S),
            rounds.UploadInput(
                iter([pb.UploadInputRequest(context=plan.context, **name)]), timeout=CALL_S
            ),
            rounds.QueryUpload(pb.QueryUploadRequest(context=plan.context, **name), timeout=CALL_S),
            rounds.RenewLease(pb.RenewLeaseRequest(**name), timeout=CALL_S),
            rounds.DeclineRound(
                pb.DeclineRoundRequest(context=plan.context, **name), timeout=CALL_S
            ),
            models.ListVersions(model_pb.ListVersionsRequest(), timeout=CALL_S),
            models.GetVersion(model_pb.GetVersionRequest(), timeout=CALL_S),
            models.DownloadFile(model_pb.DownloadFileRequest(name="a.json"), timeout=CALL_S),
        ]
        for call in calls:
            check(await refusal(call), refusals.UnknownTenant, denied)

    run(enrolled, tmp_path, scenario)


def test_a_tenant_outside_the_cohort_is_refused(enrolled: Enrolled, tmp_path: Path) -> None:
    async def whole() -> None:
        async with federation(enrolled, tmp_path) as running:
            plan = enrolled.plan(LENGTH, cohort=TENANTS[1:])
            await running.open(plan)
            error = await refusal(
                running.rounds_of("ada").SubmitMessage(
                    request(plan, advertisement(enrolled, "ada", enrolled.plan(LENGTH))),
                    timeout=CALL_S,
                )
            )
            check(error, refusals.UnknownTenant, grpc.StatusCode.PERMISSION_DENIED)

    asyncio.run(whole())


def test_the_owners_calls_are_refused_to_tenants_and_tenants_calls_to_the_owner(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario(running: Federation, plan: RoundPlan) -> None:
        owner, rounds, c = running.owner("ada"), running.rounds_of("ona"), plan.context
        calls = [
            owner.OpenRound(owner_pb.OpenRoundRequest(plan=plan.encode()), timeout=CALL_S),
            owner.GetRound(owner_pb.GetRoundRequest(context=c), timeout=CALL_S),
            owner.WatchRound(owner_pb.WatchRoundRequest(context=c), timeout=CALL_S),
            owner.ListRounds(owner_pb.ListRoundsRequest(), timeout=CALL_S),
            owner.AbortRound(owner_pb.AbortRoundRequest(context=c), timeout=CALL_S),
            owner.DownloadSum(owner_pb.DownloadSumRequest(context=c), timeout=CALL_S),
            owner.DownloadTranscript(owner_pb.DownloadTranscriptRequest(context=c), timeout=CALL_S),
            owner.PublishVersion(
                iter([owner_pb.PublishVersionRequest(manifest=b"{}")]), timeout=CALL_S
            ),
            owner.GetRoster(owner_pb.GetRosterRequest(), timeout=CALL_S),
            rounds.WatchRounds(pb.WatchRoundsRequest(tenant="ona"), timeout=CALL_S),
            rounds.RenewLease(pb.RenewLeaseRequest(tenant="ada"), timeout=CALL_S),
            rounds.SubmitMessage(request(plan, b""), timeout=CALL_S),
        ]
        for call in calls:
            check(await refusal(call), refusals.RoleRefused, grpc.StatusCode.PERMISSION_DENIED)
        status = await running.status(plan.context)
        assert status.outcome == round_pb2.ROUND_OUTCOME_RUNNING

    run(enrolled, tmp_path, scenario)


def test_without_a_certificate_of_this_federation_nobody_connects(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario(running: Federation, plan: RoundPlan) -> None:
        other = Enrolled.create(tmp_path / "elsewhere")
        authority = enrolled.keys["ada"].authority.read_bytes()
        ada = other.keys["ada"]
        for credentials in (
            grpc.ssl_channel_credentials(authority),
            grpc.ssl_channel_credentials(
                authority, ada.tls_key.read_bytes(), ada.certificate.read_bytes()
            ),
            channel_credentials(ada),
        ):
            address = f"127.0.0.1:{running.coordinator.port}"
            async with grpc.aio.secure_channel(address, credentials) as channel:
                stub: Any = round_grpc.RoundServiceStub(channel)
                call = stub.RenewLease(pb.RenewLeaseRequest(tenant="ada"), timeout=CALL_S)
                error = await refusal(call)
                check(error, refusals.CallFailed, grpc.StatusCode.UNAVAILABLE)

    run(enrolled, tmp_path, scenario)


# ---------------------------------------------------------------------- opening rounds


@pytest.mark.parametrize(
    ("spoil", "kind", "code"),
    [
        (lambda plan: plan.encode()[:-1], MalformedMessage, "INVALID_ARGUMENT"),
        (lambda plan: b"", MalformedMessage, "INVALID_ARGUMENT"),
        (
            lambda plan: dataclasses.replace(plan, roster_digest=bytes(32)).encode(),
            "ConfigError",
            "INVALID_ARGUMENT",
        ),
        (
            lambda plan: dataclasses.replace(plan, round_number=1 << 63).encode(),
            refusals.RoundConflict,
            "FAILED_PRECONDITION",
        ),
        (
            lambda plan: RoundPlan.decode(plan.encode()).next_round(2).encode(),
            None,
            "",
        ),
    ],
    ids=["truncated", "empty", "another roster", "number too large", "fine"],
)
def test_a_plan_that_cannot_work_here_is_refused(
    enrolled: Enrolled, tmp_path: Path, spoil: Any, kind: Any, code: str
) -> None:
    async def whole() -> None:
        async with federation(enrolled, tmp_path) as running:
            plan = spoil(enrolled.plan(LENGTH))
            call = running.owner().OpenRound(owner_pb.OpenRoundRequest(plan=plan), timeout=CALL_S)
            if kind is None:
                await call
                return
            error = await refusal(call)
            assert kind in (type(error), type(error).__name__)
            assert error.__notes__ == [code]

    asyncio.run(whole())


def test_one_round_at_a_time_and_the_same_plan_again_is_the_same_round(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario(running: Federation, plan: RoundPlan) -> None:
        assert await running.open(plan) == plan.context
        error = await refusal(running.open(plan.next_round(2)))
        check(error, refusals.RoundConflict, grpc.StatusCode.FAILED_PRECONDITION)
        await running.owner().AbortRound(
            owner_pb.AbortRoundRequest(context=plan.context, reason="enough"), timeout=CALL_S
        )
        status = await running.ended(plan.context)
        assert status.reason == "advertise_keys: enough"
        error = await refusal(running.open(enrolled.plan(LENGTH + 1)))
        check(error, refusals.RoundConflict, grpc.StatusCode.FAILED_PRECONDITION)
        await running.open(plan.next_round(2))

    run(enrolled, tmp_path, scenario)


def test_an_upload_beyond_the_quota_is_refused_when_the_round_is_opened(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def whole() -> None:
        async with federation(enrolled, tmp_path, limits={"upload_bytes": 50}) as running:
            error = await refusal(running.open(enrolled.plan(LENGTH)))
            check(error, refusals.QuotaExceeded, grpc.StatusCode.RESOURCE_EXHAUSTED)

    asyncio.run(whole())


def test_a_plan_for_another_model_than_the_version_named_is_refused(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def whole() -> None:
        async with federation(enrolled, tmp_path) as running:
            error = await refusal(running.open(enrolled.plan(LENGTH), version=7))
            check(error, refusals.InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT)

    asyncio.run(whole())


def test_asking_for_what_is_not_there_says_so(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario(running: Federation, plan: RoundPlan) -> None:
        owner, nowhere = running.owner(), bytes(32)
        missing = [
            owner.GetRound(owner_pb.GetRoundRequest(context=nowhere), timeout=CALL_S),
            owner.WatchRound(owner_pb.WatchRoundRequest(context=nowhere), timeout=CALL_S),
            owner.AbortRound(owner_pb.AbortRoundRequest(context=nowhere), timeout=CALL_S),
            owner.DownloadSum(owner_pb.DownloadSumRequest(context=nowhere), timeout=CALL_S),
        ]
        for call in missing:
            check(await refusal(call), refusals.UnknownRound, grpc.StatusCode.NOT_FOUND)
        early = owner.DownloadSum(owner_pb.DownloadSumRequest(context=plan.context), timeout=CALL_S)
        check(await refusal(early), refusals.WrongStep, grpc.StatusCode.FAILED_PRECONDITION)
        long = owner.AbortRound(
            owner_pb.AbortRoundRequest(context=plan.context, reason="x" * 201), timeout=CALL_S
        )
        check(await refusal(long), refusals.InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT)

    run(enrolled, tmp_path, scenario)


# ---------------------------------------------------------------------- uploads out of place


def test_an_upload_before_its_step_or_without_a_first_piece_is_refused(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario(running: Federation, plan: RoundPlan) -> None:
        stub = running.rounds_of("ada")
        piece = pb.UploadInputRequest(context=plan.context, tenant="ada", payload=b"x")
        error = await refusal(stub.UploadInput(iter([piece]), timeout=CALL_S))
        check(error, refusals.WrongStep, grpc.StatusCode.FAILED_PRECONDITION)
        error = await refusal(stub.UploadInput(iter([]), timeout=CALL_S))
        check(error, refusals.InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT)
        foreign = pb.UploadInputRequest(context=plan.context, tenant="bob")
        error = await refusal(stub.UploadInput(iter([foreign]), timeout=CALL_S))
        check(error, refusals.ForeignIdentity, grpc.StatusCode.PERMISSION_DENIED)
        assert PIECE_BYTES == 1 << 20

    run(enrolled, tmp_path, scenario)
