"""Both suites keep their promises: who opens what, what agrees, and what differs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import suite
from secagg.errors import MalformedMessage
from secagg.messages import AdvertiseKeys
from secagg.plan import SUITES, Suite
from secagg.secret import ChannelSeed, MaskSeed, Pad
from secagg.suite import Peer, PrivateKeys
from secagg.testing import SeededRandomness
from tests.core import independent

HYBRID: Suite = "x25519-mlkem768"
CONTEXT, OTHER_CONTEXT = b"c" * 32, b"d" * 32
BUNDLE = bytes(range(130))
both_suites = pytest.mark.parametrize("name", SUITES)


@dataclass(frozen=True)
class Party:
    """Index, both private keys and the seeds behind them."""

    peer: Peer
    channel: PrivateKeys
    mask: PrivateKeys
    channel_seed: ChannelSeed
    mask_seed: MaskSeed

    def at(self, index: int) -> Peer:
        return replace(self.peer, index=index)


@lru_cache(maxsize=32)
def party(name: Suite, index: int) -> Party:
    draw = SeededRandomness(f"party {index}")
    channel, mask = ChannelSeed.draw(draw), MaskSeed.draw(draw)
    return Party(
        Peer(index, suite.advertise(name, channel, mask)),
        suite.private_keys(name, channel), suite.private_keys(name, mask), channel, mask,
    )  # fmt: skip


def sealed(name: Suite, sender: int, receiver: int, plain: bytes = BUNDLE) -> tuple[bytes, bytes]:
    one, other = party(name, sender), party(name, receiver)
    draw = SeededRandomness(f"{sender} to {receiver}")
    return suite.seal(CONTEXT, one.peer, other.peer, one.channel, plain, draw)


def keys(*parties: Party) -> dict[int, independent.Keys]:
    return {
        one.peer.index: independent.Keys(
            (one.peer.keys.channel_key, one.peer.keys.channel_kem),
            (one.peer.keys.mask_key, one.peer.keys.mask_kem),
        )
        for one in parties
    }


# ---------------------------------------------------------------------------- bundles


@both_suites
@given(plain=st.binary(max_size=200), pair=st.permutations(range(3)))
@settings(max_examples=20)
def test_a_bundle_opens_for_its_receiver(name: Suite, plain: bytes, pair: list[int]) -> None:
    sender, receiver = party(name, pair[0]), party(name, pair[1])
    before, box = sealed(name, pair[0], pair[1], plain)
    assert len(before) == suite.encapsulation_bytes(name)
    assert len(box) == len(plain) + suite.TAG_BYTES
    opened = suite.open_sealed(CONTEXT, sender.peer, receiver.peer, receiver.channel, before, box)
    assert opened == plain


@both_suites
def test_a_bundle_opens_for_nobody_else_and_nowhere_else(name: Suite) -> None:
    """C11: another holder, dealer, index, direction or round."""
    a, b, c = (party(name, index) for index in range(3))
    before, box = sealed(name, 0, 1)
    for context, sender, receiver, channel in (
        (OTHER_CONTEXT, a.peer, b.peer, b.channel),
        (CONTEXT, c.peer, b.peer, b.channel),
        (CONTEXT, c.at(0), b.peer, b.channel),
        (CONTEXT, a.at(2), b.peer, b.channel),
        (CONTEXT, a.peer, b.at(2), b.channel),
        (CONTEXT, a.peer, c.peer, c.channel),
        (CONTEXT, a.peer, b.peer, c.channel),
        (CONTEXT, b.peer, a.peer, a.channel),
        (CONTEXT, b.peer, a.peer, b.channel),
        (CONTEXT, a.peer, b.peer, b.mask),
    ):
        with pytest.raises(MalformedMessage):
            suite.open_sealed(context, sender, receiver, channel, before, box)


def test_even_the_sender_opens_no_hybrid_bundle_of_its_own() -> None:
    """Its X25519 secret is there, the ML-KEM one is the receiver's. (In x25519 it knows both.)"""
    a, b = party(HYBRID, 0), party(HYBRID, 1)
    before, box = sealed(HYBRID, 0, 1)
    with pytest.raises(MalformedMessage):
        suite.open_sealed(CONTEXT, a.peer, b.peer, a.channel, before, box)


def refused_everywhere(data: bytes, opens: Callable[[bytes], object], step: int) -> None:
    for bit in range(0, 8 * len(data), step):
        spoilt = bytearray(data)
        spoilt[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MalformedMessage):
            opens(bytes(spoilt))
    for other in (b"", data[:-1], data[1:], data + b"\0"):
        with pytest.raises(MalformedMessage):
            opens(other)


@both_suites
def test_every_bit_flip_of_a_bundle_is_refused(name: Suite) -> None:
    """C11; in the KEM ciphertext every 13th bit, so that all places in a byte come by."""
    a, b = party(name, 0), party(name, 1)
    before, box = sealed(name, 0, 1)
    where = (CONTEXT, a.peer, b.peer, b.channel)
    refused_everywhere(box, lambda other: suite.open_sealed(*where, before, other), 1)
    step = 1 if name == "x25519" else 13
    refused_everywhere(before, lambda other: suite.open_sealed(*where, other, box), step)


@both_suites
def test_the_same_plaintext_is_never_sealed_under_the_same_key(name: Suite) -> None:
    """A re-deal repeats neither key nor nonce."""
    a, b = party(name, 0), party(name, 1)
    draw = SeededRandomness("one stream")
    made = [suite.seal(CONTEXT, a.peer, b.peer, a.channel, BUNDLE, draw) for _ in range(4)]
    assert len({before for before, _ in made}) == len({box for _, box in made}) == 4


# ---------------------------------------------------------------------------- pads


def boxed(dealer: int, holder: int) -> tuple[Pad, bytes, bytes]:
    one, other = party(HYBRID, dealer), party(HYBRID, holder)
    pad = suite.pad_of(CONTEXT, one.mask_seed, dealer, holder)
    return pad, *suite.seal_pad(CONTEXT, one.peer, other.peer, pad)


def test_a_pad_opens_for_its_holder_and_again_from_the_dealers_seed() -> None:
    """C39: what a rebuilt mask seed gives is what the holder has."""
    a, b = party(HYBRID, 0), party(HYBRID, 1)
    pad, box, commitment = boxed(0, 1)
    assert len(box) == suite.pad_box_bytes(HYBRID)
    assert suite.open_pad(CONTEXT, a.peer, b.peer, b.mask, box, commitment) == pad
    rebuilt = MaskSeed(a.mask_seed.expose())
    assert suite.pad_of(CONTEXT, rebuilt, 0, 1) == pad
    assert suite.pad_commitment(CONTEXT, 0, 1, pad, box) == commitment


def test_a_pad_opens_for_nobody_else_and_nowhere_else() -> None:
    """C39."""
    a, b, c = (party(HYBRID, index) for index in range(3))
    _, box, commitment = boxed(0, 1)
    other_commitment = suite.pad_commitment(CONTEXT, 0, 1, Pad(bytes(32)), box)
    for context, dealer, holder, mask, committed in (
        (OTHER_CONTEXT, a.peer, b.peer, b.mask, commitment),
        (CONTEXT, c.peer, b.peer, b.mask, commitment),
        (CONTEXT, a.at(2), b.peer, b.mask, commitment),
        (CONTEXT, a.peer, b.at(2), b.mask, commitment),
        (CONTEXT, a.peer, c.peer, c.mask, commitment),
        (CONTEXT, b.peer, a.peer, a.mask, commitment),
        (CONTEXT, a.peer, b.peer, b.channel, commitment),
        (CONTEXT, a.peer, b.peer, b.mask, other_commitment),
        (CONTEXT, a.peer, b.peer, b.mask, b""),
        (CONTEXT, a.peer, b.peer, party("x25519", 1).mask, commitment),
    ):
        with pytest.raises(MalformedMessage):
            suite.open_pad(context, dealer, holder, mask, box, committed)


def test_every_bit_flip_of_a_pad_box_is_refused() -> None:
    """C39; in the KEM ciphertext every 13th bit."""
    a, b = party(HYBRID, 0), party(HYBRID, 1)
    _, box, commitment = boxed(0, 1)
    where = (CONTEXT, a.peer, b.peer, b.mask)
    refused_everywhere(box, lambda other: suite.open_pad(*where, other, commitment), 13)


@given(st.permutations(range(4)))
@settings(max_examples=10)
def test_pads_differ_by_pair_direction_and_round(order: list[int]) -> None:
    i, j, k, _ = order
    seed = party(HYBRID, i).mask_seed
    pads = {
        suite.pad_of(CONTEXT, seed, i, j).expose(),
        suite.pad_of(CONTEXT, seed, j, i).expose(),
        suite.pad_of(CONTEXT, seed, i, k).expose(),
        suite.pad_of(OTHER_CONTEXT, seed, i, j).expose(),
        suite.pad_of(CONTEXT, party(HYBRID, j).mask_seed, i, j).expose(),
    }
    assert len(pads) == 5


# ---------------------------------------------------------------------------- pairwise seeds


def pairwise(name: Suite, i: int, j: int, context: bytes = CONTEXT, **changes: Any) -> bytes:
    one, other = party(name, i), party(name, j)
    given = {"pad": None, "commitment": b""}
    if name == HYBRID:
        given = {"pad": Pad(b"p" * 32), "commitment": b"k" * 32}
    given |= {"mine": one.peer, "theirs": other.peer, "mask": one.mask} | changes
    return suite.pairwise_seed(context, **given).expose()  # type: ignore[arg-type]


@both_suites
@given(pair=st.permutations(range(4)))
@settings(max_examples=12)
def test_both_ends_of_a_pair_have_one_seed(name: Suite, pair: list[int]) -> None:
    assert pairwise(name, pair[0], pair[1]) == pairwise(name, pair[1], pair[0])


@both_suites
def test_pairwise_seeds_differ_in_everything_that_they_depend_on(name: Suite) -> None:
    a, b = party(name, 0), party(name, 1)
    other_kem = replace(b.peer, keys=replace(b.peer.keys, mask_kem=b"kem"))
    seeds = [
        pairwise(name, 0, 1),
        pairwise(name, 0, 2),
        pairwise(name, 0, 1, OTHER_CONTEXT),
        pairwise(name, 0, 1, mine=a.at(5)),
        pairwise(name, 0, 1, theirs=b.at(5)),
        pairwise(name, 0, 1, theirs=other_kem),
        pairwise(name, 0, 1, pad=Pad(b"q" * 32)),
        pairwise(name, 0, 1, commitment=b"l" * 32),
        pairwise(name, 0, 1, mask=a.channel),
    ]
    assert len(set(seeds)) == len(seeds)


def test_the_two_suites_never_share_a_key() -> None:
    """From the same seeds, indices and context: keys of bundles and pairs differ."""
    plain, hybrid = (party(name, 0).peer.keys for name in ("x25519", HYBRID))
    assert plain.channel_key == hybrid.channel_key  # one derivation, and no secret of a round twice
    assert pairwise("x25519", 0, 1) != pairwise(HYBRID, 0, 1, pad=None, commitment=b"")
    before, box = sealed("x25519", 0, 1)
    a, b = party(HYBRID, 0), party(HYBRID, 1)
    with pytest.raises(MalformedMessage):
        suite.open_sealed(CONTEXT, a.peer, b.peer, party("x25519", 1).channel, before, box)


# ---------------------------------------------------------------------------- keys


@both_suites
def test_a_seed_gives_other_keys_as_another_kind(name: Suite) -> None:
    channel = suite.public_keys(suite.private_keys(name, ChannelSeed(bytes(32))))
    mask = suite.public_keys(suite.private_keys(name, MaskSeed(bytes(32))))
    assert channel[0] != mask[0]
    assert channel[1] != mask[1] or name == "x25519"
    assert suite.public_keys(suite.private_keys(name, MaskSeed(bytes(32)))) == mask


@both_suites
@given(seeds=st.lists(st.binary(min_size=32, max_size=32), min_size=2, max_size=2))
@settings(max_examples=30)
def test_advertised_keys_pass_their_own_check(name: Suite, seeds: list[bytes]) -> None:
    """C06 refuses nobody honest, not even with the same bytes in both seeds."""
    advertised = suite.advertise(name, ChannelSeed(seeds[0]), MaskSeed(seeds[1]))
    suite.check_public_keys(name, advertised)
    suite.check_public_keys(name, suite.advertise(name, ChannelSeed(seeds[0]), MaskSeed(seeds[0])))


@both_suites
def test_keys_of_the_other_suite_are_refused(name: Suite) -> None:
    """C06."""
    (other,) = set(SUITES) - {name}
    with pytest.raises(MalformedMessage, match="KEM"):
        suite.check_public_keys(name, party(other, 0).peer.keys)


@given(st.integers(0, 767), st.integers(3329, 4095))
@settings(max_examples=40)
def test_every_kem_coefficient_is_below_the_modulus(place: int, value: int) -> None:
    """C06; FIPS 203, section 7.2: 768 coefficients of 12 bits, packed little-endian."""
    kem = party(HYBRID, 0).peer.keys.mask_kem
    number = int.from_bytes(kem, "little")
    number += (value - (number >> 12 * place & 0xFFF)) << 12 * place
    spoilt = replace(party(HYBRID, 0).peer.keys, mask_kem=number.to_bytes(1184, "little"))
    with pytest.raises(MalformedMessage, match="mask key is no ML-KEM-768 key"):
        suite.check_public_keys(HYBRID, spoilt)


def test_private_keys_do_not_print_themselves() -> None:
    one = party(HYBRID, 0)
    seed = suite.derive(one.mask_seed.expose(), b"", b"").hex()
    assert "X25519" not in repr(one.mask)
    assert seed not in repr(one.mask)


# ---------------------------------------------------------------------------- another library


@both_suites
@given(plain=st.binary(max_size=150))
@settings(max_examples=10)
def test_the_other_implementation_opens_what_openssl_sealed(name: Suite, plain: bytes) -> None:
    a, b = party(name, 0), party(name, 1)
    before, box = suite.seal(
        CONTEXT, a.peer, b.peer, a.channel, plain, SeededRandomness(plain.hex())
    )
    opened = independent.open_bundle(
        name, CONTEXT, 0, 1, keys(a, b), b.channel_seed.expose(), before, box
    )
    assert opened == plain


@both_suites
@given(plain=st.binary(max_size=150), drawn=st.binary(min_size=32, max_size=32))
@settings(max_examples=10)
def test_openssl_opens_what_the_other_implementation_sealed(
    name: Suite, plain: bytes, drawn: bytes
) -> None:
    a, b = party(name, 0), party(name, 1)
    before, shared = drawn, b""
    if name == HYBRID:
        before, shared = independent.encapsulate(b.peer.keys.channel_kem, drawn)
    scalar, _ = independent.private_keys(name, "channel seed", a.channel_seed.expose())
    shared += independent.x25519(scalar, b.peer.keys.channel_key)
    key = independent.bundle_key(CONTEXT, 0, 1, keys(a, b), shared, before)
    box = independent.aead_seal(key, plain, CONTEXT)
    assert suite.open_sealed(CONTEXT, a.peer, b.peer, b.channel, before, box) == plain


def test_pads_cross_between_the_implementations() -> None:
    a, b = party(HYBRID, 0), party(HYBRID, 1)
    pad, box, commitment = boxed(0, 1)
    assert independent.pad_of(CONTEXT, a.mask_seed.expose(), 0, 1) == pad.expose()
    opened = independent.open_pad(CONTEXT, 0, 1, keys(a, b), b.mask_seed.expose(), box)
    assert opened == pad.expose()
    assert independent.pad_commitment(CONTEXT, 0, 1, opened, box) == commitment


@both_suites
@given(seed=st.binary(min_size=32, max_size=32))
@settings(max_examples=20)
def test_the_other_implementation_derives_the_same_keys(name: Suite, seed: bytes) -> None:
    ours = suite.advertise(name, ChannelSeed(seed), MaskSeed(seed[::-1]))
    theirs = independent.public_keys(name, "channel seed", seed)
    theirs += independent.public_keys(name, "mask seed", seed[::-1])
    assert AdvertiseKeys(theirs[0], theirs[2], theirs[1], theirs[3]) == ours


@both_suites
@given(pair=st.permutations(range(4)))
@settings(max_examples=10)
def test_the_other_implementation_agrees_on_pairwise_seeds(name: Suite, pair: list[int]) -> None:
    one, other = party(name, pair[0]), party(name, pair[1])
    scalar, _ = independent.private_keys(name, "mask seed", one.mask_seed.expose())
    pad, commitment = (b"p" * 32, b"k" * 32) if name == HYBRID else (b"", b"")
    theirs = independent.pairwise_seed(
        CONTEXT, pair[0], pair[1], keys(one, other),
        independent.x25519(scalar, other.peer.keys.mask_key), pad, commitment,
    )  # fmt: skip
    assert theirs == pairwise(name, pair[0], pair[1])
