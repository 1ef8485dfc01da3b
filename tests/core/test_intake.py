"""From the bytes of an upload to the sum: leaves at their borders, words at their limits."""

from dataclasses import replace

import numpy as np
import pytest

from secagg import merkle
from secagg.encoding import Quantiser
from secagg.errors import FaultyParticipantOrCoordinator, MalformedMessage, Step
from secagg.intake import Accumulator, Incoming
from secagg.packing import Packer
from secagg.prg import word_dtype
from secagg.result import Result, count_beyond, read_sum, require_within
from secagg.scheme import LeafPlace, leaf_places, upload_bytes
from secagg.spool import MemorySpool
from secagg.testing import cohort

# Leaves of 3, 2 and 1 bytes: 5 values of 4 bits fill 2.5 bytes, 16 bits and 8 bits fill theirs.
PLACES = (
    LeafPlace(0, 0, 0, 5, 4, 3),
    LeafPlace(0, 1, 5, 1, 16, 2),
    LeafPlace(1, 0, 0, 1, 8, 1),
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
    """An opener that takes one off every word, and says where it was."""

    def __init__(self) -> None:
        self.places: list[LeafPlace] = []

    def open(self, words: np.ndarray, place: LeafPlace) -> None:
        self.places.append(place)
        words -= words.dtype.type(1)


def packed(level: int, weight: int) -> list[bytes]:
    leaves = []
    for place in leaf_places(PLAN):
        words = np.full(place.count, weight if place.vector else level, word_dtype(place.bits))
        leaves.append(bytes(Packer(place.bits, place.count).pack(words)))
    return leaves


def test_verified_uploads_add_up_and_are_opened_once_leaf_by_leaf() -> None:
    total = Accumulator(PLAN)
    for level, weight in ((3, 2), (4, 3), (5, 4)):
        total.add(packed(level, weight))
    opener = Subtracts()
    opened = total.open(opener, ("t000", "t001", "t002"))
    assert opener.places == list(leaf_places(PLAN))
    assert (opened.level_sum == 11).all()
    assert (len(opened.level_sum), opened.total_weight) == (70_000, 8)
    assert opened.survivors == ("t000", "t001", "t002")
    with pytest.raises(ValueError, match="zip"):
        total.add(packed(1, 1)[:-1])


def opened_words(level: int, weight: int, place: int = 0) -> list[np.ndarray]:
    words = [np.zeros(length, word_dtype(bits)) for length, bits in PLAN.vectors]
    words[0][place] = level % (1 << PLAN.ring_bits)
    words[1][0] = weight
    return words


@pytest.mark.parametrize("place", [0, 65_535, 65_536, 69_999])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_sum_is_used_up_to_what_its_survivors_can_reach(place: int, sign: int) -> None:
    """C27."""
    names = ("t000", "t001", "t002")
    most = 3 * PLAN.quantiser.max_level
    result = read_sum(PLAN, names, opened_words(sign * most, 3, place))
    assert result.level_sum[place] == sign * most
    assert np.count_nonzero(result.level_sum) == 1
    with pytest.raises(FaultyParticipantOrCoordinator, match="out of range in 1 places") as caught:
        read_sum(PLAN, names, opened_words(sign * (most + 1), 3, place))
    assert caught.value.step is Step.UNMASK


@pytest.mark.parametrize(("weight", "used"), [(2, False), (3, True), (27, True), (28, False)])
def test_the_weight_is_used_from_one_each_to_the_cap_of_each(weight: int, used: bool) -> None:
    """C27."""
    names = ("t000", "t001", "t002")
    if used:
        assert read_sum(PLAN, names, opened_words(0, weight)).total_weight == weight
    else:
        with pytest.raises(FaultyParticipantOrCoordinator, match="in 1 places"):
            read_sum(PLAN, names, opened_words(0, weight))
    with pytest.raises(FaultyParticipantOrCoordinator, match="in 2 places"):
        read_sum(PLAN, names, opened_words(3 * PLAN.quantiser.max_level + 1, 28))


def test_values_out_of_range_are_counted_on_both_sides() -> None:
    """C27."""
    most = 2 * PLAN.quantiser.max_level
    values = np.array([most, most + 1, -most, -most - 1, 0, -(1 << 63)], np.int64)
    assert count_beyond(PLAN, 2, 0, values) == 3
    assert count_beyond(PLAN, 2, 0, values[[0, 2, 4]]) == 0
    assert count_beyond(PLAN, 2, 1, np.array([1, 2, 18, 19], np.int64)) == 2
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


def test_a_spool_forgets_what_it_is_told_to_and_nothing_else() -> None:
    spool = MemorySpool()
    for name in ("ada", "eve"):
        spool.append(name, b"abc")
    spool.discard("ada")
    spool.discard("nobody")
    assert [bytes(part) for part in spool.read("eve", [2, 1])] == [b"ab", b"c"]
    assert list(spool.read("ada", [])) == []
