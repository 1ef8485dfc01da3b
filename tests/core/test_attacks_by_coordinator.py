"""A coordinator that lies to honest tenants, alone or with up to f of them: no share leaves."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product

import pytest

from secagg import suite
from secagg.checks import Agreement, dealings_digest
from secagg.errors import FaultyCoordinator, MalformedMessage, ProtocolError, StaleState, Step
from secagg.identity import Identity
from secagg.messages import (
    Acknowledge,
    AdvertiseKeys,
    AgreedView,
    DeliveredLeaf,
    Downlink,
    KeyDirectory,
    Leaf,
    Quorum,
    ShareDelivery,
    ShareKeys,
    ShareKeysBody,
    Signed,
    Survivor,
    Survivors,
    SurvivorSet,
    Unmask,
    UploadCommitment,
)
from secagg.participant import Participant
from secagg.plan import SCHEMES, SUITES, RoundPlan, Scheme
from secagg.records import encode
from secagg.scheme import scheme_of
from secagg.secret import SealKey
from secagg.shamir import PRIME
from secagg.testing import SeededRandomness, cohort, make_round
from secagg.testing.invariants import check_invariants
from tests.core.deviating import CKKS, Coalition, Dealing, LyingAggregator, nobody_honest_is_blamed

VICTIM, COLLUDER = 1, 4
SEAL_KEY = SealKey(bytes(32))
P = 2**255 - 19


@pytest.fixture(params=[*SUITES, "ckks"])
def plan(request: pytest.FixtureRequest) -> RoundPlan:
    """n = 5, f = 1, t = q = 4, in both suites and schemes."""
    return CKKS if request.param == "ckks" else cohort(5).plan(4, suite=request.param)


def refused(
    coalition: Coalition,
    message: Downlink,
    match: str,
    error: type[ProtocolError] = ProtocolError,
    victim: int = VICTIM,
) -> None:
    """The victim refuses, says nothing, and is as it was before."""
    participant = coalition.tenant(victim).running
    key, context = coalition.tenant(victim).identity.public_key, coalition.plan.context
    ledger = coalition.tenant(victim).ledger
    before = encode(participant._state), ledger.entries(key, context)
    with pytest.raises(error, match=match) as caught:
        coalition.tell(victim, message)
    # Whoever is a coordinator's victim knows no culprit, unless the proof is its own words.
    assert (type(caught.value) is FaultyCoordinator) == (error is FaultyCoordinator)
    assert (encode(participant._state), ledger.entries(key, context)) == before


def swapped(records: tuple[Signed, ...], index: int, by: Signed) -> tuple[Signed, ...]:
    return tuple(by if one.sender == index else one for one in records)


# ---------------------------------------------------------------------------- keys


def keys_with(coalition: Coalition, by: Signed) -> KeyDirectory:
    return KeyDirectory(swapped(coalition.directory(coalition.everybody).keys, by.sender, by))


def advertised(coalition: Coalition, index: int) -> AdvertiseKeys:
    return coalition.said["advertise_keys"][index].read(AdvertiseKeys)


def unsigned_key(c: Coalition) -> Signed:
    return replace(c.said["advertise_keys"][3], signature=bytes(64))


def swapped_key(c: Coalition) -> Signed:
    return replace(c.said["advertise_keys"][3], body=c.said["advertise_keys"][2].body)


def key_under_another_name(c: Coalition) -> Signed:
    return replace(c.said["advertise_keys"][2], sender=3)


def key_signed_by_a_stranger(c: Coalition) -> Signed:
    stranger = Identity.generate("t003", SeededRandomness("a stranger"))
    return Signed.create(c.plan, stranger, advertised(c, 2))


def key_of_another_round(c: Coalition) -> Signed:
    return c.sign(3, advertised(c, 3), c.plan.next_round(2))


def key_of_another_layout(c: Coalition) -> Signed:
    return c.sign(3, advertised(c, 3), c.members.plan(5))


def key_of_another_model(c: Coalition) -> Signed:
    return c.sign(3, advertised(c, 3), replace(c.plan, model_digest=bytes(32)))


def key_of_another_quantiser(c: Coalition) -> Signed:
    return c.sign(3, advertised(c, 3), c.members.plan(4, clip=2.0))


@pytest.mark.parametrize(
    "forgery",
    [
        unsigned_key, swapped_key, key_under_another_name, key_signed_by_a_stranger,
        key_of_another_round, key_of_another_layout, key_of_another_model, key_of_another_quantiser,
    ],
)  # fmt: skip
def test_a_key_that_its_owner_did_not_sign_for_this_round_is_refused_before_a_secret_leaves(
    forgery: Callable[[Coalition], Signed], plan: RoundPlan
) -> None:
    """C03."""
    c = Coalition(plan=plan).run_to(Step.ADVERTISE_KEYS)
    refused(c, keys_with(c, forgery(c)), "not signed by the key in the pinned roster")
    assert not c.dealings


def test_a_sender_outside_the_cohort_is_refused(plan: RoundPlan) -> None:
    """C02."""
    c = Coalition(plan=plan).run_to(Step.ADVERTISE_KEYS)
    keys = c.directory(c.everybody).keys
    stranger = replace(keys[4], sender=5)
    refused(c, KeyDirectory((*keys, stranger)), "outside the cohort", MalformedMessage)


@pytest.mark.parametrize(
    "shuffle",
    [
        lambda k: (*k, k[-1]),
        lambda k: (k[0], *k),
        lambda k: k[::-1],
        lambda k: (k[1], k[0], *k[2:]),
    ],
    ids=["twice at the end", "twice at the beginning", "reversed", "two exchanged"],
)
def test_keys_that_stand_twice_or_out_of_order_are_refused(
    shuffle: Callable[[tuple[Signed, ...]], tuple[Signed, ...]], plan: RoundPlan
) -> None:
    """C04."""
    c = Coalition(plan=plan).run_to(Step.ADVERTISE_KEYS)
    keys = shuffle(c.directory(c.everybody).keys)
    refused(c, KeyDirectory(keys), "unique and in index order", MalformedMessage)


def test_a_small_u1_is_refused(plan: RoundPlan) -> None:
    """C05: a victim among few, the rest invented, is no cohort."""
    c = Coalition(plan=plan).run_to(Step.ADVERTISE_KEYS)
    for size in range(1, c.plan.least):
        among = [VICTIM, *[i for i in c.everybody if i != VICTIM][: size - 1]]
        refused(c, c.directory(sorted(among)), f"U1 has {size} members")


def test_a_u1_without_the_own_keys_is_proof_against_the_coordinator(plan: RoundPlan) -> None:
    """C07: missing."""
    c = Coalition(plan=plan).run_to(Step.ADVERTISE_KEYS)
    refused(c, c.directory([0, 2, 3, 4]), "lacks this participant's own keys", FaultyCoordinator)


def test_other_own_keys_are_proof_against_the_coordinator(plan: RoundPlan) -> None:
    """C07: replaced by what a second process of the same identity signed."""
    c = Coalition(plan=plan).run_to(Step.ADVERTISE_KEYS)
    channel, mask = _seeds("another process")
    other = suite.advertise(plan.suite, channel, mask if plan.scheme == "masking" else None)
    refused(c, keys_with(c, c.sign(VICTIM, other)), "own keys", FaultyCoordinator)


LOW_ORDER = [
    0, 1, P - 1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
]  # fmt: skip
NON_CANONICAL = [P, P + 1, P + 18, 2**255 - 1, 2**255, 2**255 + 1, 2**256 - 1, 2**255 + P - 1]


@pytest.mark.parametrize("field", ["channel_key", "mask_key"])
@pytest.mark.parametrize("value", LOW_ORDER + NON_CANONICAL, ids=lambda value: f"{value:.4g}")
def test_points_of_low_order_and_other_encodings_are_refused_although_signed(
    value: int, field: str, plan: RoundPlan
) -> None:
    """C06."""
    c = Coalition(plan=plan).run_to(Step.ADVERTISE_KEYS)
    bad = replace(advertised(c, COLLUDER), **{field: value.to_bytes(32, "little")})
    why = "low order" if value in LOW_ORDER else "no canonical"
    if plan.scheme == "ckks" and field == "mask_key":
        why = "has no mask keys"
    refused(c, keys_with(c, c.sign(COLLUDER, bad)), why, MalformedMessage)


def test_the_high_bit_alias_of_a_real_key_is_refused(plan: RoundPlan) -> None:
    """C06: libraries mask the bit, so that two encodings would be one key."""
    c = Coalition(plan=plan).run_to(Step.ADVERTISE_KEYS)
    key = int.from_bytes(advertised(c, VICTIM).channel_key, "little") | 1 << 255
    bad = replace(advertised(c, COLLUDER), channel_key=key.to_bytes(32, "little"))
    refused(c, keys_with(c, c.sign(COLLUDER, bad)), "no canonical", MalformedMessage)


@pytest.mark.parametrize(
    "copy",
    [
        lambda theirs, own: replace(own, channel_key=theirs.channel_key),
        lambda theirs, own: replace(own, mask_key=theirs.mask_key),
        lambda theirs, own: replace(own, channel_key=theirs.mask_key),
        lambda theirs, own: replace(own, mask_key=own.channel_key),
    ],
    ids=["channel", "mask", "mask as channel", "its own twice"],
)
def test_one_key_in_two_places_is_refused(
    copy: Callable[[AdvertiseKeys, AdvertiseKeys], AdvertiseKeys], plan: RoundPlan
) -> None:
    """C06."""
    c = Coalition(plan=plan).run_to(Step.ADVERTISE_KEYS)
    bad = copy(advertised(c, VICTIM), advertised(c, COLLUDER))
    if bad == advertised(c, COLLUDER) or not bad.channel_key:
        return  # scheme ckks: there are no mask keys to copy
    refused(c, keys_with(c, c.sign(COLLUDER, bad)), "the same|one key|has no mask keys|canonical")


def _seeds(name: str) -> tuple[suite.ChannelSeed, suite.MaskSeed]:
    draw = SeededRandomness(name)
    return suite.ChannelSeed.draw(draw), suite.MaskSeed.draw(draw)


# ---------------------------------------------------------------------------- dealings


def test_a_dealer_outside_u1_is_refused(plan: RoundPlan) -> None:
    """C08."""
    c = Coalition(plan=plan).run_to(Step.SHARE_KEYS, among=[0, 1, 2, 3])
    body = ShareKeysBody((0, 1, 2, 3), bytes(32), bytes(32))
    fifth = c.sign(COLLUDER, body)
    honest = c.delivery(VICTIM, [0, 1, 2, 3])
    leaf = replace(honest.leaves[0], dealer=COLLUDER)
    message = ShareDelivery((*honest.bodies, fifth), (*honest.leaves, leaf))
    refused(c, message, "dealer is outside U1")


@pytest.mark.parametrize("holders", [(0, 1, 2, 3), (0, 2, 3, 4), (4, 3, 2, 1, 0), (0, 1, 2, 3, 3)])
def test_a_dealing_to_others_than_u1_is_refused(holders: tuple[int, ...], plan: RoundPlan) -> None:
    """C08."""
    c = Coalition(plan=plan).run_to(Step.SHARE_KEYS)
    honest = c.delivery(VICTIM, c.everybody)
    body = replace(c.dealings[COLLUDER].body.read(ShareKeysBody), holders=holders)
    bodies = swapped(honest.bodies, COLLUDER, c.sign(COLLUDER, body))
    refused(c, replace(honest, bodies=bodies), "holders are not U1")


@pytest.mark.parametrize(
    "change",
    [
        lambda leaves: (*leaves, leaves[-1]),
        lambda leaves: leaves[::-1],
        lambda leaves: (*leaves[:-1], replace(leaves[-1], dealer=9)),
    ],
    ids=["twice", "reversed", "of nobody"],
)
def test_leaves_that_are_not_unique_in_order_and_of_dealers_are_refused(
    change: Callable[[tuple[DeliveredLeaf, ...]], tuple[DeliveredLeaf, ...]], plan: RoundPlan
) -> None:
    """C08."""
    c = Coalition(plan=plan).run_to(Step.SHARE_KEYS)
    honest = c.delivery(VICTIM, c.everybody)
    refused(c, replace(honest, leaves=change(honest.leaves)), "leaves", MalformedMessage)


def test_a_delivery_without_the_own_dealing_is_proof_against_the_coordinator(
    plan: RoundPlan,
) -> None:
    """C10: missing."""
    c = Coalition(plan=plan).run_to(Step.SHARE_KEYS)
    refused(c, c.delivery(VICTIM, [0, 2, 3, 4]), "own dealing", FaultyCoordinator)


def with_zeros(body: ShareKeysBody) -> ShareKeysBody:
    """A dealing that commits to something else, in a commitment of the right size."""
    return replace(body, secret_commitment=bytes(len(body.secret_commitment)))


def test_another_own_dealing_is_proof_against_the_coordinator(plan: RoundPlan) -> None:
    """C10: replaced by what a second process of the same identity signed."""
    c = Coalition(plan=plan).run_to(Step.SHARE_KEYS)
    honest = c.delivery(VICTIM, c.everybody)
    other = with_zeros(c.dealings[VICTIM].body.read(ShareKeysBody))
    bodies = swapped(honest.bodies, VICTIM, c.sign(VICTIM, other))
    refused(c, replace(honest, bodies=bodies), "own dealing", FaultyCoordinator)


def test_an_unsigned_dealing_is_refused(plan: RoundPlan) -> None:
    """C03."""
    c = Coalition(plan=plan).run_to(Step.SHARE_KEYS)
    honest = c.delivery(VICTIM, c.everybody)
    forged = replace(honest.bodies[3], signature=bytes(64))
    refused(c, replace(honest, bodies=swapped(honest.bodies, 3, forged)), "not signed")


# Complaints: the victim accepts everything but the one dealing, and says so without any proof.


def complaint(c: Coalition, delivery: ShareDelivery) -> set[int]:
    """Whom the victim complains about."""
    c.tell(VICTIM, delivery)
    own = c.said["acknowledge"][VICTIM].read(Acknowledge)
    setting = c.tenant(VICTIM).running._me.setting
    assert own.dealings_digest == dealings_digest(setting, delivery.bodies)
    assert list(own.refused) == sorted(set(own.refused))
    return set(own.refused)


def with_leaf(delivery: ShareDelivery, leaf: DeliveredLeaf) -> ShareDelivery:
    leaves = tuple(leaf if one.dealer == leaf.dealer else one for one in delivery.leaves)
    return replace(delivery, leaves=leaves)


@pytest.mark.parametrize(
    "change",
    [
        lambda c, leaf: replace(leaf, leaf=c.leaf(2, 3).leaf, path=c.leaf(2, 3).path),
        lambda c, leaf: replace(leaf, leaf=c.leaf(3, VICTIM).leaf),
        lambda c, leaf: replace(leaf, path=leaf.path[:-1]),
        lambda c, leaf: replace(leaf, path=(*leaf.path, bytes(32))),
        lambda c, leaf: replace(leaf, path=(bytes(32), *leaf.path[1:])),
        lambda c, leaf: replace(leaf, leaf=replace(leaf.leaf, commitments=(bytes(32),) * 2)),
        lambda c, leaf: replace(leaf, leaf=replace(leaf.leaf, sealed=bytes(146))),
    ],
    ids=["of another holder", "of another dealer", "short path", "long path", "wrong path",
         "other commitments", "other bundle"],
)  # fmt: skip
def test_a_leaf_that_is_not_under_the_signed_root_is_complained_about(
    change: Callable[[Coalition, DeliveredLeaf], DeliveredLeaf], plan: RoundPlan
) -> None:
    """C09."""
    c = Coalition(plan=plan).run_to(Step.SHARE_KEYS)
    honest = c.delivery(VICTIM, c.everybody)
    spoilt = change(c, c.leaf(2, VICTIM))
    assert complaint(c, with_leaf(honest, spoilt)) == {2}


def test_a_withheld_leaf_is_complained_about(plan: RoundPlan) -> None:
    c = Coalition(plan=plan).run_to(Step.SHARE_KEYS)
    honest = c.delivery(VICTIM, c.everybody)
    leaves = tuple(one for one in honest.leaves if one.dealer != 2)
    assert complaint(c, replace(honest, leaves=leaves)) == {2}


def complaint_about(plan: RoundPlan, dealing: Dealing) -> set[int]:
    """What the victim says when the colluder deals like this, and signs it."""
    c = Coalition(plan=plan).run_to(Step.ADVERTISE_KEYS)
    for index in range(COLLUDER):
        c.tell(index, c.directory(c.everybody))
    c.dealings[COLLUDER] = dealing.make(c.tenant(COLLUDER), c.directory(c.everybody))
    return complaint(c, c.delivery(VICTIM, c.everybody))


def only_for_the_victim(share: Callable[[bytes], bytes]) -> Callable[[int, int, bytes], bytes]:
    return lambda holder, kind, value: share(value) if holder == VICTIM else value


def test_an_honestly_rebuilt_dealing_is_accepted(plan: RoundPlan) -> None:
    """The next tests change one thing in this."""
    assert complaint_about(plan, Dealing()) == set()


@pytest.mark.parametrize("kind", [0, 1], ids=["self mask", "mask key"])
def test_a_share_that_is_not_the_committed_one_is_complained_about(
    kind: int, plan: RoundPlan
) -> None:
    """C11."""
    kind %= len(scheme_of(plan).share_kinds)

    def distort(holder: int, which: int, value: bytes) -> bytes:
        return bytes(len(value)) if (holder, which) == (VICTIM, kind) else value

    assert complaint_about(plan, Dealing(sealed=distort)) == {COLLUDER}


@pytest.mark.parametrize("value", [PRIME, PRIME + 1, 2**264 - 1])
def test_a_committed_share_beyond_the_field_is_complained_about(
    value: int, plan: RoundPlan
) -> None:
    """C36: else the holder's honest answer would be refused at the end."""
    distort = only_for_the_victim(lambda share: value.to_bytes(33) + share[33:])
    assert complaint_about(plan, Dealing(sealed=distort, committed=distort)) == {COLLUDER}


def test_a_share_of_value_zero_or_p_minus_one_is_a_share(plan: RoundPlan) -> None:
    """C36. In scheme ckks too, but there it also has to lie on the polynomials (C42)."""
    refused_by_degree = {COLLUDER} if plan.scheme == "ckks" else set()
    for value in (0, PRIME - 1):
        distort = only_for_the_victim(lambda s, value=value: value.to_bytes(33) + s[33:])  # type: ignore[misc]
        dealing = Dealing(sealed=distort, committed=distort)
        assert complaint_about(plan, dealing) == refused_by_degree


def test_an_opening_of_another_commitment_is_complained_about(plan: RoundPlan) -> None:
    """C11: commitments bind kind, dealer and holder."""
    assert complaint_about(plan, Dealing(committed_holder=lambda holder: holder + 1)) == {COLLUDER}
    assert complaint_about(plan, Dealing(committed_kind=lambda kind: 1 - kind)) == {COLLUDER}
    assert complaint_about(plan, Dealing(committed_dealer=0)) == {COLLUDER}


def test_a_bundle_for_another_holder_round_or_dealer_does_not_open(plan: RoundPlan) -> None:
    """C11."""
    assert complaint_about(plan, Dealing(sealed_for=lambda holder: (holder + 1) % 5)) == {COLLUDER}
    assert complaint_about(plan, Dealing(sealed_in=bytes(32))) == {COLLUDER}
    assert complaint_about(plan, Dealing(sealed_by=3)) == {COLLUDER}


@pytest.mark.parametrize(
    "change",
    [
        lambda leaf: replace(leaf, sealed=leaf.sealed + b"\0"),
        lambda leaf: replace(leaf, sealed=b""),
        lambda leaf: replace(leaf, encapsulation=leaf.encapsulation[:-1]),
        lambda leaf: replace(leaf, commitments=leaf.commitments[:-1]),
        lambda leaf: replace(leaf, commitments=leaf.commitments * 2),
        lambda leaf: replace(leaf, pad_box=b"hidden"),
        lambda leaf: replace(leaf, pad_commitment=bytes(32)),
    ],
    ids=[
        "long",
        "empty",
        "encapsulation",
        "one commitment less",
        "twice as many",
        "pad box",
        "pad commitment",
    ],
)
def test_a_leaf_of_another_size_is_complained_about_although_signed(
    change: Callable[[Leaf], Leaf], plan: RoundPlan
) -> None:
    """C09."""
    c = Coalition(plan=plan).run_to(Step.SHARE_KEYS)
    leaves = [
        change(leaf) if leaf.holder == VICTIM else leaf for leaf in c.dealings[COLLUDER].leaves
    ]
    c.dealings[COLLUDER] = c.redealt(COLLUDER, leaves)
    assert complaint(c, c.delivery(VICTIM, c.everybody)) == {COLLUDER}


# ---------------------------------------------------------------------------- U2 and the view


@pytest.mark.parametrize("scheme", ["masking", "ckks"])
def test_a_victim_that_is_shown_another_u1_is_noticed_before_anybody_uploads(
    scheme: Scheme,
) -> None:
    """C08: the others dealt to another U1; C13: they acknowledge another digest."""
    c = Coalition(plan=cohort(7).plan(4, scheme=scheme)).run_to(Step.ADVERTISE_KEYS)
    true, shown = list(c.everybody), [0, 1, 2, 3, 4, 5]
    for index in true:
        c.tell(index, c.directory(shown if index == VICTIM else true))
    refused(c, c.delivery(VICTIM, shown), "holders are not U1")
    # Colluders who deal to the shown U1 do not help: too few of them for a U2.
    for index in (5, 6):
        body = replace(c.dealings[index].body.read(ShareKeysBody), holders=tuple(shown))
        c.dealings[index] = replace(c.dealings[index], body=c.sign(index, body))
    refused(c, c.delivery(VICTIM, shown), "holders are not U1")
    for index in (0, 2, 3, 4):
        refused(c, c.delivery(index, true), "holders are not U1", victim=index)


def test_an_acknowledgement_of_another_u1_is_refused(plan: RoundPlan) -> None:
    """C13."""
    c = Coalition(plan=plan).run_to(Step.ACKNOWLEDGE)
    other = replace(c.said["acknowledge"][COLLUDER].read(Acknowledge), directory_digest=bytes(32))
    view = swapped(c.agreed(c.everybody).acknowledgements, COLLUDER, c.sign(COLLUDER, other))
    refused(c, AgreedView(view), "was shown another U1")


def test_a_member_of_u2_that_dealt_nothing_is_refused(plan: RoundPlan) -> None:
    """C12."""
    c = Coalition(plan=plan).run_to(Step.ADVERTISE_KEYS)
    for index in c.everybody:
        c.tell(index, c.directory(c.everybody))
    for index in (0, 1, 2, 3):
        c.tell(index, c.delivery(index, [0, 1, 2, 3]))
    idle = c.sign(COLLUDER, c.said["acknowledge"][0].read(Acknowledge))
    refused(c, AgreedView((*c.agreed([0, 1, 2, 3]).acknowledgements, idle)), "dealt no shares")


@pytest.mark.parametrize(
    "changes",
    [{"refused": (2,)}, {"refused": (VICTIM,)}, {"dealings_digest": bytes(32)}],
    ids=["refused", "the victim refused", "other dealings"],
)
def test_a_u2_with_a_pair_that_is_not_acknowledged_is_refused(
    changes: dict[str, object], plan: RoundPlan
) -> None:
    """C14."""
    c = Coalition(plan=plan).run_to(Step.ACKNOWLEDGE)
    own = c.said["acknowledge"][COLLUDER].read(Acknowledge)
    other = c.sign(COLLUDER, replace(own, **changes))
    view = swapped(c.agreed(c.everybody).acknowledgements, COLLUDER, other)
    refused(c, AgreedView(view), "has not acknowledged every member")


def test_dealings_that_are_shown_differently_to_different_tenants_find_no_u2(
    plan: RoundPlan,
) -> None:
    """C14: a colluder signs two dealings, and every tenant is shown one of them."""
    c = Coalition(plan=plan).run_to(Step.SHARE_KEYS)
    first = c.dealings[COLLUDER]
    second = c.redealt(COLLUDER, first.leaves)
    body = with_zeros(first.body.read(ShareKeysBody))
    second = replace(second, body=c.sign(COLLUDER, body))
    for index in range(4):
        c.dealings[COLLUDER] = second if index == VICTIM else first
        c.tell(index, c.delivery(index, c.everybody))
    own = c.said["acknowledge"]
    for shown in (0, VICTIM):
        own[COLLUDER] = c.sign(COLLUDER, own[shown].read(Acknowledge))
        for index in range(4):
            refused(c, c.agreed(c.everybody), "has not acknowledged", victim=index)


def test_a_coordinator_that_withholds_a_leaf_cannot_keep_both_sides_of_the_pair(
    plan: RoundPlan,
) -> None:
    """C14: the victim's own complaint stands against it."""
    c = Coalition(plan=plan).run_to(Step.SHARE_KEYS)
    for index in c.everybody:
        delivery = c.delivery(index, c.everybody)
        if index == VICTIM:
            leaves = tuple(one for one in delivery.leaves if one.dealer != 2)
            delivery = replace(delivery, leaves=leaves)
        c.tell(index, delivery)
    for index in c.everybody:
        refused(c, c.agreed(c.everybody), "has not acknowledged", victim=index)
    for index in (0, VICTIM, 3):
        c.tell(index, c.agreed([0, 1, 3, 4]))
        assert c.tenant(index).ready


def test_a_u2_without_the_own_acknowledgement_is_proof_against_the_coordinator(
    plan: RoundPlan,
) -> None:
    """C15: missing."""
    c = Coalition(plan=plan).run_to(Step.ACKNOWLEDGE)
    refused(c, c.agreed([0, 2, 3, 4]), "own acknowledgement", FaultyCoordinator)


def test_another_own_acknowledgement_is_proof_against_the_coordinator(plan: RoundPlan) -> None:
    """C15: replaced by what a second process of the same identity signed."""
    c = Coalition(plan=plan).run_to(Step.ACKNOWLEDGE)
    own = c.said["acknowledge"][VICTIM].read(Acknowledge)
    other = c.sign(VICTIM, replace(own, refused=(9,)))
    view = swapped(c.agreed(c.everybody).acknowledgements, VICTIM, other)
    refused(c, AgreedView(view), "own acknowledgement", FaultyCoordinator)


def test_a_small_u2_is_refused(plan: RoundPlan) -> None:
    """C05."""
    c = Coalition(plan=plan).run_to(Step.ACKNOWLEDGE)
    refused(c, c.agreed([0, 1, 2]), "U2 has 3 members")


@pytest.mark.parametrize("scheme", ["masking", "ckks"])
def test_a_victim_that_is_shown_another_u2_signs_nothing_and_nobody_else_does(
    scheme: Scheme,
) -> None:
    """C18, the classic: decoys in the victim's U2 "drop" later, so that only its masks are left.

    Seven tenants, two of them (5, 6) with the coordinator. The victim agrees on {0, 1, 2, 5, 6},
    the others on {0, 1, 2, 3, 4, 5, 6}; 5 and 6 sign whatever is needed under both views.
    """
    c = Coalition(plan=cohort(7).plan(4, scheme=scheme)).run_to(Step.ACKNOWLEDGE)
    decoys, true = [0, 1, 2, 5, 6], list(c.everybody)
    for index in (0, 1, 2, 3, 4):
        c.tell(index, c.agreed(decoys if index == VICTIM else true))
        c.upload(index)
    views = {one.read(UploadCommitment).view for one in c.said["upload_commitment"].values()}
    assert len(views) == 2
    for index in (0, 1, 2, 3, 4):
        own = c.said["upload_commitment"][index].read(UploadCommitment)
        for colluder in (5, 6):
            c.said["upload_commitment"][colluder] = c.sign(colluder, own)
        refused(c, c.survivor_set([0, 1, 2, 5, 6]), "under another view", victim=index)
        if index != VICTIM:
            refused(c, c.survivor_set([0, 2, 3, 4, 5]), "own|view", victim=VICTIM)
    assert not c.said.get("consistency_check")
    assert not c.released()


# ---------------------------------------------------------------------------- U3


def commitment_with(c: Coalition, index: int, **changes: object) -> Signed:
    own = c.said["upload_commitment"][index].read(UploadCommitment)
    return c.sign(index, replace(own, **changes))


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"view": bytes(32)}, "under another view"), ({"length": 12}, "committed to 12 bytes")],
)
def test_a_survivor_under_another_view_or_length_is_refused(
    changes: dict[str, object], why: str, plan: RoundPlan
) -> None:
    """C18."""
    c = Coalition(plan=plan).run_to(Step.MASKED_INPUT)
    bad = commitment_with(c, COLLUDER, **changes)
    commitments = swapped(c.survivor_set(c.everybody).commitments, COLLUDER, bad)
    refused(c, SurvivorSet(commitments), why)


@pytest.mark.parametrize("scheme", ["masking", "ckks"])
def test_a_survivor_outside_u2_is_refused(scheme: Scheme) -> None:
    """C19: nobody holds its shares of this view; its masks would not be in anybody's sum."""
    c = Coalition(plan=cohort(7).plan(4, scheme=scheme)).run_to(
        Step.MASKED_INPUT, among=[0, 1, 2, 3, 4, 5]
    )
    own = c.said["upload_commitment"][0].read(UploadCommitment)
    c.said["upload_commitment"][6] = c.sign(6, own)
    refused(c, c.survivor_set(c.everybody), "outside U2")
    refused(c, c.survivor_set([0, 1, 2, 3, 6]), "outside U2")


def test_a_small_u3_is_refused(plan: RoundPlan) -> None:
    """C20: the sum over few is what a malicious coordinator wants."""
    c = Coalition(plan=plan).run_to(Step.MASKED_INPUT)
    for members in ([VICTIM], [VICTIM, COLLUDER], [0, VICTIM, COLLUDER]):
        refused(c, c.survivor_set(members), f"U3 has {len(members)} members")


@pytest.mark.parametrize("scheme", ["masking", "ckks"])
def test_a_u3_with_fewer_holders_than_the_threshold_is_refused(scheme: Scheme) -> None:
    """C21."""
    c = Coalition(plan=cohort(5).plan(4, share_threshold=5, scheme=scheme)).run_to(
        Step.MASKED_INPUT
    )
    refused(c, c.survivor_set([0, 1, 2, 3]), "U3 has 4 members and the plan needs 5")


def test_a_u3_without_the_own_upload_is_proof_against_the_coordinator(plan: RoundPlan) -> None:
    """C22: missing."""
    c = Coalition(plan=plan).run_to(Step.MASKED_INPUT)
    refused(c, c.survivor_set([0, 2, 3, 4]), "U3 lacks this participant", FaultyCoordinator)


def test_another_own_upload_is_proof_against_the_coordinator(plan: RoundPlan) -> None:
    """C22: another root under the own name."""
    c = Coalition(plan=plan).run_to(Step.MASKED_INPUT)
    bad = commitment_with(c, VICTIM, root=bytes(32))
    commitments = swapped(c.survivor_set(c.everybody).commitments, VICTIM, bad)
    refused(c, SurvivorSet(commitments), "another upload", FaultyCoordinator)


def test_an_unsigned_or_repeated_survivor_is_refused(plan: RoundPlan) -> None:
    """C03, C04."""
    c = Coalition(plan=plan).run_to(Step.MASKED_INPUT)
    honest = c.survivor_set(c.everybody).commitments
    unsigned = replace(honest[3], signature=bytes(64))
    refused(c, SurvivorSet(swapped(honest, 3, unsigned)), "not signed")
    refused(c, SurvivorSet((*honest, honest[4])), "unique and in index order")


def test_different_survivor_sets_shown_to_different_tenants_find_one_quorum_at_most(
    plan: RoundPlan,
) -> None:
    """C23, C32: whatever the split of the honest, and with a colluder that signs everything."""
    first, second = (0, 1, 2, 3, 4), (0, 1, 2, 3)
    for shown in product((first, second), repeat=4):
        c = Coalition(plan=plan).run_to(Step.MASKED_INPUT)
        for index, members in enumerate(shown):
            c.tell(index, c.survivor_set(members))
        answered = 0
        for members in (first, second):
            c.said["consistency_check"][COLLUDER] = c.sign(COLLUDER, survivors_of(c, members))
            signers = [i for i in members if i == COLLUDER or shown[i] == members]
            if len(signers) < c.plan.quorum:
                for index in range(4):
                    again = Unmask.LABEL in c.said and index in c.said[Unmask.LABEL]
                    error = FaultyCoordinator if again else ProtocolError
                    refused(c, c.quorum(signers), "below the quorum|U3|second", error, index)
                continue
            answered += 1
            for index in signers:
                if index != COLLUDER:
                    c.tell(index, c.quorum(signers))
        assert answered <= 1
        kinds = {(a.dealer, a.kind) for body in c.released().values() for a in body.answers}
        assert len({dealer for dealer, _ in kinds}) == len(kinds)


def listed(c: Coalition, members: Iterable[int]) -> tuple[Survivor, ...]:
    commitments = c.said["upload_commitment"]
    return tuple(Survivor(i, commitments[i].read(UploadCommitment).root) for i in members)


def signed_over(c: Coalition, members: tuple[Survivor, ...]) -> Survivors:
    """What a signature over these says."""
    view = c.said["upload_commitment"][VICTIM].read(UploadCommitment).view
    return Agreement.over(c.tenant(VICTIM).running._me.setting, view, members).body


def survivors_of(c: Coalition, members: Iterable[int]) -> Survivors:
    return signed_over(c, listed(c, members))


# ---------------------------------------------------------------------------- the quorum


def confirmed(plan: RoundPlan) -> tuple[Coalition, list[int]]:
    """Everybody has signed U3, which lacks tenant 0."""
    chosen = [1, 2, 3, 4]
    c = Coalition(plan=plan).run_to(Step.MASKED_INPUT)
    for index in chosen:
        c.tell(index, c.survivor_set(chosen))
    return c, chosen


def test_fewer_signatures_than_the_quorum_open_nothing(plan: RoundPlan) -> None:
    """C23."""
    c, members = confirmed(plan)
    refused(c, c.quorum(members[:3]), "below the quorum of 4")
    refused(c, Quorum(()), "below the quorum")


def test_a_signer_outside_u3_is_refused(plan: RoundPlan) -> None:
    """C23."""
    c, members = confirmed(plan)
    c.said["consistency_check"][0] = c.sign(0, survivors_of(c, members))
    refused(c, c.quorum([0, *members]), "signer is outside U3")
    refused(c, c.quorum([0, 1, 2, 3]), "signer is outside U3")


Members = tuple[Survivor, ...]


@pytest.mark.parametrize(
    "change",
    [
        lambda members: members[:-1],
        lambda members: (Survivor(0, bytes(32)), *members),
        lambda members: (replace(members[0], root=bytes(32)), *members[1:]),
        lambda members: members[::-1],
    ],
    ids=["fewer", "more", "another root", "another order"],
)
def test_a_signature_over_another_u3_is_refused(
    change: Callable[[Members], Members], plan: RoundPlan
) -> None:
    """C23."""
    c, members = confirmed(plan)
    other = c.sign(COLLUDER, signed_over(c, change(listed(c, members))))
    signatures = swapped(c.quorum(members).signatures, COLLUDER, other)
    refused(c, Quorum(signatures), "over another U3")


@pytest.mark.parametrize("field", ["view", "members_digest"])
def test_a_signature_over_nothing_known_is_refused(field: str, plan: RoundPlan) -> None:
    """C23."""
    c, members = confirmed(plan)
    other = c.sign(COLLUDER, replace(survivors_of(c, members), **{field: bytes(32)}))
    signatures = swapped(c.quorum(members).signatures, COLLUDER, other)
    refused(c, Quorum(signatures), "over another U3")


def test_one_signature_does_not_count_twice_and_unsigned_ones_do_not_count(plan: RoundPlan) -> None:
    """C03, C04."""
    c, members = confirmed(plan)
    honest = c.quorum(members).signatures
    refused(c, Quorum((*honest[:3], honest[2])), "unique and in index order")
    forged = replace(honest[3], signature=honest[2].signature)
    refused(c, Quorum((*honest[:3], forged)), "not signed")


def test_one_kind_of_share_leaves_for_each_dealer_by_the_own_view(plan: RoundPlan) -> None:
    """C24: of the self mask for survivors, of the mask key for the dropout; or one sum alone."""
    c, members = confirmed(plan)
    for index in members:
        c.tell(index, c.quorum(members))
    for body in c.released().values():
        if plan.scheme == "ckks":
            assert not body.answers
            assert len(body.key_sum) == 2048 * 31 // 8
            continue
        assert [(a.dealer, a.kind) for a in body.answers] == [
            (0, 1),
            (1, 0),
            (2, 0),
            (3, 0),
            (4, 0),
        ]


def test_after_an_answer_the_other_kind_is_never_released(plan: RoundPlan) -> None:
    """C32, C35: not for another U3, not for another quorum, not from a restored state."""
    c, members = confirmed(plan)
    first, old_state = c.quorum(members), c.tenant(VICTIM).running.export(SEAL_KEY)
    c.tell(VICTIM, first)
    answer, everybody = c.said["unmask"][VICTIM], tuple(c.everybody)
    for index in everybody:
        c.said["consistency_check"][index] = c.sign(index, survivors_of(c, everybody))
    for request in (c.survivor_set(everybody), c.quorum(everybody)):
        with pytest.raises(ProtocolError):
            c.tell(VICTIM, request)
    c.tell(VICTIM, first)
    assert c.said["unmask"][VICTIM] == answer
    tenant = c.tenant(VICTIM)
    with pytest.raises(StaleState):
        Participant.restore(
            old_state, SEAL_KEY, plan=c.plan, identity=tenant.identity, roster=tenant.roster,
            policy=tenant.policy, ledger=tenant.ledger,
        )  # fmt: skip


def test_a_second_survivor_set_is_refused_even_before_the_answer(plan: RoundPlan) -> None:
    """C35: it signs one U3 per round."""
    c, _ = confirmed(plan)
    refused(c, c.survivor_set(c.everybody), "second, different SurvivorSet", FaultyCoordinator)


# ---------------------------------------------------------------------------- order and replay

DOWNLINKS: dict[str, Callable[[Coalition], Downlink]] = {
    "U1": lambda c: c.directory(c.everybody),
    "delivery": lambda c: c.delivery(VICTIM, c.everybody),
    "U2": lambda c: c.agreed(c.everybody),
    "U3": lambda c: c.survivor_set(c.everybody),
    "quorum": lambda c: c.quorum(c.everybody),
}


@pytest.mark.parametrize("kind", DOWNLINKS)
def test_every_downlink_of_another_round_is_refused(kind: str, plan: RoundPlan) -> None:
    """C03: the context is in every signature."""
    other = Coalition(plan=cohort(5).plan(4, round_number=2)).run_to(Step.CONSISTENCY_CHECK)
    stale = DOWNLINKS[kind](other)
    step = Step(list(DOWNLINKS).index(kind))
    c = Coalition(plan=plan).run_to(step)
    error = FaultyCoordinator if kind == "U2" else ProtocolError  # the own words are not in it
    refused(c, stale, "own acknowledgement" if kind == "U2" else "not signed", error)


@pytest.mark.parametrize("kind", DOWNLINKS)
def test_every_downlink_out_of_its_step_is_refused_or_answered_as_before(
    kind: str, plan: RoundPlan
) -> None:
    """C35: no step is skipped, none is taken twice."""
    whole = Coalition(plan=plan).run_to(Step.CONSISTENCY_CHECK)
    due = Step(list(DOWNLINKS).index(kind))
    for step in list(Step)[:-1]:
        c = Coalition(plan=plan).run_to(step)
        if step < due:
            refused(c, DOWNLINKS[kind](whole), "does not belong")
        elif step > due:
            said = {label: dict(of) for label, of in c.said.items()}
            c.tell(VICTIM, DOWNLINKS[kind](c))
            assert c.said == said


def test_a_participants_own_kind_of_message_is_refused_by_participants(plan: RoundPlan) -> None:
    c = Coalition(plan=plan).run_to(Step.SHARE_KEYS)
    for message in (c.said["advertise_keys"][0], c.dealings[0]):
        with pytest.raises(MalformedMessage, match="not for participants"):
            c.tenant(VICTIM).receive(encode(message))


# ---------------------------------------------------------------------------- in a whole round


class ShowsAVictimFewerKeys(LyingAggregator):
    def lie(self, recipient: int, message: Downlink) -> Downlink:
        if isinstance(message, KeyDirectory) and recipient == VICTIM:
            return KeyDirectory(message.keys[:-1])
        return message


class ShowsAVictimAnotherU2(LyingAggregator):
    def lie(self, recipient: int, message: Downlink) -> Downlink:
        if isinstance(message, AgreedView) and recipient == VICTIM:
            return AgreedView(message.acknowledgements[:-1])
        return message


class ShowsAVictimAnotherU3(LyingAggregator):
    def lie(self, recipient: int, message: Downlink) -> Downlink:
        if isinstance(message, SurvivorSet) and recipient == VICTIM:
            return SurvivorSet(message.commitments[:-1])
        return message


class WithholdsALeaf(LyingAggregator):
    def lie(self, recipient: int, message: Downlink) -> Downlink:
        if isinstance(message, ShareDelivery) and recipient == VICTIM:
            return replace(message, leaves=message.leaves[1:])
        return message


class SendsNonsense(LyingAggregator):
    def lie(self, recipient: int, message: Downlink) -> Downlink | bytes:
        return b"\x01nonsense" if recipient == VICTIM else message


@pytest.mark.parametrize(
    "liar",
    [
        ShowsAVictimFewerKeys, ShowsAVictimAnotherU2, ShowsAVictimAnotherU3, WithholdsALeaf,
        SendsNonsense,
    ],
)  # fmt: skip
def test_lies_to_one_victim_cost_at_most_its_place(
    liar: type[LyingAggregator], plan: RoundPlan
) -> None:
    network = make_round(5, plan=plan, aggregator=liar)
    outcome = network.run()
    check_invariants(network)
    nobody_honest_is_blamed(network, honest_coordinator=False)
    assert outcome.result is not None
    victims = {one.envelope.tenant for one in outcome.refused}
    assert victims == (set() if liar is WithholdsALeaf else {"t001"})
    answers = [e for e in network.sent if e.label == Unmask.LABEL and e.tenant == "t001"]
    assert not answers or liar is WithholdsALeaf


class ShowsEverybodyAnotherU3(LyingAggregator):
    """Each tenant is shown a U3 without one other tenant."""

    def lie(self, recipient: int, message: Downlink) -> Downlink:
        if isinstance(message, SurvivorSet):
            gone = (recipient + 1) % self.plan.n
            return SurvivorSet(tuple(c for c in message.commitments if c.sender != gone))
        return message


def test_a_different_u3_for_everybody_opens_nothing(plan: RoundPlan) -> None:
    """C23."""
    network = make_round(5, plan=plan, aggregator=ShowsEverybodyAnotherU3)
    assert network.run().result is None
    check_invariants(network)
    assert not [e for e in network.sent if e.label == Unmask.LABEL]


def test_a_sum_over_f_colluders_and_one_victim_is_never_opened() -> None:
    """C20, C29: every plan that can exist leaves two honest tenants in U3."""
    for n in range(3, 40):
        for f, scheme in product(range(n), SCHEMES):
            try:
                plan = cohort(n).plan(1, max_colluders=f, min_survivors=f + 2, scheme=scheme)
            except ValueError:
                assert n <= 3 * f + 3 or f + 2 > n or f > (n - 1) // 3
                continue
            assert plan.least - f >= 2
            assert plan.share_threshold > f


def test_share_keys_of_a_round_reveal_nothing_to_fewer_than_t_holders(plan: RoundPlan) -> None:
    """The sealed bundles of everybody else are all that a coordinator has of the honest."""
    c = Coalition(plan=plan).run_to(Step.SHARE_KEYS)
    dealt = c.dealings[VICTIM]
    assert isinstance(dealt, ShareKeys)
    sealed = [leaf.sealed for leaf in dealt.leaves if leaf.holder != VICTIM]
    assert len({leaf.encapsulation for leaf in dealt.leaves}) == 5
    assert len(set(sealed)) == 4
