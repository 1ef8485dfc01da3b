"""From the bytes of an upload to the sum: leaves at their borders, words at their limits."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from secagg import merkle
from secagg.encoding import Quantiser, from_ring, to_ring
from secagg.errors import FaultyParticipantOrCoordinator, MalformedMessage, Step
from secagg.intake import Accumulator, Incoming
from secagg.masking import MaskStreams
from secagg.packing import Packer, pack
from secagg.prg import word_dtype
from secagg.recompute import sum_values
from secagg.result import Result, count_beyond, require_within
from secagg.scheme import LeafPlace, leaf_places, upload_bytes
from secagg.spool import MemorySpool
from secagg.testing import cohort

# Leaves of 3, 2 and 1 bytes: 5 values of 4 bits fill 2.5 bytes, 16 bits and 8 bits fill theirs.
PLACES = (
    LeafPlace(0, 0, 0, 5, 4, 3, spare=4),
    LeafPlace(0, 1, 5, 1, 16, 2),
    LeafPlace(1, 0, 0, 1, 8, 1, weighs=True),
)
DATA = b"\x21\x43\x05\xff\xff\xaa"
LEAVES = (DATA[:3], DATA[3:5], DATA[5:])


@pytest.mark.parametrize("size", range(1, 7))
def test_leaves_are_hashed_alike_whatever_the_size_of_the_pieces(size: int) -> None:
    """C17."""
    incoming = Incoming(PLACES)
    for start in range(0, len(DATA), size):
        pieces = incoming.check(DATA[start : start + size])
        before = (incoming.received, incoming.filled, list(incoming.hashes))
        assert before[0] == start
        incoming.take(pieces)
    assert incoming.hashes == [merkle.bulk_leaf_hash(leaf) for leaf in LEAVES]
    assert (incoming.received, incoming.filled) == (6, 0)


def test_pieces_are_cut_where_leaves_end() -> None:
    incoming = Incoming(PLACES)
    cut = [(bytes(piece), ends) for piece, ends in incoming.check(DATA)]
    assert cut == [(leaf, True) for leaf in LEAVES]
    incoming.take(incoming.check(DATA[:1]))
    assert incoming.filled == 1
    cut = [(bytes(piece), ends) for piece, ends in incoming.check(DATA[1:4])]
    assert cut == [(DATA[1:3], True), (DATA[3:4], False)]
    assert incoming.check(b"") == []


def test_a_byte_too_many_is_refused_wherever_the_upload_stands() -> None:
    """C17."""
    for have in range(7):
        incoming = Incoming(PLACES)
        incoming.take(incoming.check(DATA[:have]))
        assert incoming.check(DATA[have:]) is not None
        with pytest.raises(MalformedMessage, match="longer than its header") as caught:
            incoming.check(DATA[have:] + b"x")
        assert caught.value.step is Step.MASKED_INPUT
        assert incoming.received == have


@pytest.mark.parametrize("bit", range(8))
def test_bits_after_the_last_value_of_a_leaf_are_0(bit: int) -> None:
    """C17: and only those."""
    spoilt = DATA[:2] + bytes([1 << bit])
    if bit < 4:
        Incoming(PLACES).check(spoilt)
    else:
        with pytest.raises(MalformedMessage, match="bits after the last value are not 0"):
            Incoming(PLACES).check(spoilt)
    Incoming(PLACES).check(DATA[:1] + bytes([1 << bit]))
    Incoming(PLACES).check(DATA[:3] + bytes([1 << bit, 1 << bit]))


PLAN = cohort(5).plan(70_000, max_weight=9, suite="x25519")  # two leaves, and one of the weight


class Subtracts:
    """An opener that takes one off every word, says where it was, and finds some marks there."""

    left_out = ()

    def __init__(self, marks: int = 0) -> None:
        self.places: list[LeafPlace] = []
        self.marks = marks

    def open(self, total: np.ndarray, place: LeafPlace) -> tuple[np.ndarray, int]:
        self.places.append(place)
        total -= total.dtype.type(1)
        return from_ring(total, place.bits), self.marks


def packed(level: int, weight: int) -> list[bytes]:
    leaves = []
    for place in leaf_places(PLAN):
        words = np.full(place.count, weight if place.vector else level, word_dtype(place.bits))
        leaves.append(bytes(Packer(place.bits, place.count).pack(words)))
    return leaves


def test_verified_uploads_add_up_and_are_opened_once_leaf_by_leaf() -> None:
    total = Accumulator(PLAN)
    for level, weight in ((3, 2), (4, 3), (5, 4)):
        total.add(partial(packed, level, weight))
    opener = Subtracts()
    opened = total.open(opener, ("t000", "t001", "t002"))
    assert opener.places == list(leaf_places(PLAN))
    assert (opened.level_sum == 11).all()
    assert (len(opened.level_sum), opened.total_weight) == (70_000, 8)
    assert opened.survivors == ("t000", "t001", "t002")
    with pytest.raises(ValueError, match="zip"):
        Accumulator(PLAN).add(lambda: packed(1, 1)[:-1])


def test_an_upload_with_a_leaf_that_is_none_leaves_the_sum_as_it_was() -> None:
    """C44: what has been added of it is taken out again."""
    total = Accumulator(PLAN)
    total.add(partial(packed, 4, 2))
    good = packed(9, 5)
    for spoilt in ([good[0], b"short", good[2]], [*good[:2], good[2] + b"x"], [b"", *good[1:]]):
        with pytest.raises(MalformedMessage):
            total.add(partial(list, spoilt))
    total.add(partial(packed, 5, 3))
    opened = total.open(Subtracts(), ("t000", "t001"))
    assert (opened.level_sum == 8).all()
    assert opened.total_weight == 4


@pytest.mark.parametrize("marks", [0, 1])
def test_marks_of_a_wrong_sum_count_like_values_out_of_range(marks: int) -> None:
    """C27: a trial says so of the first leaf and leaves the sum as it was; the sum is not used."""
    total = Accumulator(PLAN)
    total.add(partial(packed, 4, 2))
    assert total.opens(Subtracts(marks), 1) is (marks == 0)
    assert total.opens(Subtracts(marks), 1) is (marks == 0)
    assert not total.opens(NotOpened(), 1)
    if marks:
        with pytest.raises(FaultyParticipantOrCoordinator, match="in 3 places"):
            total.open(Subtracts(marks), ("t000",))
    else:
        assert (total.open(Subtracts(), ("t000",)).level_sum == 3).all()


class NotOpened(Subtracts):
    """An opener that leaves the first value where no honest sum can be."""

    def open(self, total: np.ndarray, place: LeafPlace) -> tuple[np.ndarray, int]:
        values, marks = super().open(total, place)
        values[0] = PLAN.quantiser.max_level + 1
        return values, marks


def opened(level: int, weight: int, place: int = 0) -> Result:
    """What three survivors' sum is read as, with one level at one place of it."""
    levels = np.zeros(PLAN.layout.size, np.int64)
    levels[place] = level
    total = Accumulator(PLAN)
    total.add(
        lambda: [
            pack(to_ring(sum_values(place, levels, weight), place.bits), place.bits)
            for place in leaf_places(PLAN)
        ]
    )
    return total.open(MaskStreams(PLAN, [], []), ("t000", "t001", "t002"))


@pytest.mark.parametrize("place", [0, 65_535, 65_536, 69_999])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_sum_is_used_up_to_what_its_survivors_can_reach(place: int, sign: int) -> None:
    """C27."""
    most = 3 * PLAN.quantiser.max_level
    result = opened(sign * most, 3, place)
    assert result.level_sum[place] == sign * most
    assert np.count_nonzero(result.level_sum) == 1
    with pytest.raises(FaultyParticipantOrCoordinator, match="out of range in 1 places") as caught:
        opened(sign * (most + 1), 3, place)
    assert caught.value.step is Step.UNMASK


@pytest.mark.parametrize(("weight", "used"), [(2, False), (3, True), (27, True), (28, False)])
def test_the_weight_is_used_from_one_each_to_the_cap_of_each(weight: int, used: bool) -> None:
    """C27."""
    if used:
        assert opened(0, weight).total_weight == weight
    else:
        with pytest.raises(FaultyParticipantOrCoordinator, match="in 1 places"):
            opened(0, weight)
    with pytest.raises(FaultyParticipantOrCoordinator, match="in 2 places"):
        opened(3 * PLAN.quantiser.max_level + 1, 28)


def test_values_out_of_range_are_counted_on_both_sides() -> None:
    """C27."""
    most = 2 * PLAN.quantiser.max_level
    values = np.array([most, most + 1, -most, -most - 1, 0, -(1 << 63)], np.int64)
    data, weight = leaf_places(PLAN)[0], leaf_places(PLAN)[-1]
    assert count_beyond(PLAN, 2, data, values) == 3
    assert count_beyond(PLAN, 2, data, values[[0, 2, 4]]) == 0
    for total, beyond in ((1, 1), (2, 0), (18, 0), (19, 1), (-(1 << 63), 1)):
        assert count_beyond(PLAN, 2, weight, np.array([total], np.int64)) == beyond
        together = np.append(values, np.int64(total))
        assert count_beyond(PLAN, 2, replace(data, weighs=True), together) == 3 + beyond
    require_within(0)
    with pytest.raises(FaultyParticipantOrCoordinator, match="in 7 places"):
        require_within(7)


def test_a_result_is_the_weighted_sum_and_its_mean() -> None:
    quantiser = Quantiser(1.0, 16)
    levels = np.array([quantiser.max_level, -quantiser.max_level, 0], np.int64)
    result = Result(("a", "b"), levels, 4, quantiser, 10)
    np.testing.assert_allclose(result.sum(), [10.0, -10.0, 0.0])
    np.testing.assert_allclose(result.mean(), [2.5, -2.5, 0.0])
    assert replace(result, total_weight=5).mean()[0] == pytest.approx(2.0)


def test_leaves_cover_every_vector_chunk_by_chunk() -> None:
    places = leaf_places(PLAN)
    assert [(p.vector, p.chunk, p.start, p.count) for p in places] == [
        (0, 0, 0, 65_536),
        (0, 1, 65_536, 4_464),
        (1, 0, 0, 1),
    ]
    assert upload_bytes(PLAN) == sum(p.size for p in places)
    assert [p.size for p in places] == [-(-p.count * p.bits // 8) for p in places]
    assert [p.spare for p in places] == [8 * p.size - p.count * p.bits for p in places]
    assert [p.weighs for p in places] == [False, False, True]
    assert [p.data for p in places] == [slice(0, 65_536), slice(65_536, 70_000), slice(0, 0)]
    odd = leaf_places(replace(PLAN, ring_bits=27))
    assert [p.spare for p in odd] == [8 * p.size - p.count * p.bits for p in odd]
    assert any(p.spare for p in odd)


def test_a_spool_forgets_what_it_is_told_to_and_nothing_else() -> None:
    spool = MemorySpool()
    for name in ("ada", "eve"):
        spool.append(name, b"abc")
    spool.discard("ada")
    spool.discard("nobody")
    assert [bytes(part) for part in spool.read("eve", [2, 1])] == [b"ab", b"c"]
    assert list(spool.read("ada", [])) == []
