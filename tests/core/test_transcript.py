"""A transcript proves over whom a sum was opened, and anybody can check it offline."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import merkle
from secagg.checks import leaf_digest
from secagg.errors import MalformedMessage, ProtocolError, Step
from secagg.masking import Masking
from secagg.messages import (
    AgreedView,
    Answer,
    Dealing,
    KeyDirectory,
    PadBoxes,
    Quorum,
    ShareKeysBody,
    Signed,
    SurvivorSet,
    Unmask,
    decode_message,
)
from secagg.records import decode, encode
from secagg.testing import Silence, SimulatedNetwork, SimulatedTenant, cohort, make_round
from secagg.transcript import (
    Link,
    Transcript,
    Verified,
    chain_next,
    chain_start,
    verify_transcript,
)

ROSTER = cohort(5).roster


class RemembersStates(SimulatedTenant):
    """What a colluder would keep."""

    def receive(self, message: bytes) -> list[bytes]:
        answer = super().receive(message)
        state = self.running._state
        self.states = {**getattr(self, "states", {}), type(state).__name__: state}
        return answer


@lru_cache(maxsize=1)
def finished() -> SimulatedNetwork:
    """A round of five in which t003 drops out before its upload."""
    kinds: dict[str, type[SimulatedTenant]] = {"t003": RemembersStates}
    network = make_round(5, faults=[Silence("t003", Step.ACKNOWLEDGE)], kinds=kinds)
    assert network.run().result is not None
    return network


def honest() -> Transcript:
    return decode(Transcript, finished().aggregator.transcript)


def messages() -> list[bytes]:
    return [link.message for link in honest().links]


def chained(parts: list[bytes]) -> bytes:
    """A transcript of these messages with a chain that holds: what a lying coordinator can make."""
    plan = finished().aggregator.plan
    chain, links = chain_start(plan, ROSTER), []
    for part in parts:
        chain = chain_next(plan, chain, part)
        links.append(Link(part, chain))
    return encode(Transcript(plan.encode(), ROSTER.encode(), tuple(links)))


def verified(parts: list[bytes]) -> Verified:
    return verify_transcript(chained(parts), ROSTER)


def test_an_opened_round_verifies_and_says_over_whom() -> None:
    facts = verify_transcript(finished().aggregator.transcript, ROSTER)
    assert facts.plan == finished().aggregator.plan
    assert facts.survivors == ("t000", "t001", "t002", "t004") == facts.signers == facts.answered
    assert facts.dropouts == ("t003",)
    assert facts.digest == honest().links[-1].chain
    assert chained(messages()) == finished().aggregator.transcript


def places() -> range:
    return range(len(messages()))


@pytest.mark.parametrize("place", range(13))
def test_every_message_is_held_by_the_chain(place: int) -> None:
    """C37: changed, removed, repeated or exchanged, without a new chain."""
    links = honest().links
    assert len(links) == 14  # U1, 5 dealings, U2, U3, quorum, 4 answers, pad boxes
    *rest, last = links[place].message
    changed = replace(links[place], message=bytes([*rest, last ^ 1]))
    for spoilt in (
        (*links[:place], changed, *links[place + 1 :]),
        (*links[:place], *links[place + 1 :]),
        (*links[:place], links[place], *links[place:]),
        (*links[:place], links[place + 1], links[place], *links[place + 2 :]),
    ):
        with pytest.raises(ProtocolError, match="hash chain") as caught:
            verify_transcript(encode(replace(honest(), links=spoilt)), ROSTER)
        assert caught.value.step is not None


def test_a_changed_chain_value_is_noticed() -> None:
    """C37."""
    for place in places():
        links = list(honest().links)
        links[place] = replace(links[place], chain=bytes(32))
        with pytest.raises(ProtocolError, match="hash chain"):
            verify_transcript(encode(replace(honest(), links=tuple(links))), ROSTER)


STEPS = [Step.ADVERTISE_KEYS, *[Step.SHARE_KEYS] * 5, Step.ACKNOWLEDGE, Step.MASKED_INPUT]
STEPS += [Step.CONSISTENCY_CHECK]


@pytest.mark.parametrize("place", range(9))
def test_a_removed_message_is_noticed_under_a_new_chain(place: int) -> None:
    """C37: the step that no longer holds is named."""
    parts = messages()
    with pytest.raises(ProtocolError) as caught:
        verified(parts[:place] + parts[place + 1 :])
    assert caught.value.step is not None
    assert STEPS[place] <= caught.value.step <= STEPS[place] + 1


@pytest.mark.parametrize("place", range(9))
def test_an_exchanged_or_repeated_message_is_noticed_under_a_new_chain(place: int) -> None:
    """C37."""
    parts = messages()
    exchanged = [*parts[:place], parts[place + 1], parts[place], *parts[place + 2 :]]
    repeated = [*parts[: place + 1], *parts[place:]]
    for spoilt in (exchanged, repeated):
        with pytest.raises(ProtocolError):
            verified(spoilt)


def test_answers_below_the_threshold_or_out_of_order_are_noticed_under_a_new_chain() -> None:
    """C37: the answers come last; the threshold of them must be there, each once."""
    parts = messages()
    for spoilt in (
        [*parts[:-2], parts[-1]],
        [*parts[:-5], parts[-1]],
        [*parts[:-1], parts[-2], parts[-1]],
        [*parts[:-3], parts[-2], parts[-3], parts[-1]],
    ):
        with pytest.raises(ProtocolError) as caught:
            verified(spoilt)
        assert caught.value.step is Step.UNMASK


def test_an_answer_more_than_needed_shows_in_the_digest_alone() -> None:
    """What is proven without it is the same; that it was there is not provable."""
    network = make_round(7)  # t = q = 5: seven sign, five are needed
    network.run()
    *links, boxes = decode(Transcript, network.aggregator.transcript).links
    late = next(
        e.data for e in network.sent
        if e.label == "unmask" and e.data not in {link.message for link in links}
    )  # fmt: skip
    plan, roster = network.aggregator.plan, cohort(7).roster
    for message in (late, boxes.message):
        links.append(Link(message, chain_next(plan, links[-1].chain, message)))
    more = encode(Transcript(plan.encode(), roster.encode(), tuple(links)))
    first = verify_transcript(network.aggregator.transcript, roster)
    second = verify_transcript(more, roster)
    assert first.survivors == second.survivors
    assert first.digest != second.digest
    assert set(first.answered) < set(second.answered)


def forge(place: int, change: Callable[[object], object]) -> list[bytes]:
    parts = messages()
    parts[place] = encode(change(decode_message(parts[place])))
    return parts


def unsigned(records: tuple[Signed, ...]) -> tuple[Signed, ...]:
    return (replace(records[0], signature=bytes(64)), *records[1:])


@pytest.mark.parametrize(
    ("place", "change", "step"),
    [
        (0, lambda m: KeyDirectory(m.keys[:-1]), Step.SHARE_KEYS),
        (0, lambda m: KeyDirectory(unsigned(m.keys)), Step.ADVERTISE_KEYS),
        (0, lambda m: KeyDirectory(m.keys[:2]), Step.ADVERTISE_KEYS),
        (1, lambda m: Dealing(m.body, m.leaves[::-1]), Step.SHARE_KEYS),
        (1, lambda m: Dealing(replace(m.body, signature=bytes(64)), m.leaves), Step.SHARE_KEYS),
        (6, lambda m: AgreedView(m.acknowledgements[:-1]), Step.MASKED_INPUT),
        (6, lambda m: AgreedView(unsigned(m.acknowledgements)), Step.ACKNOWLEDGE),
        (6, lambda m: AgreedView(m.acknowledgements[:2]), Step.ACKNOWLEDGE),
        (7, lambda m: SurvivorSet(m.commitments[:-1]), Step.MASKED_INPUT),
        (7, lambda m: SurvivorSet(unsigned(m.commitments)), Step.MASKED_INPUT),
        (8, lambda m: Quorum(m.signatures[:-1]), Step.CONSISTENCY_CHECK),
        (8, lambda m: Quorum(unsigned(m.signatures)), Step.CONSISTENCY_CHECK),
        (9, lambda m: replace(m, signature=bytes(64)), Step.UNMASK),
        (9, lambda m: replace(m, sender=3), Step.UNMASK),
        (13, lambda m: PadBoxes(m.boxes[:-1]), Step.UNMASK),
        (13, lambda m: PadBoxes((*m.boxes, m.boxes[0])), Step.UNMASK),
        (13, lambda m: PadBoxes((replace(m.boxes[0], box=bytes(9)), *m.boxes[1:])), Step.UNMASK),
    ],
)
def test_forged_messages_are_noticed_in_their_step_under_a_new_chain(
    place: int, change: Callable[[object], object], step: Step
) -> None:
    """C37."""
    with pytest.raises(ProtocolError) as caught:
        verified(forge(place, change))
    assert caught.value.step is step


def answered_by_t000(change: Callable[[Answer], Answer]) -> list[bytes]:
    """An answer that its own signer changed: a colluder of the coordinator."""
    parts = messages()
    signed = decode_message(parts[9])
    assert isinstance(signed, Signed)
    body = signed.read(Unmask)
    body = replace(body, answers=(change(body.answers[0]), *body.answers[1:]))
    parts[9] = encode(Signed.create(finished().aggregator.plan, cohort(5).identities[0], body))
    return parts


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: replace(answer, share=bytes(33)),
        lambda answer: replace(answer, kind=1),
        lambda answer: replace(answer, dealer=1),
        lambda answer: replace(answer, opening=bytes(32)),
    ],
    ids=["share", "kind", "dealer", "opening"],
)
def test_an_answer_that_u3_did_not_ask_for_does_not_verify(
    change: Callable[[Answer], Answer],
) -> None:
    """C25, C37: a transcript with both kinds of a dealer's shares is none."""
    with pytest.raises(ProtocolError) as caught:
        verified(answered_by_t000(change))
    assert caught.value.step is Step.UNMASK


def test_an_answer_from_outside_u3_does_not_verify() -> None:
    """C37: right shares, of somebody whom nobody may ask."""
    network = finished()
    dropout, plan = network.tenants["t003"], network.aggregator.plan
    assert isinstance(dropout, RemembersStates)
    state = dropout.states["Acknowledged"]
    held = {one.dealer: one.opened for one in state.held}
    answer = Masking().answer(plan, network.aggregator.view, frozenset({0, 1, 2, 4}), held)
    signed = Signed.create(plan, dropout.identity, answer)
    parts = messages()
    with pytest.raises(ProtocolError, match="from outside U3") as caught:
        verified([*parts[:12], encode(signed), *parts[12:]])
    assert caught.value.step is Step.UNMASK


def test_a_dealing_from_outside_u1_is_no_part_of_a_transcript() -> None:
    """C08: in form and signature it is right, and it is dealt to U1."""
    network = make_round(5, faults=[Silence("t004", None)])
    network.run()
    parts = [link.message for link in decode(Transcript, network.aggregator.transcript).links]
    first, second = (decode_message(part) for part in parts[1:3])
    assert isinstance(first, Dealing)
    assert isinstance(second, Dealing)
    leaves = (second.leaves[0], *first.leaves[1:])
    root = merkle.root([leaf_digest(leaf) for leaf in leaves])
    body = replace(first.body.read(ShareKeysBody), leaves_root=root)
    signed = Signed.create(network.aggregator.plan, cohort(5).identities[4], body)
    with pytest.raises(ProtocolError, match="dealer is outside U1") as caught:
        verified([*parts[:5], encode(Dealing(signed, leaves)), *parts[5:]])
    assert caught.value.step is Step.SHARE_KEYS


def test_another_roster_or_plan_does_not_verify() -> None:
    """C38."""
    with pytest.raises(ProtocolError, match="another roster"):
        verify_transcript(finished().aggregator.transcript, cohort(6).roster)
    other = replace(honest(), plan=cohort(5).plan(9).encode())
    with pytest.raises(ProtocolError, match="hash chain"):
        verify_transcript(encode(other), ROSTER)


@given(st.data())
@settings(max_examples=60)
def test_a_transcript_with_any_byte_changed_does_not_verify(data: st.DataObject) -> None:
    """C37, C01."""
    whole = bytearray(finished().aggregator.transcript)
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ProtocolError):
        verify_transcript(bytes(whole), ROSTER)


@given(st.integers(0, 1 << 16))
@settings(max_examples=30)
def test_a_truncated_transcript_is_malformed(length: int) -> None:
    """C01."""
    whole = finished().aggregator.transcript
    with pytest.raises(MalformedMessage):
        verify_transcript(whole[: length % len(whole)], ROSTER)


def test_a_round_that_opened_nothing_has_no_transcript_that_verifies() -> None:
    network = make_round(5, faults=[Silence("t003", Step.MASKED_INPUT), Silence("t001", None)])
    assert network.run().result is None
    with pytest.raises(ProtocolError):
        verify_transcript(network.aggregator.transcript, ROSTER)
