"""Rounds as exchanges: sums are the survivors', whoever falls silent when, and whatever is sent."""

import os
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.errors import (
    MalformedMessage,
    ProtocolError,
    SecaggError,
    Step,
    TooFewSurvivors,
    UsageError,
)
from secagg.records import encode
from secagg.transcript import verify_transcript
from secagg_embed import (
    CoordinatedRound,
    Party,
    Reply,
    Requests,
    Terms,
    decode_request,
    hello,
    read_hello,
    run_round,
)
from secagg_embed.wire import Declined, Deliver, Introduction, Said
from tests.embed.conftest import NAMES, Federation, InMemory, is_mean


@pytest.mark.parametrize("scheme", ["masking", "ckks"])
def test_the_opened_mean_is_the_tenants(
    federation: Federation, scheme: Literal["masking", "ckks"]
) -> None:
    federation.terms = Terms(clip=1.0, max_weight=50, scheme=scheme)
    coordinated = federation.round()
    result = run_round(coordinated, federation.ask)
    assert result.survivors == NAMES
    assert result.total_weight == sum(map(federation.weight, NAMES))
    assert is_mean(coordinated, federation)
    verified = verify_transcript(coordinated.transcript, federation.roster)
    assert verified.survivors == NAMES


@pytest.mark.parametrize("last", list(Step))
def test_a_tenant_lost_after_any_exchange_is_a_dropout(federation: Federation, last: Step) -> None:
    coordinated = federation.round()

    def ask(requests: Requests) -> list[tuple[str, bytes]]:
        heard = {n: r for n, r in requests.items() if n != "cyd" or coordinated.step <= last}
        return federation.ask(heard)

    result = run_round(coordinated, ask)
    uploaded = last >= Step.MASKED_INPUT
    assert ("cyd" in result.survivors) == uploaded
    assert is_mean(coordinated, federation)
    silent = [(e.participant, e.step) for e in coordinated.excluded]
    # In the last step t answers open the sum, and nobody waits for the others.
    assert silent == ([] if last >= Step.CONSISTENCY_CHECK else [("cyd", Step(last + 1))])


@settings(max_examples=50)
@given(data=st.data())
def test_any_schedule_of_lost_replies_opens_the_survivors_sum_or_nothing(
    data: st.DataObject,
) -> None:
    federation = InMemory()
    coordinated = federation.round()

    def ask(requests: Requests) -> list[tuple[str, bytes]]:
        lost = data.draw(st.sets(st.sampled_from(NAMES), max_size=2), label="lost replies")
        again = data.draw(st.sets(st.sampled_from(NAMES), max_size=1), label="sent twice")
        replies = federation.ask(requests)
        replies += [reply for reply in replies if reply[0] in again]
        kept = [reply for reply in replies if reply[0] not in lost]
        return data.draw(st.permutations(kept), label="order")

    try:
        run_round(coordinated, ask)
    except TooFewSurvivors:
        assert coordinated.result is None
    else:
        assert is_mean(coordinated, federation)


@settings(max_examples=20)
@given(noise=st.binary(max_size=200), step=st.sampled_from(list(Step)))
def test_nonsense_is_refused_and_its_sender_may_still_answer(noise: bytes, step: Step) -> None:
    federation = InMemory()
    coordinated = federation.round()

    def ask(requests: Requests) -> list[tuple[str, bytes]]:
        if coordinated.step is step and not coordinated.over:
            assert coordinated.take("bob", noise) is False
            said = encode(Said(coordinated.plan.context, (noise,), (noise,)))
            assert coordinated.take("bob", Reply(said, noise)) is False
            assert coordinated.take("mallory", Reply(said)) in (True, False)  # not of the cohort
        return federation.ask(requests)

    assert run_round(coordinated, ask).survivors == NAMES
    assert {one.tenant for one in coordinated.refused} >= {"bob"}


def test_an_upload_that_broke_off_goes_on_where_it_stood(federation: Federation) -> None:
    coordinated = federation.round()
    requests = coordinated.begin()
    while not coordinated.trains:
        for name, reply in federation.ask(requests):
            coordinated.take(name, reply)
        requests = coordinated.close()
    for name, reply in federation.ask(requests):
        whole = Reply.decode(reply)
        if name == "dee":
            said = whole.read()
            assert isinstance(said, Said)
            announced = Reply(encode(Said(said.context, said.messages)), whole.upload)
            assert coordinated.take(name, announced) is False  # no signed root yet
        assert coordinated.take(name, whole)
    assert coordinated.waiting == ()
    assert not coordinated.refused


def test_replies_of_another_round_or_of_no_kind_are_refused(federation: Federation) -> None:
    earlier, later = federation.round(), federation.round()
    old = dict(federation.ask(earlier.begin()))
    later.begin()
    assert later.take("ada", old["ada"]) is False
    assert "another request" in later.refused[0].reason


def test_a_tenant_that_declines_is_not_waited_for_and_its_reason_is_shown(
    federation: Federation,
) -> None:
    coordinated = federation.round()
    coordinated.begin()
    for name in NAMES:
        reply = Reply(encode(Declined(coordinated.plan.context, "its policy forbids it")))
        assert coordinated.take(name, reply)
    assert coordinated.close() == {}
    assert coordinated.declined["bob"] == "its policy forbids it"
    with pytest.raises(TooFewSurvivors) as caught:
        coordinated.outcome()
    assert "ada: it declined: its policy forbids it" in caught.value.__notes__[0]


def test_a_reason_is_one_line_that_can_be_logged(federation: Federation) -> None:
    coordinated = federation.round()
    coordinated.begin()
    forged = "no\n2026-11-21 ERROR the coordinator lies \x1b[31m" + "x" * 3000
    coordinated.take("ada", Reply(encode(Declined(coordinated.plan.context, forged))))
    told = coordinated.declined["ada"]
    assert told.isprintable()
    assert len(told) <= 1000


def test_one_tenant_cannot_fill_the_coordinators_memory(federation: Federation) -> None:
    coordinated = federation.round()
    coordinated.begin()
    many = Reply(encode(Said(coordinated.plan.context, (b"x",) * 100_000)))
    few = Reply(encode(Said(coordinated.plan.context, (b"x",) * 10)))
    for _ in range(5):
        assert coordinated.take("ada", many) is False
        assert coordinated.take("ada", few) is False
    assert len(coordinated.refused) == 20


def test_nobody_answers_nothing_opens(federation: Federation) -> None:
    coordinated = federation.round()
    with pytest.raises(TooFewSurvivors, match="0 participants are left"):
        run_round(coordinated, lambda requests: [])
    with pytest.raises(TooFewSurvivors):
        coordinated.applied({})


def test_every_tenant_is_told_how_it_ended(federation: Federation) -> None:
    coordinated = federation.round()
    with pytest.raises(UsageError):
        coordinated.endings()
    with pytest.raises(UsageError):
        coordinated.outcome()
    run_round(coordinated, federation.ask)
    ending = decode_request(coordinated.endings()["ada"])
    assert (ending.opened, ending.survivors) == (1, NAMES)  # type: ignore[union-attr]
    aborted = federation.round()
    aborted.begin()
    aborted.abort("the operator said so")
    ending = decode_request(aborted.endings()["ada"])
    assert ending.opened == 0  # type: ignore[union-attr]
    assert "the operator said so" in ending.reason  # type: ignore[union-attr]
    assert aborted.close() == {}


# ---------------------------------------------------------------------------- who is it


def test_an_introduction_proves_whose_node_it_is(federation: Federation) -> None:
    nonce = os.urandom(32)
    assert read_hello(federation.roster, nonce, federation.answer("eve", hello(nonce))) == "eve"


def test_an_introduction_holds_for_its_nonce_and_its_tenant_alone(federation: Federation) -> None:
    nonce = os.urandom(32)
    reply = federation.answer("eve", hello(nonce))
    with pytest.raises(ProtocolError, match="does not hold"):
        read_hello(federation.roster, os.urandom(32), reply)
    said = Reply.decode(reply).read()
    assert isinstance(said, Introduction)
    for name, error in (("bob", "does not hold"), ("mallory", "not in the roster")):
        forged = Reply(encode(Introduction(name, said.signature)))
        with pytest.raises(ProtocolError, match=error):
            read_hello(federation.roster, nonce, forged)
    with pytest.raises(MalformedMessage):
        read_hello(federation.roster, nonce, Reply(encode(Declined(bytes(32), ""))))


# ---------------------------------------------------------------------------- a lying coordinator


def test_a_tenant_shown_as_survivor_and_as_dropout_costs_nobody_a_share(
    federation: Federation,
) -> None:
    """The attack that opens one client's update in Flower's SecAgg+, against real parties."""
    coordinated = federation.round()
    requests = coordinated.begin()
    while coordinated.step is not Step.CONSISTENCY_CHECK:
        replies = federation.ask(requests)
        if coordinated.trains:
            without = second_opinion(coordinated, federation, replies, victim="cyd")
        for name, reply in replies:
            coordinated.take(name, reply)
        requests = coordinated.close()
    signed_with = federation.ask(requests)
    assert all(isinstance(Reply.decode(reply).read(), Said) for _, reply in signed_with)
    for name, request in without.items():  # cyd is no survivor, says the coordinator to the same
        refused = Reply.decode(federation.answer(name, request)).read()
        assert isinstance(refused, Declined)
        assert "a second, different SurvivorSet" in refused.reason


def second_opinion(
    coordinated: CoordinatedRound,
    federation: Federation,
    replies: list[tuple[str, bytes]],
    victim: str,
) -> Requests:
    """What the others would be told had the victim's upload not come: a well-formed lie."""
    from secagg.messages import Signed, SurvivorSet
    from secagg.records import decode

    commitments = []
    for name, reply in replies:
        said = Reply.decode(reply).read()
        assert isinstance(said, Said)
        if name != victim:
            commitments.append(decode(Signed, said.committed[-1]))
    lie = encode(SurvivorSet(tuple(commitments)))
    return {n: encode(Deliver(coordinated.plan.context, lie)) for n in NAMES if n != victim}


def test_a_reply_never_carries_the_plain_vector(federation: Federation) -> None:
    """Neither in the upload nor anywhere beside it; as unprotected levels would be."""
    coordinated = federation.round()
    requests = coordinated.begin()
    while not coordinated.trains:
        for name, reply in federation.ask(requests):
            coordinated.take(name, reply)
        requests = coordinated.close()
    with Party.open(federation.folders["ada"]) as party:
        reply = party.answer(
            requests["ada"], lambda plan: federation.contribution("ada", plan)
        ).encode()
    delta = federation.delta("ada", coordinated.plan)
    assert delta.tobytes() not in reply
    assert np.frombuffer(delta.tobytes()[:8], np.uint8).tobytes() not in reply


def test_errors_are_typed(federation: Federation) -> None:
    with pytest.raises(MalformedMessage, match="no request"):
        federation.answer("ada", b"nonsense")
    with pytest.raises(SecaggError):
        Reply.decode(b"")
    for kind in (None, "text", memoryview(b"\x01"), bytearray(3)):
        with pytest.raises(MalformedMessage):
            decode_request(kind)  # type: ignore[arg-type]
        with pytest.raises(MalformedMessage):
            Reply.decode(kind)  # type: ignore[arg-type]
