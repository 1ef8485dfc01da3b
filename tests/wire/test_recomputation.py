"""Recomputing over the wire, from a server that is honest, invents, withholds, delays or lies."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from secagg.errors import ProtocolError, Step
from secagg.identity import Roster
from secagg.plan import RoundPlan
from secagg.scheme import leaf_places
from secagg_wire import refusals
from secagg_wire.codec import error_to_status
from secagg_wire.manifest import Origin
from secagg_wire.recomputation import chosen_leaves, transcript_bound
from secagg_wire.v1 import transcript_service_pb2 as pb
from tests.coordinator.federation import (
    TENANTS,
    Enrolled,
    Federation,
    federation,
    goes_silent,
    play,
    vectors,
)
from tests.coordinator.recomputing import (
    SILENCE_S,
    InventingArchive,
    InventingOneLeaf,
    InventingWeight,
    compared,
    deviate,
    fetched,
    finished_round,
    honest,
    invent,
    recomputation,
    with_round,
)

ALL = (0, 1, 2, 3)
Answers = AsyncIterator[Any]
Spoil = Callable[[Answers], Answers]


def test_an_honest_sum_is_recomputed_whole_and_in_parts(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario(running: Federation, plan: RoundPlan, claim: Origin) -> None:
        assert len(leaf_places(plan)) == len(ALL)
        for party in ("ada", "ona"):
            found = await fetched(running, claim, party)
            assert found.verified.survivors == TENANTS
            assert len(found.transcript) < transcript_bound(plan) / 4
            for numbers in (ALL, (1, 3), (2,)):
                compare = recomputation(running, party).compare
                assert await compare(found.verified, claim.sum_root, numbers) == len(numbers)

    with_round(enrolled, tmp_path, scenario)


def test_a_round_with_a_dropout_is_recomputed_from_its_pads(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            plan, inputs = enrolled.plan(100), vectors(100)
            context = await running.open(plan)
            tenants = [running.tenant(name, plan, inputs[name]) for name in TENANTS]
            playing = asyncio.create_task(play(tenants, dan=goes_silent))
            for tenant in tenants:
                await (tenant.agreed if tenant.name == "dan" else tenant.uploaded).wait()
            await running.let_pass(plan.deadlines.masked_input_ms / 1000)
            await playing
            status = await running.ended(context)
            claim = Origin(context, status.sum_root, status.transcript_sha256)
            found = await fetched(running, claim)
            assert found.verified.dropouts == ("dan",)
            assert len(found.transcript) < transcript_bound(plan) / 4
            assert await compared(running, claim, found.verified, (0, 1)) == 2

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("archive", "wrong"),
    [(InventingArchive, {0, 1, 2}), (InventingOneLeaf, {0}), (InventingWeight, {3})],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_an_invented_sum_is_found_in_every_leaf_where_it_was_invented(
    enrolled: Enrolled,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    archive: Any,
    wrong: set[int],
) -> None:
    async def scenario(running: Federation, plan: RoundPlan, claim: Origin) -> None:
        verified = (await fetched(running, claim)).verified
        for number in ALL:
            if number not in wrong:
                assert await compared(running, claim, verified, (number,)) == 1
                continue
            with pytest.raises(ProtocolError, match=f"leaf {number} differs") as caught:
                await compared(running, claim, verified, (number,))
            assert caught.value.step is Step.UNMASK
        with pytest.raises(ProtocolError, match="not that of the uploads"):
            await compared(running, claim, verified, ALL)

    invent(monkeypatch, archive)
    with_round(enrolled, tmp_path, scenario)


# ---------------------------------------------------------------------- what leaves may look like


def changed(change: Callable[[Any, int], Any]) -> Spoil:
    """Answers as `change(answer, position)` leaves them; None leaves one out, a list adds."""

    async def spoil(answers: Answers) -> Answers:
        position = 0
        async for answer in answers:
            made = change(answer, position)
            for one in made if isinstance(made, list) else [made]:
                if one is not None:
                    yield one
            position += 1

    return spoil


def flip(answer: Any, position: int) -> Any:
    if position == 3:
        payload = bytearray(answer.upload.payload)
        payload[77] ^= 1
        answer.upload.payload = bytes(payload)
    return answer


def longer(answer: Any, position: int) -> Any:
    if answer.HasField("upload"):
        answer.upload.payload += bytes(1 << 21)
    return answer


def shorter(answer: Any, position: int) -> Any:
    if answer.HasField("upload"):
        answer.upload.payload = answer.upload.payload[:-1]
    return answer


def as_anothers(answer: Any, position: int) -> Any:
    if answer.HasField("upload"):
        answer.upload.tenant = "eve"
    return answer


def of_another_number(answer: Any, position: int) -> Any:
    answer.number += 1
    return answer


def long_path(answer: Any, position: int) -> Any:
    if answer.HasField("upload"):
        answer.upload.path.hashes.extend([bytes(32)] * 1000)
    return answer


def no_path(answer: Any, position: int) -> Any:
    if answer.HasField("claimed"):
        del answer.claimed.hashes[:]
    return answer


def empty(answer: Any, position: int) -> Any:
    return pb.ReadLeavesResponse()


async def anothers_leaf(answers: Answers) -> Answers:
    first: Any = None
    async for answer in answers:
        if first is None:
            first = answer
        elif answer.HasField("upload"):
            answer.upload.payload = first.upload.payload
            answer.upload.path.CopyFrom(first.upload.path)
        yield answer


async def stalls(answers: Answers) -> Answers:
    yield await anext(answers)
    await asyncio.Event().wait()


async def fails(answers: Answers) -> Answers:
    yield await anext(answers)
    raise RuntimeError("a fault of the server")


SPOILT_LEAVES: dict[str, tuple[Spoil, type[Exception], str]] = {
    "a flipped bit": (changed(flip), ProtocolError, "not the one that it signed"),
    "another tenant's leaf": (anothers_leaf, ProtocolError, "not the one that it signed"),
    "another tenant's name": (changed(as_anothers), ProtocolError, "another upload"),
    "another number": (changed(of_another_number), ProtocolError, "something else"),
    "too long": (changed(longer), ProtocolError, "not the one that it signed"),
    "too short": (changed(shorter), ProtocolError, "not the one that it signed"),
    "an endless path": (changed(long_path), ProtocolError, "not the one that it signed"),
    "no path of the sum": (changed(no_path), ProtocolError, "differs"),
    "nothing in them": (changed(empty), ProtocolError, "something else"),
    "nothing at all": (changed(lambda answer, at: None), ProtocolError, "broke off"),
    "broken off": (changed(lambda a, at: a if at < 8 else None), ProtocolError, "broke off"),
    "one left out": (changed(lambda a, at: None if at == 2 else a), ProtocolError, "another upl"),
    "each twice": (changed(lambda a, at: [a, a]), ProtocolError, "another upload"),
    "stalled": (stalls, refusals.CallFailed, "sent nothing"),
    "failing": (fails, refusals.CallFailed, "UNKNOWN"),
}  # fmt: skip


def test_spoilt_leaves_are_no_success(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(running: Federation, plan: RoundPlan, claim: Origin) -> None:
        verified = (await fetched(running, claim)).verified
        for name, (spoil, kind, words) in SPOILT_LEAVES.items():
            server.leaves = staticmethod(spoil)  # type: ignore[assignment]
            with pytest.raises(kind, match=words) as caught:
                await compared(running, claim, verified, ALL)
            assert type(caught.value) is kind, name
        server.leaves = staticmethod(honest)  # type: ignore[assignment]
        assert await compared(running, claim, verified, ALL) == 4

    server = deviate(monkeypatch)
    with_round(enrolled, tmp_path, scenario)


def test_a_server_that_was_away_is_asked_for_the_rest(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    async def breaks_twice(answers: Answers) -> Answers:
        nonlocal calls
        calls += 1
        async for answer in answers:
            if calls <= 2 and answer.number == 1 and answer.HasField("claimed"):
                status = error_to_status(refusals.ShuttingDown("stopping"))
                yield grpc.aio.AbortError(status.code, status.message, status.trailing)
            yield answer

    async def scenario(running: Federation, plan: RoundPlan, claim: Origin) -> None:
        verified = (await fetched(running, claim)).verified
        server.leaves = staticmethod(breaks_twice)  # type: ignore[assignment]
        assert await compared(running, claim, verified, ALL) == 4
        assert calls == 3

    server = deviate(monkeypatch)
    with_round(enrolled, tmp_path, scenario)


def test_a_server_that_stays_away_is_not_asked_for_ever(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(answers: Answers) -> Answers:
        status = error_to_status(refusals.ShuttingDown("stopping"))
        yield grpc.aio.AbortError(status.code, status.message, status.trailing)

    async def scenario(running: Federation, plan: RoundPlan, claim: Origin) -> None:
        verified = (await fetched(running, claim)).verified
        server.leaves = server.transcript = staticmethod(away)  # type: ignore[assignment]
        with pytest.raises(refusals.ShuttingDown):
            await compared(running, claim, verified, ALL)
        with pytest.raises(refusals.ShuttingDown):
            await fetched(running, claim)

    server = deviate(monkeypatch)
    with_round(enrolled, tmp_path, scenario)


def test_a_recomputation_that_is_cancelled_ends_at_once_with_its_thread(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(running: Federation, plan: RoundPlan, claim: Origin) -> None:
        verified = (await fetched(running, claim)).verified
        waiting = asyncio.Event()

        async def stalls_and_says_so(answers: Answers) -> Answers:
            yield await anext(answers)
            waiting.set()
            await asyncio.Event().wait()

        server.leaves = staticmethod(stalls_and_says_so)  # type: ignore[assignment]
        work = asyncio.create_task(compared(running, claim, verified, ALL))
        await waiting.wait()
        began = time.monotonic()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert time.monotonic() - began < SILENCE_S - 0.1  # when the stream would be given up

    server = deviate(monkeypatch)
    with_round(enrolled, tmp_path, scenario)


# ---------------------------------------------------------------------- and what transcripts


async def truncated(answers: Answers) -> Answers:
    async for answer in answers:
        answer.payload = answer.payload[:-1] if answer.payload else b""
        yield answer


def in_header(**changes: Any) -> Spoil:
    async def spoil(answers: Answers) -> Answers:
        async for answer in answers:
            if answer.HasField("header"):
                for name, value in changes.items():
                    setattr(answer.header, name, value)
            yield answer

    return spoil


async def endless(answers: Answers) -> Answers:
    async for answer in answers:
        yield answer
    while True:
        yield pb.ReadTranscriptResponse(payload=bytes(1 << 20))


def spoil_transcript(answer: Any, position: int) -> Any:
    if position == 1:
        payload = bytearray(answer.payload)
        payload[len(payload) // 2] ^= 1
        return pb.ReadTranscriptResponse(payload=bytes(payload))
    return answer


SPOILT_TRANSCRIPTS: dict[str, tuple[Spoil, type[Exception], str]] = {
    "a flipped bit": (changed(spoil_transcript), ProtocolError, "not the one that the claim names"),
    "no header": (changed(lambda a, at: a if at else None), ProtocolError, "another plan"),
    "nothing": (changed(lambda answer, at: None), ProtocolError, "not the one"),
    "header alone": (changed(lambda a, at: None if at else a), ProtocolError, "not the one"),
    "longer than announced": (endless, ProtocolError, "longer"),
    "endless": (in_header(size=1 << 50), ProtocolError, "below"),
    "another plan": (in_header(plan=b"x"), ProtocolError, "another plan"),
    "another sum": (in_header(sum_root=bytes(32)), ProtocolError, "another sum"),
    "another transcript": (in_header(sha256=bytes(32)), ProtocolError, "another transcript"),
    "stalled": (stalls, refusals.CallFailed, "sent nothing"),
}


def test_spoilt_transcripts_are_no_success(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(running: Federation, plan: RoundPlan, claim: Origin) -> None:
        for name, (spoil, kind, words) in SPOILT_TRANSCRIPTS.items():
            server.transcript = staticmethod(spoil)  # type: ignore[assignment]
            with pytest.raises(kind, match=words) as caught:
                await fetched(running, claim)
            assert type(caught.value) is kind, name
        server.transcript = staticmethod(honest)  # type: ignore[assignment]
        await fetched(running, claim)

    server = deviate(monkeypatch)
    with_round(enrolled, tmp_path, scenario)


def test_another_rounds_transcript_or_one_under_another_roster_is_no_success(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario(running: Federation, plan: RoundPlan, claim: Origin) -> None:
        other = await finished_round(running, plan.next_round(2))
        for mixed in (
            Origin(claim.context, other.sum_root, claim.transcript_sha256),
            Origin(claim.context, claim.sum_root, other.transcript_sha256),
            Origin(other.context, claim.sum_root, claim.transcript_sha256),
        ):
            with pytest.raises(ProtocolError):
                await fetched(running, mixed)
        with pytest.raises(refusals.UnknownRound):
            await fetched(running, Origin(bytes(32), claim.sum_root, claim.transcript_sha256))
        fewer = Roster(enrolled.roster.members[:4])
        with pytest.raises(ProtocolError, match="another roster"):
            await recomputation(running).transcript(claim, fewer)

    with_round(enrolled, tmp_path, scenario)


def test_uploads_that_are_gone_are_no_success(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario(running: Federation, plan: RoundPlan, claim: Origin) -> None:
        verified = (await fetched(running, claim)).verified
        running.coordinator.rounds.purge_uploads()
        with pytest.raises(refusals.NoLongerKept):
            await compared(running, claim, verified, ALL)

    with_round(enrolled, tmp_path, scenario, retention={"hours": 0})


# ---------------------------------------------------------------------- which leaves are drawn


def test_random_leaves_are_as_many_as_asked_for_and_always_the_weights(enrolled: Enrolled) -> None:
    plan = enrolled.plan(1 << 20)
    total = len(leaf_places(plan))
    seen: set[int] = set()
    for _ in range(200):
        drawn = chosen_leaves(plan, "random", 3)
        assert drawn[-1] == total - 1
        assert list(drawn) == sorted(set(drawn))
        assert len(drawn) in (3, 4)
        seen |= set(drawn)
    assert seen == set(range(total))
    assert chosen_leaves(plan, "random", 10_000) == chosen_leaves(plan, "all", 1)
    assert chosen_leaves(plan, "all", 1) == tuple(range(total))
    assert chosen_leaves(plan, "off", 8) == ()
    standing = chosen_leaves(plan, "random", 3)
    assert all(chosen_leaves(plan, "random", 3, standing) == standing for _ in range(20))
    assert set(standing) < set(chosen_leaves(plan, "random", 15, standing))
