"""Whole rounds in one call, synchronous and asynchronous, over links that break."""

import asyncio
from typing import Any

import pytest

from secagg.errors import ConfigError, RoundAborted, Step, TooFewSurvivors, UsageError
from secagg_embed import Requests, hello, refusing, run_round, run_round_async
from tests.embed.conftest import NAMES, InMemory, is_mean


def test_a_tenant_is_asked_again_before_it_is_given_up() -> None:
    federation = InMemory()
    coordinated, asked = federation.round(), []

    def ask(requests: Requests) -> list[tuple[str, bytes]]:
        asked.append((coordinated.step, tuple(requests)))
        first = (coordinated.step, tuple(requests)) not in asked[:-1] and len(requests) == 5
        return [one for one in federation.ask(requests) if not (first and one[0] == "bob")]

    assert run_round(coordinated, ask).survivors == NAMES
    assert [names for step, names in asked if step is Step.SHARE_KEYS] == [NAMES, ("bob",)]


def test_one_attempt_is_one_attempt() -> None:
    federation = InMemory()
    coordinated, asked = federation.round(), []

    def ask(requests: Requests) -> list[tuple[str, bytes]]:
        asked.append(tuple(requests))
        return federation.ask({n: r for n, r in requests.items() if n != "bob"})

    assert run_round(coordinated, ask, attempts=1).survivors == ("ada", "cyd", "dee", "eve")
    assert ("bob",) not in asked


def test_async_rounds_ask_everybody_at_once_and_survive_breaks_and_silence() -> None:
    federation = InMemory()
    coordinated = federation.round()
    at_once, most, broken = 0, 0, set[Step]()

    async def ask(name: str, request: bytes) -> bytes:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        try:
            await asyncio.sleep(0)
            reply = federation.answer(name, request)
            if name == "bob" and coordinated.step not in broken:
                broken.add(coordinated.step)
                raise asyncio.IncompleteReadError(b"", 4)  # the link broke before the answer left
            if name == "eve" and coordinated.step >= Step.MASKED_INPUT:
                raise TimeoutError
            return reply
        finally:
            at_once -= 1

    result = asyncio.run(run_round_async(coordinated, ask))
    assert result.survivors == ("ada", "bob", "cyd", "dee")
    assert most == 5
    assert is_mean(coordinated, federation)


def test_async_silence_ends_with_its_timeout() -> None:
    federation = InMemory()
    coordinated = federation.round()

    async def ask(name: str, request: bytes) -> bytes:
        if name in ("ada", "bob"):
            await asyncio.Event().wait()
        return federation.answer(name, request)

    with pytest.raises(TooFewSurvivors):
        asyncio.run(run_round_async(coordinated, ask, attempts=1, timeout_s=0.01))


def test_whatever_one_tenants_link_raises_ends_no_round(caplog: pytest.LogCaptureFixture) -> None:
    federation = InMemory()
    coordinated = federation.round()

    async def ask(name: str, request: bytes) -> bytes:
        if name == "bob":
            raise ValueError("a header that no library reads")
        return federation.answer(name, request)

    result = asyncio.run(run_round_async(coordinated, ask))
    assert result.survivors == ("ada", "cyd", "dee", "eve")
    assert "'bob' was not reached: ValueError" in caplog.text


def test_tenants_hear_of_an_aborted_round() -> None:
    federation = InMemory()
    coordinated, told = federation.round(), []

    def ask(requests: Requests) -> list[tuple[str, bytes]]:
        if coordinated.over:
            told.extend(requests)
        return federation.ask({n: r for n, r in requests.items() if n not in ("ada", "bob")})

    with pytest.raises(RoundAborted):
        run_round(coordinated, ask)
    assert told == list(NAMES)


def test_only_a_round_can_be_declined() -> None:
    with pytest.raises(ConfigError, match="declined"):
        refusing(hello(bytes(32)))


@pytest.mark.parametrize("attempts", [0, -1, "2", None])
def test_nobody_is_asked_less_than_once(attempts: Any) -> None:
    with pytest.raises(ConfigError, match="once at least"):
        run_round(InMemory().round(), lambda requests: [], attempts=attempts)


async def asynchronous(requests: Requests) -> list[tuple[str, bytes]]:
    return []


@pytest.mark.parametrize(
    "ask",
    [lambda _: None, lambda requests: dict.fromkeys(requests, b""), lambda _: [b""], asynchronous],
)
@pytest.mark.filterwarnings("ignore:coroutine")
def test_a_transport_of_another_form_is_no_silence(ask: Any) -> None:
    with pytest.raises(UsageError, match=r"\(tenant, reply\)"):
        run_round(InMemory().round(), ask)


def test_an_error_is_explained_once() -> None:
    coordinated = InMemory().round()
    with pytest.raises(TooFewSurvivors) as raised:
        run_round(coordinated, lambda requests: [])
    with pytest.raises(TooFewSurvivors):
        coordinated.applied({})
    assert len(raised.value.__notes__) == 1
