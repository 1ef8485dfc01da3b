"""Transcripts and recomputed sums at their limits: one message less, one leaf beyond."""

from dataclasses import replace
from functools import lru_cache

import pytest

from secagg import merkle
from secagg.errors import MalformedMessage, ProtocolError, Step, UsageError
from secagg.identity import labelled_hash
from secagg.messages import Signed, Unmask, decode_message
from secagg.plan import RoundPlan
from secagg.recompute import check_sum, random_leaves, recompute, sum_path, sum_root
from secagg.records import decode, encode
from secagg.scheme import leaf_places
from secagg.testing import SeededRandomness, SimulatedNetwork, cohort, make_round
from secagg.transcript import Link, Transcript, chain_next, chain_start, verify_transcript

PLAN = cohort(8).plan(40_000, max_colluders=1, neighbours=5, suite="x25519")
ROSTER = cohort(8).roster


@lru_cache(maxsize=1)
def finished() -> SimulatedNetwork:
    network = make_round(8, plan=PLAN)
    assert network.run().result is not None
    return network


def messages() -> list[bytes]:
    transcript = decode(Transcript, finished().aggregator.transcript)
    return [link.message for link in transcript.links]


def chained(parts: list[bytes], plan: RoundPlan = PLAN) -> bytes:
    chain, links = chain_start(plan, ROSTER), []
    for part in parts:
        chain = chain_next(plan, chain, part)
        links.append(Link(part, chain))
    return encode(Transcript(plan.encode(), ROSTER.encode(), tuple(links)))


def test_the_chain_covers_round_plan_roster_and_every_message_before() -> None:
    """C37."""
    other = replace(PLAN, round_number=2)
    start = chain_start(PLAN, ROSTER)
    assert start == labelled_hash("transcript", PLAN.context, PLAN.encode(), ROSTER.encode())
    assert len({start, chain_start(other, ROSTER), chain_start(PLAN, cohort(5).roster)}) == 3
    one = chain_next(PLAN, start, b"message")
    assert one == labelled_hash("transcript", PLAN.context, start, b"message")
    assert len({one, chain_next(PLAN, one, b"message"), chain_next(other, start, b"message")}) == 3


def test_a_transcript_that_ends_early_names_the_step_that_is_missing() -> None:
    """C37."""
    whole = messages()
    for length, step in (
        (0, Step.ADVERTISE_KEYS),
        (1, Step.SHARE_KEYS),
        (9, Step.SHARE_KEYS),
        (10, Step.MASKED_INPUT),
        (11, Step.CONSISTENCY_CHECK),
        (12, Step.UNMASK),
        (len(whole) - 1, Step.UNMASK),
    ):
        with pytest.raises(ProtocolError) as caught:
            verify_transcript(chained(whole[:length]), ROSTER)
        assert caught.value.step is step
    assert verify_transcript(chained(whole), ROSTER).survivors == PLAN.cohort


def test_a_plan_of_another_roster_is_no_transcript_of_this_one() -> None:
    """C38."""
    strange = replace(PLAN, roster_digest=bytes(32))
    with pytest.raises(MalformedMessage, match="it was made for another roster"):
        verify_transcript(chained(messages(), strange), ROSTER)


def test_every_dealers_secret_needs_t_answers_however_many_others_have() -> None:
    """C36: on a sparse graph some dealers have more answers than others."""
    whole = messages()
    answers = [
        part
        for part in whole
        if isinstance(message := decode_message(part), Signed) and message.label == Unmask.LABEL
    ]
    dealers = [[one.dealer for one in decode_message(part).read(Unmask).answers]  # type: ignore[union-attr]
               for part in answers]  # fmt: skip
    outcomes = set()
    for gone in range(len(answers)):
        left = [dealer for place, dealt in enumerate(dealers) for dealer in dealt if place != gone]
        counts = [left.count(dealer) for dealer in range(PLAN.n)]
        enough = min(counts) >= PLAN.share_threshold
        outcomes.add((enough, max(counts) >= PLAN.share_threshold))
        parts = [part for part in whole if part is not answers[gone]]
        if enough:
            verify_transcript(chained(parts), ROSTER)
        else:
            with pytest.raises(ProtocolError, match="fewer answers than the threshold") as caught:
                verify_transcript(chained(parts), ROSTER)
            assert caught.value.step is Step.UNMASK
    assert (False, True) in outcomes


class StoredUploads:
    """The uploads of a finished round, leaf by leaf."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def leaf(self, participant: str, number: int) -> tuple[bytes, tuple[bytes, ...]]:
        self.asked.append((participant, number))
        sizes = [place.size for place in leaf_places(PLAN)]
        spool = finished().aggregator._spool
        leaves = [bytes(piece) for piece in spool.read(participant, sizes)]
        hashes = [merkle.bulk_leaf_hash(leaf) for leaf in leaves]
        return leaves[number], merkle.path(hashes, number)


def test_only_the_leaves_that_were_asked_for_are_recomputed_and_there_are_no_others() -> None:
    """C40, C41."""
    verified = verify_transcript(finished().aggregator.transcript, ROSTER)
    result = finished().aggregator.result
    assert result is not None
    count = len(leaf_places(PLAN))
    for numbers in ([], [0], [count - 1], list(range(count))):
        uploads = StoredUploads()
        leaves = list(recompute(verified, uploads, numbers))
        assert [leaf.number for leaf in leaves] == numbers
        assert {number for _, number in uploads.asked} == set(numbers)
    for absent in ([-1], [count], [0, count], [count, 0], [0, -1]):
        with pytest.raises(UsageError, match=f"leaves 0 to {count - 1}"):
            list(recompute(verified, StoredUploads(), absent))
    root = sum_root(PLAN, result.level_sum, result.total_weight)
    paths = [sum_path(PLAN, result.level_sum, result.total_weight, n) for n in range(count)]
    assert check_sum(verified, StoredUploads(), root) == count
    assert check_sum(verified, StoredUploads(), root, paths.__getitem__, [0, 1]) == 2
    assert random_leaves(PLAN, count, SeededRandomness("all")) == tuple(range(count))
