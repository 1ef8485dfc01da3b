"""Attacks where the transport matters, by real parties over gRPC and mutual TLS on loopback.

Borrowed names, replays, parallel sessions, foreign hands on an upload, a coordinator that lies or
is killed. What the same attacks do to the state machines alone is in tests/core/test_attacks_*.py.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from secagg.aggregator import Aggregator
from secagg.errors import (
    FaultyCoordinator,
    FaultyParticipant,
    PolicyRefused,
    ProtocolError,
    SecaggError,
    SpentInput,
    StaleState,
    Step,
)
from secagg.ledger import MemoryLedger
from secagg.messages import (
    BODIES,
    AgreedView,
    Downlink,
    KeyDirectory,
    Quorum,
    ShareDelivery,
    ShareKeys,
    Signed,
    SurvivorSet,
    Unmask,
    decode_message,
)
from secagg.outputs import Send
from secagg.plan import RoundPlan
from secagg_coordinator import round_driver
from secagg_wire import refusals
from secagg_wire.codec import error_from_call, submit_request, upload_requests
from secagg_wire.v1 import owner_service_pb2 as owner_pb
from secagg_wire.v1 import round_pb2
from secagg_wire.v1 import round_service_pb2 as pb
from tests.coordinator.federation import (
    CALL_S,
    STRANGER,
    TENANTS,
    Enrolled,
    Federation,
    Tenant,
    federation,
    play,
    refusal,
    vectors,
)
from tests.coordinator.test_cli import configuration, owner_call, serving
from tests.coordinator.test_refusals import conflicts
from tests.core.deviating import LyingAggregator

LENGTH = 3000
Scenario = Callable[[Federation, RoundPlan], Awaitable[None]]


def run(enrolled: Enrolled, directory: Path, scenario: Scenario, **plan: Any) -> None:
    """Open a round and let the scenario play it."""

    async def whole() -> None:
        async with federation(enrolled, directory) as running:
            chosen = enrolled.plan(LENGTH, **plan)
            await running.open(chosen)
            await scenario(running, chosen)

    asyncio.run(whole())


async def opened_over(running: Federation, plan: RoundPlan, names: Iterable[str]) -> None:
    status = await running.ended(plan.context)
    assert status.outcome == round_pb2.ROUND_OUTCOME_OPENED, status.reason
    assert tuple(status.survivors) == tuple(names)


def everybody(running: Federation, plan: RoundPlan, kind: type[Tenant] = Tenant) -> list[Any]:
    inputs = vectors(LENGTH)
    return [kind(running, name, plan, inputs[name], 1) for name in TENANTS]


# ---------------------------------------------------------------------- borrowed names


def test_no_call_is_answered_in_another_tenants_name(enrolled: Enrolled, tmp_path: Path) -> None:
    """C02: the certificate says who speaks, and nothing that is said instead counts."""

    async def scenario(running: Federation, plan: RoundPlan) -> None:
        context, bob = plan.context, {"tenant": "bob"}
        (sent,) = (o for o in running.tenant("bob", plan, vectors(1)["bob"]).participant.start()
                   if isinstance(o, Send))  # fmt: skip
        honest = submit_request("bob", context, sent.message)
        for party, kind in (
            ("ada", refusals.ForeignIdentity),
            (STRANGER, refusals.ForeignIdentity),
            ("ona", refusals.RoleRefused),
        ):
            stub = running.rounds_of(party)
            for call in (
                stub.SubmitMessage(honest, timeout=CALL_S),
                stub.WatchRounds(pb.WatchRoundsRequest(**bob), timeout=CALL_S),
                stub.UploadInput(
                    iter([pb.UploadInputRequest(context=context, payload=b"x", **bob)]),
                    timeout=CALL_S,
                ),
                stub.QueryUpload(pb.QueryUploadRequest(context=context, **bob), timeout=CALL_S),
                stub.RenewLease(pb.RenewLeaseRequest(**bob), timeout=CALL_S),
                stub.DeclineRound(pb.DeclineRoundRequest(context=context, **bob), timeout=CALL_S),
            ):
                error = await refusal(call)
                assert type(error) is kind
                assert error.__notes__ == [grpc.StatusCode.PERMISSION_DENIED.name]
        await play(everybody(running, plan))
        await opened_over(running, plan, TENANTS)

    run(enrolled, tmp_path, scenario)


class Overheard(Tenant):
    """Whatever it submits, the others submit before it: in its name, and in their own."""

    parrots: list[Tenant]
    overheard = 0

    async def submit(self, message: bytes) -> Any:
        for parrot in self.parrots:
            for name in (self.name, parrot.name):
                request = submit_request(name, self.context, message)
                error = await refusal(parrot.stub.SubmitMessage(request, timeout=CALL_S))
                kinds = (ProtocolError, refusals.WrongStep) if name == parrot.name else FOREIGN
                assert isinstance(error, kinds), error
                assert not isinstance(error, FaultyParticipant)
                self.overheard += 1
        return await super().submit(message)


FOREIGN = refusals.ForeignIdentity


def test_what_a_tenant_said_is_worth_nothing_in_anothers_mouth(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    """C02, C03: every message type, before its true sender says it; and it proves nothing."""

    async def scenario(running: Federation, plan: RoundPlan) -> None:
        tenants = everybody(running, plan)
        tenants[1] = bob = Overheard(running, "bob", plan, vectors(LENGTH)["bob"], 1)
        bob.parrots = [tenant for tenant in tenants if tenant.name in ("ada", "eve")]
        await play(tenants)
        await opened_over(running, plan, TENANTS)
        assert bob.overheard == 4 * len(BODIES)
        assert conflicts(tmp_path) == []

    run(enrolled, tmp_path, scenario, share_threshold=5)  # so that the round waits for every answer


# ---------------------------------------------------------------------- replays


class Remembering(Tenant):
    """Says everything that it said in an earlier round again, before each word of this one."""

    memory: list[bytes]
    said: list[bytes]
    again = 0

    async def submit(self, message: bytes) -> Any:
        others_may_have_opened = label_of(message) == Unmask.LABEL
        for old in self.memory:
            request = submit_request(self.name, self.context, old)
            call = self.stub.SubmitMessage(request, timeout=CALL_S)
            if not (others_may_have_opened and await self._is_late(old, call)):
                error = await refusal(call)
                assert type(error) in (ProtocolError, refusals.WrongStep), error
            self.again += 1
        self.said.append(message)
        return await super().submit(message)

    async def _is_late(self, old: bytes, call: Any) -> bool:
        """Whether the round has its sum already: `test_a_round_that_has_ended_takes_nothing_more`
        says what comes then."""
        try:
            late = (await call).outcome == pb.SUBMIT_OUTCOME_REPLAYED
        except grpc.aio.AioRpcError as error:
            return type(error_from_call(error)) is refusals.RoundEnded
        assert late
        assert label_of(old) == Unmask.LABEL
        return True


def remembering(
    running: Federation, plan: RoundPlan, memory: dict[str, list[bytes]]
) -> list[Remembering]:
    tenants = everybody(running, plan, Remembering)
    for tenant in tenants:
        tenant.memory, tenant.said = memory.get(tenant.name, []), []
    return tenants


def test_every_message_of_an_earlier_round_is_refused_in_every_step_of_a_later_one(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    """C03: under the later round's context, by their own signers; they prove nothing."""

    async def scenario(running: Federation, plan: RoundPlan) -> None:
        first = remembering(running, plan, {})
        await play(first)
        await opened_over(running, plan, TENANTS)
        memory = {tenant.name: tenant.said for tenant in first}
        assert {len(said) for said in memory.values()} == {len(BODIES)}
        later = plan.next_round(2)
        await running.open(later)
        second = remembering(running, later, memory)
        await play(second)
        await opened_over(running, later, TENANTS)
        assert {tenant.again for tenant in second} == {len(BODIES) ** 2}
        assert conflicts(tmp_path) == []

    run(enrolled, tmp_path, scenario)


def test_a_round_that_has_ended_takes_nothing_more(enrolled: Enrolled, tmp_path: Path) -> None:
    """Under its own context: late answers change nothing, everything else is refused."""

    async def scenario(running: Federation, plan: RoundPlan) -> None:
        tenants = remembering(running, plan, {})
        await play(tenants)
        await opened_over(running, plan, TENANTS)
        ada = tenants[0]
        for message in ada.said:
            call = ada.stub.SubmitMessage(
                submit_request("ada", plan.context, message), timeout=CALL_S
            )
            if label_of(message) == Unmask.LABEL:
                assert (await call).outcome == pb.SUBMIT_OUTCOME_REPLAYED
            else:
                assert type(await refusal(call)) is refusals.RoundEnded
        piece = pb.UploadInputRequest(context=plan.context, tenant="ada", payload=b"x")
        assert type(await refusal(ada.send_pieces([piece]))) is refusals.RoundEnded

    run(enrolled, tmp_path, scenario)


def label_of(message: bytes) -> str:
    parsed = decode_message(message)
    signed = parsed.body if isinstance(parsed, ShareKeys) else parsed
    assert isinstance(signed, Signed)
    return signed.label


# ---------------------------------------------------------------------- parallel sessions


class Wary(Tenant):
    """A node that stops at the first error and keeps it."""

    error: SecaggError | None = None

    async def play(self, upload: Any = None) -> Any:
        try:
            return await super().play(upload)
        except grpc.aio.AioRpcError as error:
            self.error = error_from_call(error)
        except SecaggError as error:
            self.error = error
        self.stopped.set()
        return None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.stopped = asyncio.Event()
        self.answers: list[bytes] = []

    async def submit(self, message: bytes) -> Any:
        self.answers += [message] if label_of(message) == Unmask.LABEL else []
        return await super().submit(message)


def test_a_copy_of_a_tenant_with_a_ledger_of_its_own_is_left_out(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    """C07, C35: stolen keys, or one identity on two machines. The first one's words count, the
    second one's are kept as evidence, and the copy sees that it is not the one in U1."""

    async def scenario(running: Federation, plan: RoundPlan) -> None:
        tenants = everybody(running, plan, Resuming)
        first, copy = tenants[0], Wary(running, "ada", plan, vectors(LENGTH)["ada"], 1)
        await first.send(first.participant.start())
        error = await refusal(copy.send(copy.participant.start()))
        assert type(error) is refusals.ConflictingMessage
        for tenant in tenants[1:]:
            await tenant.send(tenant.participant.start())
        keys = await first_message(copy, KeyDirectory)
        with pytest.raises(FaultyCoordinator, match="own keys"):
            copy.participant.receive(keys)
        await play(tenants)
        await opened_over(running, plan, TENANTS)
        (kept,) = conflicts(tmp_path)
        assert kept["tenant"] == "ada"

    run(enrolled, tmp_path, scenario)


class Resuming(Tenant):
    """Has said its first word before it watches."""

    async def send(self, outputs: Iterable[Any]) -> None:
        self.participant.start = list  # type: ignore[method-assign]
        await super().send(outputs)


async def first_message(tenant: Tenant, kind: type[Downlink]) -> bytes:
    async for event in tenant.watch():
        if event.WhichOneof("event") == "step_message":
            message = bytes(event.step_message.message)
            if isinstance(decode_message(message), kind):
                return message
    raise AssertionError("the stream ended before the message")


def test_of_two_coordinators_with_one_round_number_one_is_joined(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    """C30: both have valid certificates, and all tenants are on both."""

    async def whole() -> None:
        async with AsyncExitStack() as stack:
            first, second = [
                await stack.enter_async_context(federation(enrolled, tmp_path / name))
                for name in ("first", "second")
            ]
            plans = enrolled.plan(LENGTH), enrolled.plan(LENGTH, min_survivors=5)
            for running, plan in zip((first, second), plans, strict=True):
                await running.open(plan)
            tenants, doubles = everybody(first, plans[0]), everybody(second, plans[1], Wary)
            for tenant, double in zip(tenants, doubles, strict=True):
                double.participant._ledger = tenant.participant._ledger
            await play(tenants)
            await play(doubles)
            await opened_over(first, plans[0], TENANTS)
            for double in doubles:
                assert isinstance(double.error, PolicyRefused)
                assert double.error.clause == "round_number"
            await second.let_pass(plans[1].deadlines.advertise_keys_ms / 1000)
            status = await second.ended(plans[1].context)
            assert status.outcome == round_pb2.ROUND_OUTCOME_ABORTED

    asyncio.run(whole())


def test_messages_of_a_parallel_session_are_refused(enrolled: Enrolled, tmp_path: Path) -> None:
    """C03: what was said to one coordinator is shown to another one, whose plan differs."""

    async def whole() -> None:
        async with AsyncExitStack() as stack:
            first, second = [
                await stack.enter_async_context(federation(enrolled, tmp_path / name))
                for name in ("first", "second")
            ]
            plan, other = enrolled.plan(LENGTH), enrolled.plan(LENGTH, min_survivors=5)
            await first.open(plan)
            await second.open(other)
            heard = remembering(first, plan, {})
            await play(heard)
            tenants = remembering(second, other, {one.name: one.said for one in heard})
            await play(tenants)
            await opened_over(second, other, TENANTS)
            assert all(tenant.again == len(BODIES) ** 2 for tenant in tenants)

    asyncio.run(whole())


# ---------------------------------------------------------------------- uploads


def test_nobody_takes_up_anothers_upload(enrolled: Enrolled, tmp_path: Path) -> None:
    """C02: not in its name, not in the own; the upload stays where its owner left it."""

    async def scenario(running: Federation, plan: RoundPlan) -> None:
        tenants = everybody(running, plan)
        eve = tenants[-1]

        async def interrupted(ada: Tenant) -> bool:
            await ada.announce_upload()
            whole = b"".join(ada.pieces())
            first = pb.UploadInputRequest(context=ada.context, tenant="ada", payload=whole[:1000])
            await ada.send_pieces([first])
            for name, kind in (
                ("ada", refusals.ForeignIdentity),
                ("eve", (refusals.OffsetMismatch, refusals.WrongStep, ProtocolError)),
            ):
                piece = pb.UploadInputRequest(
                    context=ada.context, tenant=name, offset=1000, payload=whole[1000:]
                )
                error = await refusal(eve.send_pieces([piece]))
                assert isinstance(error, kind), error
            assert (await ada.query_upload()).committed_size == 1000
            await ada.send_pieces(
                upload_requests("ada", ada.context, ada.pieces(1000), ada.root, 1000)
            )
            await ada.commit_upload()
            done.set()
            return True

        async def after_ada(tenant: Tenant) -> bool:
            await done.wait()
            return await tenant.upload()

        done = asyncio.Event()
        await play(tenants, ada=interrupted, eve=after_ada)
        await opened_over(running, plan, TENANTS)

    run(enrolled, tmp_path, scenario)


def test_an_upload_that_is_resumed_with_other_bytes_never_enters_the_sum(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    """C17: the first part is what was signed for, the second is not; only its sender is out."""

    async def scenario(running: Federation, plan: RoundPlan) -> None:
        async def resumed_otherwise(ada: Tenant) -> bool:
            await ada.announce_upload()
            whole = b"".join(ada.pieces())
            parts = (0, whole[:1000]), (1000, bytes(len(whole) - 1000))
            for offset, payload in parts:
                piece = pb.UploadInputRequest(
                    context=ada.context, tenant="ada", offset=offset, payload=payload
                )
                await ada.send_pieces([piece])
            error = await refusal(ada.commit_upload())
            assert "not those committed to" in str(error)
            assert type(error) is ProtocolError
            ada.refused.set()
            return False

        tenants = everybody(running, plan)
        playing = asyncio.create_task(play(tenants, ada=resumed_otherwise))
        for tenant in tenants:
            await (tenant.refused if tenant.name == "ada" else tenant.uploaded).wait()
        await running.let_pass(plan.deadlines.masked_input_ms / 1000)
        await playing
        await opened_over(running, plan, TENANTS[1:])

    run(enrolled, tmp_path, scenario)


# ---------------------------------------------------------------------- a coordinator that lies


class SwapsKeys(LyingAggregator):
    """Shows everybody one tenant's keys under another one's name."""

    def lie(self, recipient: int, message: Downlink) -> Downlink:
        if not isinstance(message, KeyDirectory):
            return message
        victim = (recipient + 1) % self.plan.n
        body = message.keys[(recipient + 2) % self.plan.n].body
        keys = [
            Signed(one.label, one.sender, body, one.signature) if one.sender == victim else one
            for one in message.keys
        ]
        return KeyDirectory(tuple(keys))


class LeavesEverybodyOut(LyingAggregator):
    """Shows every tenant a set without itself, from U2 on."""

    def lie(self, recipient: int, message: Downlink) -> Downlink:
        match message:
            case AgreedView():
                return AgreedView(tuple(
                    one for one in message.acknowledgements if one.sender != recipient
                ))  # fmt: skip
            case SurvivorSet():
                return SurvivorSet(tuple(
                    one for one in message.commitments if one.sender != recipient
                ))  # fmt: skip
            case _:
                return message


class ShowsEverybodyAnotherU3(LyingAggregator):
    def lie(self, recipient: int, message: Downlink) -> Downlink:
        if isinstance(message, SurvivorSet):
            gone = (recipient + 1) % self.plan.n
            return SurvivorSet(tuple(one for one in message.commitments if one.sender != gone))
        return message


class CountsOneSignatureTwice(LyingAggregator):
    def lie(self, recipient: int, message: Downlink) -> Downlink:
        if isinstance(message, Quorum):
            return Quorum((*message.signatures[:-1], message.signatures[-2]))
        return message


class SpoilsEveryDelivery(LyingAggregator):
    def lie(self, recipient: int, message: Downlink) -> Downlink | bytes:
        return b"\x01nonsense" if isinstance(message, ShareDelivery) else message


@pytest.mark.parametrize(
    ("liar", "kind", "says"),
    [
        (SwapsKeys, ProtocolError, "not signed by the key"),
        (SpoilsEveryDelivery, ProtocolError, "no message of the aggregator"),
        (LeavesEverybodyOut, FaultyCoordinator, "own acknowledgement"),
        (ShowsEverybodyAnotherU3, ProtocolError, "signs another U3"),
        (CountsOneSignatureTwice, ProtocolError, "unique and in index order"),
    ],
)
def test_a_coordinator_that_lies_over_the_wire_gets_no_share(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    liar: type[Aggregator], kind: type[SecaggError], says: str,
) -> None:  # fmt: skip
    """The coordinator's process runs another state machine; its wire and the tenants are real."""
    monkeypatch.setattr(round_driver, "Aggregator", liar)

    async def scenario(running: Federation, plan: RoundPlan) -> None:
        tenants = everybody(running, plan, Wary)
        playing = asyncio.create_task(play(tenants))
        for tenant in tenants:
            await tenant.stopped.wait()
        await playing
        for tenant in tenants:
            assert isinstance(tenant.error, kind)
            assert says in str(tenant.error)
            assert not isinstance(tenant.error, FaultyParticipant)
            assert tenant.answers == []
        for _ in Step:
            await running.let_pass(600)
        status = await running.ended(plan.context)
        assert status.outcome == round_pb2.ROUND_OUTCOME_ABORTED

    run(enrolled, tmp_path, scenario)


# ---------------------------------------------------------------------- a coordinator that dies


class Reaches(Wary):
    """Takes part until its messages of one step are sent, and then waits."""

    last: Step
    there: asyncio.Event

    async def send(self, outputs: Iterable[Any]) -> None:
        sends = [one for one in outputs if isinstance(one, Send)]
        for one in sends:
            if self.last < BODIES[label_of(one.message)].STEP:
                self.there.set()
                await asyncio.Event().wait()
        await super().send(sends)


@pytest.mark.processes
@pytest.mark.parametrize("step", [Step.ACKNOWLEDGE, Step.CONSISTENCY_CHECK])
def test_a_coordinator_that_is_killed_in_any_step_opens_nothing_and_reuses_nothing(
    enrolled: Enrolled, tmp_path: Path, step: Step
) -> None:
    """Its next process has ended the round; nobody's old words are taken; an input that has left
    does not leave again, and fresh ones open in the next round."""
    config, plan = configuration(enrolled, tmp_path), enrolled.plan(LENGTH)
    ledgers = {name: MemoryLedger() for name in TENANTS}

    async def before(port: int) -> list[list[bytes]]:
        running = reached(enrolled, port)
        tenants = everybody(running, plan, Reaches)
        said = [[] for _ in tenants]
        for tenant, words in zip(tenants, said, strict=True):
            tenant.last, tenant.there = step, asyncio.Event()
            tenant.participant._ledger = ledgers[tenant.name]
            tenant.submit = recording(tenant, words)
        players = [asyncio.create_task(tenant.play()) for tenant in tenants]
        for tenant in tenants:
            await tenant.there.wait()
        for player in players:
            player.cancel()
        await asyncio.gather(*players, return_exceptions=True)
        await closed(running)
        return said

    async def after(port: int, said: list[list[bytes]]) -> None:
        running = reached(enrolled, port)
        for name, words in zip(TENANTS, said, strict=True):
            stub = running.rounds_of(name)
            for message in words:
                request = submit_request(name, plan.context, message)
                error = await refusal(stub.SubmitMessage(request, timeout=CALL_S))
                assert type(error) is refusals.RoundEnded
        later = plan.next_round(2)
        await running.open(later)
        tenants = everybody(running, later, Wary)
        for tenant in tenants:
            tenant.participant._ledger = ledgers[tenant.name]
        if step >= Step.ACKNOWLEDGE:  # the next thing said is bound to the input, which is spent
            await play(tenants)
            assert {type(tenant.error) for tenant in tenants} == {SpentInput}
            await running.owner().AbortRound(
                owner_pb.AbortRoundRequest(context=later.context), timeout=CALL_S
            )
            later = later.next_round(3)
            await running.open(later)
            tenants = everybody(running, later, Wary)
            for tenant in tenants:
                tenant.participant._ledger = ledgers[tenant.name]
                tenant.vector = -tenant.vector
        await play(tenants)
        await opened_over(running, later, TENANTS)
        await closed(running)

    with serving(config) as (process, port):
        open_round(enrolled, port, plan)
        said = asyncio.run(before(port))
        process.kill()
        process.wait()
    with serving(config) as (_, port):
        asyncio.run(after(port, said))
        assert status_of(enrolled, port, plan).reason == "coordinator restarted"


def recording(tenant: Tenant, words: list[bytes]) -> Callable[[bytes], Awaitable[Any]]:
    async def submit(message: bytes) -> Any:
        words.append(message)
        return await Tenant.submit(tenant, message)

    return submit


def reached(enrolled: Enrolled, port: int) -> Federation:
    """A coordinator in a process of its own, as this process's parties see it."""

    class Elsewhere:
        def __init__(self) -> None:
            self.port = port

    return Federation(enrolled, Elsewhere(), None, None)  # type: ignore[arg-type]


async def closed(running: Federation) -> None:
    for channel in running.channels:
        await channel.close()


def open_round(enrolled: Enrolled, port: int, plan: RoundPlan) -> None:
    channel, owner = owner_call(enrolled, port)
    with channel:
        owner.OpenRound(owner_pb.OpenRoundRequest(plan=plan.encode()), timeout=CALL_S)


def status_of(enrolled: Enrolled, port: int, plan: RoundPlan) -> Any:
    channel, owner = owner_call(enrolled, port)
    with channel:
        return owner.GetRound(owner_pb.GetRoundRequest(context=plan.context), timeout=CALL_S).status


def test_an_old_state_is_no_way_back_into_a_round_over_the_wire(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    """C33: a tenant restored from a state that its ledger has left behind says nothing."""
    from secagg.participant import Participant
    from secagg.policy import Policy
    from secagg.secret import SealKey

    key = SealKey(bytes(32))

    async def scenario(running: Federation, plan: RoundPlan) -> None:
        tenants = everybody(running, plan)
        ada = tenants[0]
        states: list[bytes] = []
        receive = ada.participant.receive

        def exporting(message: bytes) -> Any:
            states.append(ada.participant.export(key))
            return receive(message)

        ada.participant.receive = exporting  # type: ignore[method-assign]
        await play(tenants)
        await opened_over(running, plan, TENANTS)
        for state in states:
            with pytest.raises(StaleState):
                Participant.restore(
                    state, key, plan=plan, identity=enrolled.keys["ada"].identity(),
                    roster=enrolled.roster, policy=Policy(enrolled.roster.digest),
                    ledger=ada.participant._ledger,
                )  # fmt: skip

    run(enrolled, tmp_path, scenario)
