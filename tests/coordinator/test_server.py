"""What the server shows besides its services: health, no reflection, and the mode for tests."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from secagg_coordinator.config import Config
from secagg_coordinator.server import SERVICES, Coordinator
from secagg_coordinator.servicer import INSECURE_CALLER
from secagg_wire import refusals
from secagg_wire.v1 import owner_service_pb2 as owner_pb
from secagg_wire.v1 import owner_service_pb2_grpc as owner_grpc
from secagg_wire.v1 import round_service_pb2 as pb
from secagg_wire.v1 import round_service_pb2_grpc as round_grpc
from tests.coordinator.federation import CALL_S, Enrolled, federation, refusal


def test_health_is_told_per_service(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            health: Any = health_pb2_grpc.HealthStub(running.channel("ada"))
            for service in ("", *SERVICES):
                reply = await health.Check(
                    health_pb2.HealthCheckRequest(service=service), timeout=CALL_S
                )
                assert reply.status == health_pb2.HealthCheckResponse.SERVING

    asyncio.run(scenario())


def test_reflection_is_off(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            call = running.channel("ada").stream_stream(
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
            )(iter([b""]), timeout=CALL_S)
            error = await refusal(call)
            assert error.__notes__ == [grpc.StatusCode.UNIMPLEMENTED.name]

    asyncio.run(scenario())


def test_a_name_in_the_metadata_counts_in_the_mode_for_tests_alone(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    claim = ((INSECURE_CALLER, "urn:secagg:owner:ona"),)

    async def scenario() -> None:
        async with federation(enrolled, tmp_path / "tls") as running:
            call = running.owner("ada").GetRoster(
                owner_pb.GetRosterRequest(), timeout=CALL_S, metadata=claim
            )
            assert type(await refusal(call)) is refusals.RoleRefused
        await insecure(enrolled, tmp_path / "insecure", claim)

    asyncio.run(scenario())


async def insecure(enrolled: Enrolled, directory: Path, claim: tuple[tuple[str, str], ...]) -> None:
    config = Config.model_validate(
        {"keys": enrolled.keys["hub"].directory, "data": directory, "listen": {"port": 0}}
    )
    coordinator = await Coordinator.start(config, insecure_loopback=True)
    address = f"127.0.0.1:{coordinator.port}"
    async with grpc.aio.insecure_channel(address) as channel:
        owner: Any = owner_grpc.OwnerServiceStub(channel)
        await owner.GetRoster(owner_pb.GetRosterRequest(), timeout=CALL_S, metadata=claim)
        rounds: Any = round_grpc.RoundServiceStub(channel)
        nobody = rounds.RenewLease(pb.RenewLeaseRequest(tenant="ada"), timeout=CALL_S)
        error = await refusal(nobody)
        assert type(error) is refusals.NotAuthenticated
        assert error.__notes__ == [grpc.StatusCode.UNAUTHENTICATED.name]
    await coordinator.stop(0)


def test_over_the_operators_socket_only_the_operators_calls_are_answered(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            path = running.config.data / "control.sock"
            async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
                owner: Any = owner_grpc.OwnerServiceStub(channel)
                await owner.ListRounds(owner_pb.ListRoundsRequest(), timeout=CALL_S)
                plan = owner_pb.OpenRoundRequest(plan=enrolled.plan(5).encode())
                error = await refusal(owner.OpenRound(plan, timeout=CALL_S))
                assert type(error) is refusals.NotAuthenticated
                rounds: Any = round_grpc.RoundServiceStub(channel)
                call = rounds.RenewLease(pb.RenewLeaseRequest(tenant="ada"), timeout=CALL_S)
                assert type(await refusal(call)) is refusals.NotAuthenticated

    asyncio.run(scenario())
