"""A coordinator over real TLS on loopback in this process, and parties that talk to it.

Time is a clock that only the test moves; nothing here waits for wall-clock time.
"""

import asyncio
import datetime
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np

from secagg.encoding import Quantiser
from secagg.errors import SecaggError
from secagg.identity import Roster
from secagg.layout import Layout
from secagg.ledger import MemoryLedger
from secagg.outputs import Finished, Send
from secagg.participant import Participant
from secagg.plan import RoundPlan
from secagg.policy import Policy
from secagg.spool import Spool
from secagg_coordinator import log
from secagg_coordinator.config import Config
from secagg_coordinator.server import Coordinator
from secagg_wire.client import status_was_lost
from secagg_wire.codec import (
    error_from_call,
    read_step_message,
    submit_request,
    upload_requests,
)
from secagg_wire.enrol import (
    Authority,
    create_authority,
    create_keys,
    extend_roster,
    issue,
    make_request,
    write_bundle,
    write_roster,
)
from secagg_wire.key_files import KeyFiles, Party
from secagg_wire.limits import CLIENT_OPTIONS
from secagg_wire.tls import channel_credentials
from secagg_wire.v1 import model_service_pb2_grpc as model_grpc
from secagg_wire.v1 import owner_service_pb2 as owner_pb
from secagg_wire.v1 import owner_service_pb2_grpc as owner_grpc
from secagg_wire.v1 import round_service_pb2 as round_pb
from secagg_wire.v1 import round_service_pb2_grpc as round_grpc

MODEL = bytes(range(32))
TENANTS = ("ada", "bob", "cyd", "dan", "eve")
STRANGER = "mallory"
CALL_S = 20.0
T = TypeVar("T")


class ManualClock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Enrolled:
    """Key directories of everybody; the stranger has a certificate and no place in the roster."""

    keys: dict[str, KeyFiles]
    roster: Roster

    @classmethod
    def create(cls, root: Path) -> "Enrolled":
        now = datetime.datetime.now(datetime.UTC)
        authority = create_authority(root / "authority", "test", now)
        parties = [
            Party("coordinator", "hub"), Party("owner", "ona"), Party("tenant", STRANGER),
            *(Party("tenant", name) for name in TENANTS),
        ]  # fmt: skip
        keys = {p.name: _enrol(root, authority, p, now) for p in parties}
        members = [make_request(keys[name], (), now) for name in TENANTS]
        roster = extend_roster(None, members)
        assert roster is not None
        for files in keys.values():
            write_roster(files.directory, roster)
        return cls(keys, roster)

    def plan(self, length: int = 1000, round_number: int = 1, **changes: Any) -> RoundPlan:
        return RoundPlan.create(
            self.roster, round_number=round_number, layout=Layout.flat(length),
            quantiser=Quantiser(1.0, 16), model_digest=MODEL, max_weight=100, **changes,
        )  # fmt: skip


def _enrol(root: Path, authority: Authority, party: Party, now: datetime.datetime) -> KeyFiles:
    keys = create_keys(root / party.name, party)
    hosts = ("127.0.0.1",) if party.role == "coordinator" else ()
    (bundle,) = issue(authority, [make_request(keys, hosts, now)], now)
    write_bundle(root, bundle, authority.certificate_file.read_bytes(), None)
    return keys


@dataclass
class Federation:
    """A running coordinator and the ways to reach it."""

    enrolled: Enrolled
    coordinator: Coordinator
    clock: ManualClock
    config: Config
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def channel(self, party: str, keys: KeyFiles | None = None) -> grpc.aio.Channel:
        credentials = channel_credentials(keys or self.enrolled.keys[party])
        address = f"127.0.0.1:{self.coordinator.port}"
        channel = grpc.aio.secure_channel(address, credentials, options=CLIENT_OPTIONS)
        self.channels.append(channel)
        return channel

    def tenant(self, name: str, plan: RoundPlan, vector: np.ndarray, weight: int = 1) -> "Tenant":
        return Tenant(self, name, plan, vector, weight)

    def rounds_of(self, party: str) -> Any:
        return round_grpc.RoundServiceStub(self.channel(party))

    def owner(self, party: str = "ona") -> Any:
        return owner_grpc.OwnerServiceStub(self.channel(party))

    def models(self, party: str) -> Any:
        return model_grpc.ModelServiceStub(self.channel(party))

    async def open(self, plan: RoundPlan, version: int = 0) -> bytes:
        request = owner_pb.OpenRoundRequest(plan=plan.encode(), adapter_version=version)
        reply = await self.owner().OpenRound(request, timeout=CALL_S)
        assert reply.context == plan.context
        return bytes(reply.context)

    async def status(self, context: bytes) -> Any:
        request = owner_pb.GetRoundRequest(context=context)
        return (await self.owner().GetRound(request, timeout=CALL_S)).status

    async def ended(self, context: bytes) -> Any:
        """The status once the round is over."""
        stream = self.owner().WatchRound(
            owner_pb.WatchRoundRequest(context=context), timeout=CALL_S
        )
        statuses = [reply.status async for reply in stream]
        return statuses[-1]

    async def let_pass(self, seconds: float) -> None:
        """Move the clock and let every round look at it."""
        self.clock.now += seconds
        await self.coordinator.rounds.tick()


@asynccontextmanager
async def federation(
    enrolled: Enrolled, directory: Path, *, spool: Spool | None = None, **tables: Any
) -> AsyncIterator[Federation]:
    """Start a coordinator on a free port; stop it without draining."""
    values = {"listen": {"port": 0}} | tables
    config = Config.model_validate(
        {"keys": enrolled.keys["hub"].directory, "data": directory / "data"} | values
    )
    log.configure("debug")  # pytest shows it when a test fails
    clock = ManualClock()
    coordinator = await Coordinator.start(config, clock=clock)
    if spool is not None:
        coordinator.rounds.spool_for = lambda plan: spool  # type: ignore[method-assign]
    running = Federation(enrolled, coordinator, clock, config)
    try:
        yield running
    finally:
        for channel in running.channels:
            await channel.close()
        await coordinator.stop(0)


class Tenant:
    """A real participant on a real channel: the smallest possible tenant node."""

    def __init__(
        self, federation: Federation, name: str, plan: RoundPlan, vector: np.ndarray, weight: int
    ) -> None:
        self.name = name
        self.stub = federation.rounds_of(name)
        self.vector, self.weight = vector, weight
        self.uploaded = asyncio.Event()
        self.agreed = asyncio.Event()
        self.refused = asyncio.Event()
        self.ended: Any = None
        self.participant = participant(federation.enrolled, name, plan)
        self.context = plan.context

    async def play(self, upload: Callable[["Tenant"], Awaitable[bool]] | None = None) -> Any:
        """Take part until the round has ended.

        `upload` does step 3 in place of `Tenant.upload`; when it returns False this tenant goes
        silent from there on.
        """
        async for event in self.watch():
            match event.WhichOneof("event"):
                case "round_offered" if event.round_offered.plan == self.participant.plan.encode():
                    await self.send(self.participant.start())
                case "step_message":
                    _, _, message = read_step_message(event.step_message)
                    await self.send(self.participant.receive(message))
                    if self.participant.ready:
                        self.agreed.set()
                        if not await (upload(self) if upload else self.upload()):
                            return None
                case "round_ended" if event.round_ended.context == self.context:
                    self.ended = event.round_ended
                    return self.ended
        raise AssertionError("the stream ended before the round")

    def watch(self, resume_after: int = 0) -> Any:
        request = round_pb.WatchRoundsRequest(tenant=self.name, resume_after=resume_after)
        return self.stub.WatchRounds(request, timeout=CALL_S)

    async def upload(self) -> bool:
        await self.announce_upload()
        return await self.upload_again()

    async def upload_again(self) -> bool:
        reply = await self.send_pieces(
            upload_requests(self.name, self.context, self.pieces(), self.root)
        )
        assert reply.committed_size == self.participant.upload_size
        await self.commit_upload()
        return True

    async def announce_upload(self) -> None:
        await self.send(self.participant.submit(self.vector, self.weight))

    def pieces(self, offset: int = 0) -> Iterator[bytes]:
        return self.participant.upload(offset)

    def root(self) -> bytes:
        return self.participant.upload_root

    def send_pieces(self, requests: Iterable[bytes | round_pb.UploadInputRequest]) -> Any:
        read = round_pb.UploadInputRequest.FromString
        pieces = (read(one) if isinstance(one, bytes) else one for one in requests)
        return self.stub.UploadInput(pieces, timeout=CALL_S)

    async def commit_upload(self) -> None:
        await self.send(self.participant.finish_upload())
        self.uploaded.set()

    async def query_upload(self) -> Any:
        request = round_pb.QueryUploadRequest(tenant=self.name, context=self.context)
        return await self.stub.QueryUpload(request, timeout=CALL_S)

    async def send(self, outputs: Iterable[Any]) -> None:
        for output in outputs:
            match output:
                case Send(message):
                    await self.submit(message)
                case Finished():
                    pass

    async def submit(self, message: bytes) -> Any:
        request = submit_request(self.name, self.context, message)
        return await self.stub.SubmitMessage(request, timeout=CALL_S)

    async def renew(self) -> Any:
        return await self.stub.RenewLease(
            round_pb.RenewLeaseRequest(tenant=self.name), timeout=CALL_S
        )


def participant(enrolled: Enrolled, name: str, plan: RoundPlan) -> Participant:
    return Participant(
        plan, identity=enrolled.keys[name].identity(), roster=enrolled.roster,
        policy=Policy(enrolled.roster.digest), ledger=MemoryLedger(),
    )  # fmt: skip


def vectors(length: int, names: Sequence[str] = TENANTS) -> dict[str, np.ndarray]:
    """Inputs on the quantiser's own grid, so that their sum is known exactly."""
    return {
        name: (np.random.default_rng(number).integers(-30000, 30001, length) / 32767).astype(
            np.float64
        )
        for number, name in enumerate(names)
    }


async def goes_silent(tenant: Tenant) -> bool:
    """An `upload` for `Tenant.play`: never uploads."""
    return False


async def play(tenants: Iterable[Tenant], **uploads: Callable[[Tenant], Awaitable[bool]]) -> None:
    """All take part; `uploads` names those who do step 3 in another way."""
    async with asyncio.TaskGroup() as group:
        for tenant in tenants:
            group.create_task(tenant.play(uploads.get(tenant.name)))


async def answer_of(call: Callable[[], Awaitable[T]]) -> T:
    """A call's answer or refusal, asked for again where grpcio lost it (`status_was_lost`)."""
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if not status_was_lost(error):
                raise


async def refusal(call: Any) -> SecaggError:
    """The typed error that a call is refused with."""
    try:
        if hasattr(call, "read"):
            while await call.read() is not grpc.aio.EOF:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        refused = error_from_call(error)
        refused.add_note(error.code().name)
        return refused
    raise AssertionError("the call was not refused")
