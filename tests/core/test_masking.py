"""The masks of one participant: which streams, with which sign, and what rebuilds them."""

import numpy as np
import pytest

from secagg import shamir
from secagg.encoding import to_ring
from secagg.errors import MalformedMessage, Step
from secagg.masking import MASK_KEY, SELF_MASK, Masking, MaskStreams, _Interpolations
from secagg.messages import ShareKeysBody
from secagg.packing import unpack
from secagg.prg import Keystream, stream_key, word_dtype
from secagg.scheme import Opened, Pairwise, ProtectionSecrets, leaf_places
from secagg.secret import MaskKeyShare, PairwiseSeed, Seed, SelfMaskSeed, SelfMaskShare
from secagg.testing import SeededRandomness, cohort

PLAN = cohort(5).plan(70_000, suite="x25519")  # two leaves of vector 0, one of vector 1
DRAW = SeededRandomness("masking")
SELF = SelfMaskSeed.draw(DRAW)
PAIRS = {other: PairwiseSeed.draw(DRAW) for other in (0, 1, 3, 4)}


def stream(seed: Seed, purpose: str, vector: int, chunk: int, out: np.ndarray) -> np.ndarray:
    key = stream_key(
        seed, label="secagg/1 masking", context=PLAN.context, purpose=purpose, vector=vector
    )
    Keystream(key).fill(chunk, out)
    return out


def test_an_upload_is_masked_by_its_own_stream_and_each_pairs_by_index() -> None:
    """y = x + PRG(b) + those with larger indices - those with smaller ones, leaf by leaf."""
    secrets = ProtectionSecrets(SELF, tuple(Pairwise(other, PAIRS[other]) for other in PAIRS))
    protector = Masking().protector(PLAN, 2, secrets)
    for place in leaf_places(PLAN):
        levels = np.arange(place.count) - place.count // 2
        plain = to_ring(levels, place.bits)
        words = unpack(protector.leaf(levels, place), place.bits, place.count)
        expected = plain.copy()
        one = np.empty_like(words)
        expected += stream(SELF, "self_mask", place.vector, place.chunk, one)
        for other, seed in PAIRS.items():
            mask = stream(seed, "pairwise_mask", place.vector, place.chunk, one)
            expected = expected + mask if other > 2 else expected - mask
        expected &= expected.dtype.type((1 << place.bits) - 1)
        assert np.array_equal(words, expected)
        assert np.count_nonzero(words == plain) <= place.count // 1000


def test_what_was_added_for_a_pair_is_taken_off_by_the_other_side() -> None:
    place = leaf_places(PLAN)[0]
    words = np.zeros(place.count, word_dtype(place.bits))
    MaskStreams(PLAN, [PAIRS[0]], []).mask(words, place)
    assert words.any()
    values, marks = MaskStreams(PLAN, [], [PAIRS[0]]).open(words, place)
    assert not values.any()
    assert marks == 0


def test_self_masks_of_survivors_and_mask_keys_of_dropouts_are_released_in_dealers_order() -> None:
    """C24."""
    held = {
        dealer: (
            Opened(SelfMaskShare(bytes([dealer]) * 33), b"s" * 32),
            Opened(MaskKeyShare(bytes([dealer + 100]) * 33), b"m" * 32),
        )
        for dealer in (3, 0, 2)
    }
    answer = Masking().answer(PLAN, bytes(32), frozenset({0, 3}), held)
    assert (answer.view, answer.key_sum) == (bytes(32), b"")
    assert [(one.dealer, one.kind, one.share[0], one.opening[:1]) for one in answer.answers] == [
        (0, SELF_MASK, 0, b"s"),
        (2, MASK_KEY, 102, b"m"),
        (3, SELF_MASK, 3, b"s"),
    ]


def test_shares_are_released_one_by_one_and_never_as_a_sum() -> None:
    """C25."""
    for holds in (True, False):
        with pytest.raises(MalformedMessage, match="no sums of shares") as caught:
            Masking().check_sum_of_shares(PLAN, holds, b"")
        assert caught.value.step is Step.UNMASK


def test_shares_are_elements_of_the_field() -> None:
    """C11: what a dealer sealed and committed to may be none."""
    body = ShareKeysBody((), bytes(32), bytes(32))
    right = SelfMaskShare((shamir.PRIME - 1).to_bytes(33)), MaskKeyShare(bytes(33))
    Masking().check_shares(PLAN, 0, 1, body, right)
    wrong = MaskKeyShare(shamir.PRIME.to_bytes(33))
    for shares in ((right[0], wrong), (wrong, right[1])):
        with pytest.raises(MalformedMessage):
            Masking().check_shares(PLAN, 0, 1, body, shares)


def test_as_many_are_released_as_of_the_dealer_of_which_there_are_fewest() -> None:
    """C36: t of them open; sums of shares count for nothing here."""
    shares = {0: range(4), 1: range(3), 2: range(5)}
    for members, fewest in (((0, 1, 2), 3), ((0, 2), 4), ((0, 1, 2, 3), 0)):
        assert Masking().released(members, shares, range(9)) == fewest


@pytest.mark.parametrize("value", [shamir.PRIME - 1, 1 << 256])
def test_shares_of_a_value_that_no_seed_has_rebuild_what_nobody_committed_to(value: int) -> None:
    """C26: 32 zero bytes, which no commitment is to, instead of an error of another kind."""
    shares = {holder: SelfMaskShare(value.to_bytes(33)) for holder in range(3)}
    assert _Interpolations().rebuild(shares, 3) == bytes(32)


def test_any_t_shares_rebuild_and_weights_follow_their_holders() -> None:
    """C36."""
    weights = _Interpolations()
    for holders in ((0, 1, 2, 3), (1, 2, 4), (0, 2, 4)):
        dealt = shamir.split(SELF, range(5), 3, SelfMaskShare, DRAW)
        shares = {holder: dealt[holder] for holder in holders}
        assert weights.rebuild(shares, 3) == SELF.expose()


def test_no_sum_of_shares_is_an_answer_here() -> None:
    with pytest.raises(MalformedMessage, match="no sums of shares"):
        Masking().check_sum_of_shares(PLAN, True, b"")
