"""Hybrid keys under attack: malformed or copied KEM keys, spoilt ciphertexts, suite downgrades.

What is refused about X25519 keys alone is in test_attacks_by_coordinator.py, for both suites.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import suite as suite_of
from secagg.errors import MalformedMessage, PolicyRefused, ProtocolError, Step, TooFewSurvivors
from secagg.messages import (
    Acknowledge,
    AdvertiseKeys,
    DeliveredLeaf,
    Downlink,
    KeyDirectory,
    Leaf,
    ShareDelivery,
    Signed,
)
from secagg.plan import SUITES, Suite
from secagg.policy import Policy
from secagg.records import encode
from secagg.secret import MaskSeed
from secagg.suite import KEM_CIPHERTEXT_BYTES, KEM_KEY_BYTES, Peer
from secagg.testing import Outcome, cohort, make_round, make_tenants
from secagg.testing.invariants import check_invariants
from tests.core.deviating import (
    Coalition,
    LyingAggregator,
    Rewriting,
    fresh_aggregator,
    nobody_honest_is_blamed,
)

VICTIM, COLLUDER = 1, 4
Q = 3329
HYBRID = cohort(5).plan(4)
OLDER = cohort(5).plan(4, suite="x25519")


def keys_of(c: Coalition, index: int) -> AdvertiseKeys:
    return c.said["advertise_keys"][index].read(AdvertiseKeys)


def directory_with(c: Coalition, *changed: Signed) -> KeyDirectory:
    keys = {one.sender: one for one in (*c.directory(c.everybody).keys, *changed)}
    return KeyDirectory(tuple(keys[index] for index in sorted(keys)))


def refused_by_all(c: Coalition, message: Downlink, match: str) -> None:
    """Every honest tenant refuses, says nothing, accuses nobody, and goes on with honest keys."""
    for index in range(COLLUDER):
        with pytest.raises(ProtocolError, match=match) as caught:
            c.tell(index, message)
        assert type(caught.value) in (ProtocolError, MalformedMessage)
    assert not c.dealings
    for index in range(COLLUDER):
        c.tell(index, c.directory(c.everybody))


# ---------------------------------------------------------------------------- KEM keys


def coefficient(place: int, value: int) -> Callable[[bytes], bytes]:
    """The encoded key with another 12-bit coefficient (FIPS 203, ByteEncode_12)."""

    def changed(key: bytes) -> bytes:
        start, odd = 3 * (place // 2), place % 2
        pair = int.from_bytes(key[start : start + 3], "little")
        pair = pair & ~(0xFFF << 12 * odd) | value << 12 * odd
        return key[:start] + pair.to_bytes(3, "little") + key[start + 3 :]

    return changed


MALFORMED: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda key: b"",
    "one byte less": lambda key: key[:-1],
    "one byte more": lambda key: key + b"\0",
    "a key of ML-KEM-512": lambda key: key[:800],
    "a key of ML-KEM-1024": lambda key: key + key[: 1568 - KEM_KEY_BYTES],
    "the first coefficient is q": coefficient(0, Q),
    "the last coefficient is q": coefficient(767, Q),
    "a coefficient is q + 1": coefficient(300, Q + 1),
    "a coefficient is 4095": coefficient(301, 4095),
}


def test_the_largest_coefficients_below_q_are_a_key() -> None:
    """The next tests change one thing in this: a key that somebody chose is still a key."""
    c = Coalition().run_to(Step.ADVERTISE_KEYS)
    own = keys_of(c, COLLUDER)
    chosen = replace(own, mask_kem=coefficient(767, Q - 1)(coefficient(0, Q - 1)(own.mask_kem)))
    c.tell(VICTIM, directory_with(c, c.sign(COLLUDER, chosen)))
    assert VICTIM in c.dealings


@pytest.mark.parametrize("field", ["channel_kem", "mask_kem"])
@pytest.mark.parametrize("how", MALFORMED)
def test_malformed_kem_keys_are_refused_although_signed(how: str, field: str) -> None:
    """C06: FIPS 203, section 7.2: the length, and every coefficient below q."""
    c = Coalition().run_to(Step.ADVERTISE_KEYS)
    own = keys_of(c, COLLUDER)
    bad = c.sign(COLLUDER, replace(own, **{field: MALFORMED[how](getattr(own, field))}))
    which = "channel" if field == "channel_kem" else "mask"
    refused_by_all(c, directory_with(c, bad), f"of the {which} key is no ML-KEM-768 key")


def advertises(change: Callable[[AdvertiseKeys], AdvertiseKeys]) -> type[Rewriting]:
    class AdvertisesOtherKeys(Rewriting):
        def rewrite(self, body: object) -> object:
            return change(body) if isinstance(body, AdvertiseKeys) else body

    return AdvertisesOtherKeys


@pytest.mark.parametrize("field", ["channel_kem", "mask_kem"])
@pytest.mark.parametrize("how", MALFORMED)
def test_malformed_kem_keys_cost_their_sender_and_not_the_round(how: str, field: str) -> None:
    """C06: refused when they come; nobody else ever sees them."""
    spoil = MALFORMED[how]
    liar = advertises(lambda keys: replace(keys, **{field: spoil(getattr(keys, field))}))
    network = make_round(5, kinds={"t004": liar})
    assert network.run().opened.survivors == ("t000", "t001", "t002", "t003")
    check_invariants(network, deviating=["t004"])
    nobody_honest_is_blamed(network, ["t004"])
    assert {(one.envelope.tenant, type(one.error)) for one in network.refused} == {
        ("t004", MalformedMessage)
    }


COPIES: dict[str, Callable[[AdvertiseKeys, AdvertiseKeys], AdvertiseKeys]] = {
    "channel": lambda theirs, own: replace(own, channel_kem=theirs.channel_kem),
    "mask": lambda theirs, own: replace(own, mask_kem=theirs.mask_kem),
    "mask as channel": lambda theirs, own: replace(own, channel_kem=theirs.mask_kem),
    "channel as mask": lambda theirs, own: replace(own, mask_kem=theirs.channel_kem),
    "its own twice": lambda theirs, own: replace(own, mask_kem=own.channel_kem),
}


@pytest.mark.parametrize("what", COPIES)
def test_one_kem_key_in_two_places_is_refused(what: str) -> None:
    """C06: whoever copies a key would have somebody else open what is sealed to it."""
    c = Coalition().run_to(Step.ADVERTISE_KEYS)
    bad = c.sign(COLLUDER, COPIES[what](keys_of(c, VICTIM), keys_of(c, COLLUDER)))
    refused_by_all(c, directory_with(c, bad), "the same|one key")


@pytest.mark.parametrize("what", COPIES)
def test_a_copied_kem_key_costs_one_place_and_not_the_round(what: str) -> None:
    """C06: the second of two equal keys is refused when it comes, and the first stays."""
    c = Coalition().run_to(Step.UNMASK)
    aggregator = fresh_aggregator(c.plan, 5)
    aggregator.receive("t001", encode(c.said["advertise_keys"][VICTIM]), 0.0)
    bad = c.sign(COLLUDER, COPIES[what](keys_of(c, VICTIM), keys_of(c, COLLUDER)))
    with pytest.raises(ProtocolError, match=r"the same|another participant advertises") as caught:
        aggregator.receive("t004", encode(bad), 0.0)
    assert type(caught.value) in (ProtocolError, MalformedMessage)
    for message in c.sequence():
        if aggregator.result is None:
            c.feed(aggregator, message)
    assert aggregator.result is not None
    assert len(aggregator.result.survivors) == 5


# ---------------------------------------------------------------------------- ciphertexts


def complaints(c: Coalition, delivery: ShareDelivery) -> tuple[int, ...]:
    """Whom the victim refuses; it goes on with the others."""
    c.tell(VICTIM, delivery)
    return c.said["acknowledge"][VICTIM].read(Acknowledge).refused


def redealt(c: Coalition, dealer: int, change: Callable[[Leaf], Leaf]) -> ShareDelivery:
    """`dealer` has changed what it deals to the victim, and signed that."""
    leaves = c.dealings[dealer].leaves
    changed = [change(leaf) if leaf.holder == VICTIM else leaf for leaf in leaves]
    c.dealings[dealer] = c.redealt(dealer, changed)
    return c.delivery(VICTIM, c.everybody)


FIELDS: dict[Suite, tuple[str, ...]] = {
    "x25519": ("encapsulation", "sealed"),
    "x25519-mlkem768": ("encapsulation", "sealed", "pad_box", "pad_commitment"),
}


@pytest.mark.parametrize(("suite", "field"), [(s, f) for s in SUITES for f in FIELDS[s]])
@given(data=st.data())
@settings(max_examples=12)
def test_a_flipped_bit_in_a_ciphertext_is_complained_about(
    suite: Suite, field: str, data: st.DataObject
) -> None:
    """C11, C39: ML-KEM decapsulates any ciphertext to something; the AEAD behind it notices.

    The dealer is 0, who draws the pad for everybody; it signs what it spoilt.
    """
    c = Coalition(plan=cohort(5).plan(4, suite=suite)).run_to(Step.SHARE_KEYS)
    size = len(getattr(c.leaf(0, VICTIM).leaf, field))
    bit = data.draw(st.sampled_from((0, 8 * size - 1)) | st.integers(0, 8 * size - 1))

    def flip(leaf: Leaf) -> Leaf:
        value = bytearray(getattr(leaf, field))
        value[bit // 8] ^= 1 << bit % 8
        return replace(leaf, **{field: bytes(value)})

    assert complaints(c, redealt(c, 0, flip)) == (0,)


LENGTHS: dict[str, Callable[[Leaf], Leaf]] = {
    "no encapsulation": lambda leaf: replace(leaf, encapsulation=b""),
    "a short one": lambda leaf: replace(leaf, encapsulation=leaf.encapsulation[:-1]),
    "a long one": lambda leaf: replace(leaf, encapsulation=leaf.encapsulation + b"\0"),
    "that of the other suite": lambda leaf: replace(
        leaf, encapsulation=bytes(32 if len(leaf.encapsulation) > 32 else KEM_CIPHERTEXT_BYTES)
    ),
    "a short box": lambda leaf: replace(leaf, pad_box=leaf.pad_box[:-1]),
    "a long box": lambda leaf: replace(leaf, pad_box=leaf.pad_box + b"\0"),
    "a box without its ciphertext": lambda leaf: replace(leaf, pad_box=leaf.pad_box[-48:]),
    "no box": lambda leaf: replace(leaf, pad_box=b""),
    "no pad at all": lambda leaf: replace(leaf, pad_box=b"", pad_commitment=b""),
    "no commitment": lambda leaf: replace(leaf, pad_commitment=b""),
    "a long commitment": lambda leaf: replace(leaf, pad_commitment=bytes(33)),
}


@pytest.mark.parametrize("what", LENGTHS)
def test_ciphertexts_of_another_length_are_complained_about(what: str) -> None:
    """C09: without its pad a pair would fall back to X25519 alone."""
    c = Coalition().run_to(Step.SHARE_KEYS)
    assert complaints(c, redealt(c, 0, LENGTHS[what])) == (0,)


@pytest.mark.parametrize("what", LENGTHS)
def test_ciphertexts_of_another_length_are_refused_by_the_aggregator(what: str) -> None:
    """C09."""
    c = Coalition().run_to(Step.SHARE_KEYS)
    aggregator = fresh_aggregator(c.plan, 5)
    for index in c.everybody:
        aggregator.receive(c.plan.cohort[index], encode(c.said["advertise_keys"][index]), 0.0)
    honest = c.dealings[0]
    redealt(c, 0, LENGTHS[what])
    with pytest.raises(MalformedMessage, match="another size"):
        aggregator.receive("t000", encode(c.dealings[0]), 0.0)
    aggregator.receive("t000", encode(honest), 0.0)


def test_a_pad_in_the_wrong_direction_is_complained_about() -> None:
    """C09: on the complete graph the smaller index draws the pad; a second one counts nowhere."""
    c = Coalition().run_to(Step.SHARE_KEYS)
    box, commitment = c.leaf(0, VICTIM).leaf.pad_box, c.leaf(0, VICTIM).leaf.pad_commitment
    second = redealt(
        c, COLLUDER, lambda leaf: replace(leaf, pad_box=box, pad_commitment=commitment)
    )
    assert complaints(c, second) == (COLLUDER,)


SWAPS: dict[str, Callable[[Leaf, Leaf], Leaf]] = {
    "encapsulation": lambda own, other: replace(own, encapsulation=other.encapsulation),
    "bundle": lambda own, other: replace(
        own, encapsulation=other.encapsulation, sealed=other.sealed
    ),
    "bundle with its commitments": lambda own, other: replace(
        own,
        encapsulation=other.encapsulation,
        sealed=other.sealed,
        commitments=other.commitments,
    ),
    "box": lambda own, other: replace(own, pad_box=other.pad_box),
    "pad commitment": lambda own, other: replace(own, pad_commitment=other.pad_commitment),
    "box with its commitment": lambda own, other: replace(
        own, pad_box=other.pad_box, pad_commitment=other.pad_commitment
    ),
}


@pytest.mark.parametrize("what", SWAPS)
def test_what_was_sealed_for_another_holder_does_not_open(what: str) -> None:
    """C11, C39: the dealer swaps it, and signs that."""
    c = Coalition().run_to(Step.SHARE_KEYS)
    other = c.leaf(0, 2).leaf
    assert complaints(c, redealt(c, 0, lambda leaf: SWAPS[what](leaf, other))) == (0,)


@pytest.mark.parametrize("what", SWAPS)
def test_what_another_dealer_sealed_does_not_open(what: str) -> None:
    """C11, C39: holder 3 is sealed something by 0; tenant 2 deals it on as its own."""
    c = Coalition().run_to(Step.SHARE_KEYS)
    copied, holder = c.leaf(0, 3).leaf, 3
    leaves = [SWAPS[what](one, copied) if one.holder == holder else one
              for one in c.dealings[2].leaves]  # fmt: skip
    c.dealings[2] = c.redealt(2, leaves)
    c.tell(holder, c.delivery(holder, c.everybody))
    assert c.said["acknowledge"][holder].read(Acknowledge).refused == (2,)


def test_boxes_that_the_coordinator_swaps_are_complained_about_and_prove_nothing() -> None:
    """C09: a leaf is signed for by its root; whoever carried it may have changed it."""
    c = Coalition().run_to(Step.SHARE_KEYS)
    delivery, other = c.delivery(VICTIM, c.everybody), c.leaf(0, 2).leaf

    def swap(one: DeliveredLeaf) -> DeliveredLeaf:
        leaf = replace(one.leaf, pad_box=other.pad_box, pad_commitment=other.pad_commitment)
        return replace(one, leaf=leaf) if one.dealer == 0 else one

    assert complaints(c, replace(delivery, leaves=tuple(map(swap, delivery.leaves)))) == (0,)


# ---------------------------------------------------------------------------- downgrades


class StripsKemKeys(LyingAggregator):
    """Announces a U1 in which one tenant has no KEM keys."""

    def lie(self, recipient: int, message: Downlink) -> Downlink:
        if not isinstance(message, KeyDirectory):
            return message
        keys = [self.stripped(one) if one.sender == 3 else one for one in message.keys]
        return KeyDirectory(tuple(keys))

    def stripped(self, signed: Signed) -> Signed:
        bare = replace(signed.read(AdvertiseKeys), channel_kem=b"", mask_kem=b"")
        return replace(signed, body=encode(bare))


def test_kem_keys_that_the_coordinator_strips_are_missed() -> None:
    """C03: nobody deals a share, so that nothing is sealed under X25519 alone."""
    network = make_round(5, aggregator=StripsKemKeys)
    outcome = network.run()
    assert isinstance(outcome.error, TooFewSurvivors)
    assert not [e for e in network.sent if e.label == "share_keys"]
    assert {type(one.error) for one in outcome.refused} == {ProtocolError}
    nobody_honest_is_blamed(network, honest_coordinator=False)


def test_kem_keys_that_a_tenant_leaves_out_cost_its_place() -> None:
    """C06."""
    bare = advertises(lambda keys: replace(keys, channel_kem=b"", mask_kem=b""))
    network = make_round(5, kinds={"t003": bare})
    assert "t003" not in network.run().opened.survivors
    nobody_honest_is_blamed(network, ["t003"])


@pytest.mark.parametrize("field", ["channel_kem", "mask_kem"])
def test_kem_keys_in_the_older_suite_are_refused(field: str) -> None:
    """C06: no room for hidden data."""
    c = Coalition(plan=OLDER).run_to(Step.ADVERTISE_KEYS)
    hybrid = keys_of(Coalition().run_to(Step.ADVERTISE_KEYS), COLLUDER)
    bad = replace(keys_of(c, COLLUDER), **{field: getattr(hybrid, field)})
    refused_by_all(c, directory_with(c, c.sign(COLLUDER, bad)), "no KEM keys")


def test_a_plan_of_the_older_suite_is_refused_by_a_default_policy() -> None:
    """C28: whoever proposes it, and nothing has been said by then."""
    network = make_round(5, plan=OLDER, policy=Policy(OLDER.roster_digest))
    outcome: Outcome = network.run()
    assert outcome.result is None
    assert not [e for e in network.sent if e.up]
    for tenant in network.tenants.values():
        assert isinstance(tenant.failure, PolicyRefused)
        assert tenant.failure.clause == "suites"


def test_keys_of_one_suite_are_no_keys_of_the_other() -> None:
    """C03: the same keys under a plan that differs in its suite alone."""
    for plan, other in ((HYBRID, OLDER), (OLDER, HYBRID)):
        c = Coalition(plan=plan).run_to(Step.ADVERTISE_KEYS)
        foreign = c.sign(3, keys_of(c, 3), other)
        refused_by_all(c, directory_with(c, foreign), "not signed by the key")


def test_the_suite_is_signed_beside_the_context() -> None:
    """C03: a signature under another suite's name is none, even in this very round."""
    c = Coalition().run_to(Step.ADVERTISE_KEYS)
    honest = c.said["advertise_keys"][3]
    context = c.plan.context
    signature = c.tenant(3).identity.sign("x25519", honest.label, context, honest.body)
    forged = replace(honest, signature=signature)
    refused_by_all(c, directory_with(c, forged), "not signed by the key")


def test_tenants_that_were_offered_different_suites_open_nothing_together() -> None:
    """C03: the coordinator offers two of five the older suite, and their policy would allow it."""
    members = cohort(5)
    network = make_round(5, plan=HYBRID)
    willing = Policy(HYBRID.roster_digest, suites=SUITES)
    for name in ("t001", "t003"):
        tenant = make_tenants(members, OLDER, policy=willing)[name]
        honest_offer = tenant.offer
        tenant.offer = lambda _, offer=honest_offer: offer(OLDER.encode())  # type: ignore[method-assign, misc]
        network.tenants[name] = tenant
    outcome = network.run()
    assert isinstance(outcome.error, TooFewSurvivors)
    assert {one.envelope.tenant for one in outcome.refused} == {"t001", "t003"}
    nobody_honest_is_blamed(network, honest_coordinator=False)


def test_both_secrets_of_a_hybrid_enter_every_key() -> None:
    """Whoever breaks X25519 alone, or ML-KEM alone, opens no bundle and rebuilds no mask."""
    c = Coalition().run_to(Step.SHARE_KEYS)
    own = c.tenant(VICTIM).running._state.secrets  # type: ignore[union-attr]
    other = c.tenant(2).running._state.secrets  # type: ignore[union-attr]
    leaf, plan = c.leaf(0, VICTIM).leaf, c.plan
    mine, theirs = Peer(VICTIM, keys_of(c, VICTIM)), Peer(0, keys_of(c, 0))
    channel, foreign = (suite_of.private_keys(plan.suite, s.channel) for s in (own, other))
    bundle = (plan.context, theirs, mine)
    assert suite_of.open_sealed(*bundle, channel, leaf.encapsulation, leaf.sealed)
    for half in (
        replace(channel, point=foreign.point),
        replace(channel, kem=foreign.kem),
    ):
        with pytest.raises(MalformedMessage, match="does not open"):
            suite_of.open_sealed(*bundle, half, leaf.encapsulation, leaf.sealed)
    mask = suite_of.private_keys(plan.suite, own.mask)
    pad = suite_of.open_pad(plan.context, theirs, mine, mask, leaf.pad_box, leaf.pad_commitment)
    right = suite_of.pairwise_seed(plan.context, mine, theirs, mask, pad, leaf.pad_commitment)
    pair, commitment = (plan.context, mine, theirs), leaf.pad_commitment
    without = suite_of.pairwise_seed(*pair, mask, None, commitment)
    stranger = suite_of.private_keys(plan.suite, other.mask)
    unpaired = suite_of.pairwise_seed(
        plan.context, mine, theirs, stranger, pad, leaf.pad_commitment
    )
    assert right != without
    assert right != unpaired


def test_a_box_opens_for_its_own_dealer_and_holder_alone() -> None:
    """C39: both are in its key, beside the commitment: a box that another dealer passes on as its
    own does not open, even if the commitment were made to fit."""
    c = Coalition().run_to(Step.SHARE_KEYS)
    context, leaf = c.plan.context, c.leaf(0, VICTIM).leaf
    state = c.tenant(VICTIM).running._state
    mask = suite_of.private_keys(c.plan.suite, state.secrets.mask)  # type: ignore[union-attr]
    peers = [Peer(index, keys_of(c, index)) for index in c.everybody]
    box, commitment = leaf.pad_box, leaf.pad_commitment
    assert suite_of.open_pad(context, peers[0], peers[VICTIM], mask, box, commitment)
    for dealer, holder in ((2, VICTIM), (0, 2), (VICTIM, 0)):
        with pytest.raises(MalformedMessage, match="does not open"):
            suite_of.open_pad(context, peers[dealer], peers[holder], mask, box, commitment)
    with pytest.raises(MalformedMessage, match="does not open"):
        suite_of.open_pad(bytes(32), peers[0], peers[VICTIM], mask, box, commitment)


def test_no_two_pads_of_a_round_are_the_same() -> None:
    """A holder knows its own pads; those of other pairs and rounds follow from none of them."""
    mask = MaskSeed(bytes(32))
    pads = {
        suite_of.pad_of(context, mask, dealer, holder).expose()
        for context in (bytes(32), bytes([1]) * 32)
        for dealer in range(4)
        for holder in range(4)
    }
    assert len(pads) == 2 * 4 * 4
    assert suite_of.pad_of(bytes(32), MaskSeed(bytes([1]) * 32), 0, 1).expose() not in pads


def test_an_honest_hybrid_round_is_the_default() -> None:
    assert cohort(5).plan(4).suite == "x25519-mlkem768"
    assert Policy(bytes(32)).suites == ("x25519-mlkem768",)
