"""The checks that both sides share, each on its own: what is just allowed, and what just is not."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import pytest

from secagg import merkle, suite
from secagg.checks import (
    Agreement,
    Directory,
    Setting,
    View,
    bundle_bytes,
    check_answers,
    check_commitment,
    check_dealing,
    check_delivery,
    check_leaf,
    check_path,
    dealings_digest,
    leaf_digest,
    read_agreed_view,
    read_quorum,
    require_holders,
    require_size,
    secret_commitment,
    share_commitment,
    verify,
    verify_all,
    view_digest,
)
from secagg.edges import Edges
from secagg.errors import MalformedMessage, ProtocolError
from secagg.messages import (
    Acknowledge,
    AdvertiseKeys,
    AgreedView,
    Answer,
    DeliveredLeaf,
    KeyDirectory,
    Leaf,
    LeafOutline,
    Quorum,
    ShareDelivery,
    ShareKeysBody,
    Signed,
    Survivor,
    Survivors,
    Unmask,
    UploadCommitment,
)
from secagg.plan import SUITES, RoundPlan, Suite
from secagg.secret import ChannelSeed, MaskSeed
from secagg.suite import TAG_BYTES, encapsulation_bytes, pad_box_bytes
from secagg.testing import SeededRandomness, cohort

MEMBERS = cohort(20)
SPARSE = MEMBERS.plan(4, max_colluders=2, neighbours=12)  # t = 8
COMPLETE = MEMBERS.plan(4)
ROOT = bytes(32)
KEYS = AdvertiseKeys(ROOT, ROOT, b"", b"")


def directory(*members: int) -> Directory:
    return Directory(dict.fromkeys(members, KEYS), ROOT)


def body(*holders: int) -> ShareKeysBody:
    return ShareKeysBody(holders, ROOT, ROOT)


EVERYBODY = directory(*range(20))
TWELVE = tuple(range(1, 13))


# ------------------------------------------------------------------ C08, C09


def test_a_sparse_dealing_is_to_the_k_others_that_were_drawn() -> None:
    """C08."""
    check_dealing(SPARSE, EVERYBODY, 0, body(*TWELVE))
    check_dealing(SPARSE, EVERYBODY, 19, body(*TWELVE))


@pytest.mark.parametrize(
    ("dealer", "holders"),
    [
        (0, (*TWELVE[1:], 1)),  # out of order
        (0, (1, *TWELVE[:-1])),  # twice
        (1, TWELVE),  # itself
        (0, (*TWELVE[:-1], 20)),  # not in U1
        (0, (*TWELVE, 13)),  # more than k
        (0, TWELVE[:-1]),  # fewer, and nobody is missing
    ],
)
def test_a_sparse_dealing_to_anybody_else_is_refused(dealer: int, holders: tuple[int, ...]) -> None:
    """C08."""
    with pytest.raises(ProtocolError, match=f"participant {dealer} does not deal to 12 to 12"):
        check_dealing(SPARSE, EVERYBODY, dealer, body(*holders))


def test_no_more_of_the_drawn_may_be_missing_than_are_missing_in_u1_nor_than_the_threshold() -> (
    None
):
    """C08."""
    two_left = directory(*range(18))
    check_dealing(SPARSE, two_left, 0, body(*TWELVE[:10]))
    with pytest.raises(ProtocolError, match="10 to 12 others"):
        check_dealing(SPARSE, two_left, 0, body(*TWELVE[:9]))
    six_left = directory(*range(14))
    check_dealing(SPARSE, six_left, 0, body(*TWELVE[:8]))
    with pytest.raises(ProtocolError, match="8 to 12 others"):
        check_dealing(SPARSE, six_left, 0, body(*TWELVE[:7]))
    with pytest.raises(ProtocolError, match="does not deal"):
        check_dealing(SPARSE, directory(0, *TWELVE[:11]), 0, body(*TWELVE))
    check_dealing(SPARSE, directory(0, *TWELVE), 0, body(*TWELVE))


def test_a_dealer_is_in_u1_and_deals_to_all_of_it_on_the_complete_graph() -> None:
    """C08."""
    few = directory(0, 2, 3)
    check_dealing(COMPLETE, few, 2, body(0, 2, 3))
    with pytest.raises(ProtocolError, match="a dealer is outside U1"):
        check_dealing(COMPLETE, few, 1, body(0, 2, 3))
    for holders in ((0, 2), (0, 3, 2), (0, 2, 3, 4)):
        with pytest.raises(ProtocolError, match="the holders are not U1"):
            check_dealing(COMPLETE, few, 2, body(*holders))


def delivered(*dealers: int) -> ShareDelivery:
    leaf = Leaf(0, b"", b"", ())
    return ShareDelivery((), tuple(DeliveredLeaf(dealer, leaf, ()) for dealer in dealers))


def test_delivered_leaves_are_of_dealers_once_and_in_order() -> None:
    """C08."""
    few = directory(0, 2, 3)
    bodies = {dealer: body(0, 2, 3) for dealer in (2, 3)}
    for dealers in ((), (2,), (3,), (2, 3)):
        check_delivery(COMPLETE, few, bodies, delivered(*dealers))
    for dealers in ((3, 2), (2, 2), (0, 2), (2, 3, 4)):
        with pytest.raises(MalformedMessage, match="not unique and in order"):
            check_delivery(COMPLETE, few, bodies, delivered(*dealers))
    with pytest.raises(ProtocolError, match="holders are not U1"):
        check_delivery(COMPLETE, few, {2: body(0, 2)}, delivered(2))


def honest_leaf(plan: RoundPlan, pads: bool, own: bool = False) -> Leaf:
    box = pad_box_bytes(plan.suite) if pads else 0
    return Leaf(
        holder=2 if own else 5,
        encapsulation=b"" if own else bytes(encapsulation_bytes(plan.suite)),
        sealed=b"" if own else bytes(bundle_bytes(plan) + TAG_BYTES),
        commitments=(ROOT, ROOT),
        pad_box=bytes(box),
        pad_commitment=bytes(32 if pads else 0),
    )


CLASSIC = MEMBERS.plan(4, suite="x25519")
GROWN: dict[str, Callable[[Leaf], Leaf]] = {
    "sealed": lambda leaf: replace(leaf, sealed=leaf.sealed + b"x"),
    "encapsulation": lambda leaf: replace(leaf, encapsulation=leaf.encapsulation + b"x"),
    "commitments": lambda leaf: replace(leaf, commitments=(*leaf.commitments, ROOT)),
    "a commitment less": lambda leaf: replace(leaf, commitments=leaf.commitments[:1]),
    "pad_box": lambda leaf: replace(leaf, pad_box=leaf.pad_box + b"x"),
    "pad_commitment": lambda leaf: replace(leaf, pad_commitment=leaf.pad_commitment + b"x"),
}


@pytest.mark.parametrize("grown", GROWN)
def test_a_leaf_has_its_one_size(grown: str) -> None:
    """C09."""
    for plan, dealer, pads in (
        (COMPLETE, 2, True), (COMPLETE, 7, False), (CLASSIC, 2, False), (SPARSE, 7, True),
    ):  # fmt: skip
        leaf = honest_leaf(plan, pads)
        check_leaf(plan, dealer, leaf)
        with pytest.raises(MalformedMessage, match="another size"):
            check_leaf(plan, dealer, GROWN[grown](leaf))
    own = honest_leaf(COMPLETE, False, own=True)
    check_leaf(COMPLETE, 2, own)
    with pytest.raises(MalformedMessage, match="another size"):
        check_leaf(COMPLETE, 2, GROWN[grown](own))


def test_a_bundle_holds_two_shares_with_their_openings() -> None:
    for plan in (COMPLETE, CLASSIC, SPARSE):
        assert bundle_bytes(plan) == 2 * (33 + 32)


@pytest.mark.parametrize("size", [0, 31, 33])
@pytest.mark.parametrize("plan", [COMPLETE, SPARSE, CLASSIC], ids=["complete", "sparse", "classic"])
def test_a_dealing_commits_to_a_secret_in_one_digest(plan: RoundPlan, size: int) -> None:
    """C09: before its holders are looked at."""
    spoilt = replace(body(), secret_commitment=bytes(size))
    with pytest.raises(MalformedMessage, match="commitment has another size") as caught:
        check_dealing(plan, EVERYBODY, 0, spoilt)
    assert caught.value.step is ShareKeysBody.STEP


def test_a_leaf_hangs_at_its_holders_place_under_its_dealers_root() -> None:
    """C09."""
    leaves = {holder: replace(honest_leaf(COMPLETE, True), holder=holder) for holder in (3, 5, 8)}
    hashes = [leaf_digest(leaf.outline) for leaf in leaves.values()]
    signed = ShareKeysBody((3, 5, 8), ROOT, merkle.root(hashes))
    for place, (holder, leaf) in enumerate(leaves.items()):
        path = merkle.path(hashes, place)
        check_path(signed, leaf, path, holder)
        with pytest.raises(MalformedMessage, match="a leaf of another holder"):
            check_path(signed, leaf, path, 4)
        with pytest.raises(MalformedMessage, match="a leaf of another holder"):
            check_path(signed, replace(leaf, holder=4), path, 4)
        with pytest.raises(MalformedMessage, match="a leaf of another holder"):
            check_path(signed, leaf, path, 5 if holder == 3 else 3)
        with pytest.raises(MalformedMessage, match="does not hang under its root"):
            check_path(signed, replace(leaf, sealed=b"other"), path, holder)
        with pytest.raises(MalformedMessage, match="does not hang under its root"):
            check_path(replace(signed, holders=(3, 5, 8, 9)), leaf, path[:-1], holder)


# ------------------------------------------------------------------ C02 to C06


def advertised(suite_name: Suite, draw: str) -> AdvertiseKeys:
    randomness = SeededRandomness(draw)
    return suite.advertise(suite_name, ChannelSeed.draw(randomness), MaskSeed.draw(randomness))


def test_no_key_stands_in_two_places_of_one_message() -> None:
    """C06: neither the X25519 key nor the KEM key of channel and mask may be the same."""
    hybrid, classic = advertised("x25519-mlkem768", "keys"), advertised("x25519", "keys")
    suite.check_public_keys("x25519-mlkem768", hybrid)
    suite.check_public_keys("x25519", classic)
    for name, spoilt in (
        ("x25519-mlkem768", replace(hybrid, mask_key=hybrid.channel_key)),
        ("x25519-mlkem768", replace(hybrid, mask_kem=hybrid.channel_kem)),
        ("x25519", replace(classic, mask_key=classic.channel_key)),
    ):
        with pytest.raises(MalformedMessage, match="channel key and mask key are the same"):
            suite.check_public_keys(name, spoilt)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SUITES)
def test_keys_are_points_of_32_bytes(name: Suite) -> None:
    """C06: the mask key's length is not its encoding's; one of none is of no scheme with masks."""
    keys = advertised(name, "keys")
    for spoilt in (b"", keys.mask_key[:-1], keys.mask_key + b"\0"):
        with pytest.raises(MalformedMessage, match="the mask key is no canonical X25519 encoding"):
            suite.check_public_keys(name, replace(keys, mask_key=spoilt))
    for spoilt in (b"", keys.channel_key[:-1], keys.channel_key + b"\0"):
        with pytest.raises(MalformedMessage, match="the channel key is no canonical X25519"):
            suite.check_public_keys(name, replace(keys, channel_key=spoilt))


@pytest.mark.parametrize("name", SUITES)
def test_a_scheme_without_masks_has_no_mask_keys(name: Suite) -> None:
    """C06: and its channel key is checked as any."""
    keys = advertised(name, "keys")
    alone = suite.advertise(name, ChannelSeed(bytes(32)), None)
    assert (alone.mask_key, alone.mask_kem) == (b"", b"")
    suite.check_public_keys(name, alone, masks=False)
    for spoilt in (
        replace(alone, mask_key=keys.mask_key), replace(alone, mask_kem=b"kem"),
        replace(alone, mask_key=b"\0"),
    ):  # fmt: skip
        with pytest.raises(MalformedMessage, match="the scheme has no mask keys"):
            suite.check_public_keys(name, spoilt, masks=False)
    with pytest.raises(MalformedMessage, match="the channel key is a point of low order"):
        suite.check_public_keys(name, replace(alone, channel_key=bytes(32)), masks=False)


def test_a_pad_box_of_another_length_or_suite_is_refused_before_it_is_opened() -> None:
    """C39."""
    keys = advertised("x25519-mlkem768", "box")
    mask = suite.private_keys("x25519-mlkem768", MaskSeed(bytes(32)))
    one, other = suite.Peer(0, keys), suite.Peer(1, keys)
    size = pad_box_bytes("x25519-mlkem768")
    for box in (bytes(size - 1), bytes(size + 1), b""):
        with pytest.raises(MalformedMessage, match=f"a pad box of {len(box)} bytes"):
            suite.open_pad(ROOT, one, other, mask, box, ROOT)
    classic = suite.private_keys("x25519", MaskSeed(bytes(32)))
    with pytest.raises(MalformedMessage, match=f"a pad box of {size} bytes"):
        suite.open_pad(ROOT, one, other, classic, bytes(size), ROOT)


def test_a_signature_is_verified_once_and_remembered_by_the_whole_record() -> None:
    """C02, C03."""
    setting = Setting(COMPLETE, MEMBERS.roster)
    said = Survivors(ROOT, ROOT)
    signed = Signed.create(COMPLETE, MEMBERS.identities[3], said)
    assert verify(setting, signed, Survivors) == said
    assert setting.verified == {signed.digest}
    for forged in (replace(signed, signature=bytes(64)), replace(signed, sender=4)):
        with pytest.raises(ProtocolError, match="is not signed by the key"):
            verify(setting, forged, Survivors)
    for stranger in (20, 21):
        with pytest.raises(MalformedMessage, match=f"sender {stranger} is outside the cohort"):
            verify(setting, replace(signed, sender=stranger), Survivors)
    with pytest.raises(MalformedMessage, match="expected acknowledge"):
        verify(setting, signed, Acknowledge)
    assert setting.verified == {signed.digest}


def test_senders_of_a_set_rise_strictly() -> None:
    """C04."""
    setting = Setting(COMPLETE, MEMBERS.roster)
    said = Survivors(ROOT, ROOT)
    signed = [Signed.create(COMPLETE, MEMBERS.identities[index], said) for index in range(3)]
    assert list(verify_all(setting, signed, Survivors)) == [0, 1, 2]
    assert verify_all(setting, [], Survivors) == {}
    for order in ([0, 0], [1, 0], [0, 2, 1], [0, 1, 1]):
        with pytest.raises(MalformedMessage, match="not unique and in index order"):
            verify_all(setting, [signed[index] for index in order], Survivors)


def test_a_set_has_at_least_the_plans_least() -> None:
    """C05."""
    setting = Setting(COMPLETE, MEMBERS.roster)
    require_size(setting, COMPLETE.least, Acknowledge, "U2")
    with pytest.raises(ProtocolError, match=f"U2 has {COMPLETE.least - 1} members") as caught:
        require_size(setting, COMPLETE.least - 1, Acknowledge, "U2")
    assert caught.value.step is Acknowledge.STEP


# ------------------------------------------------------------------ C12 to C14

SETTING = Setting(SPARSE, MEMBERS.roster)
U1 = KeyDirectory(
    tuple(Signed.create(SPARSE, one, KEYS) for one in MEMBERS.identities[: SPARSE.least + 2])
)
HOLDERS = {
    dealer: tuple(sorted({*range(13)} - {dealer}))[:12] for dealer in range(SPARSE.least + 2)
}
BODIES = {
    dealer: Signed.create(SPARSE, MEMBERS.identities[dealer], body(*holders))
    for dealer, holders in HOLDERS.items()
}


def acknowledged(
    members: Iterable[int], bodies: Mapping[int, Signed] = BODIES, **changed: Acknowledge
) -> AgreedView:
    """What these members say; `changed` has what one of them says instead, by `t<index>`."""
    honest = Acknowledge(b"u" * 32, dealings_digest(SETTING, bodies.values()), ())
    return AgreedView(
        tuple(
            Signed.create(SPARSE, MEMBERS.identities[index], changed.get(f"t{index}", honest))
            for index in members
        )
    )


def read(agreed: AgreedView, bodies: Mapping[int, Signed] = BODIES) -> View:
    return read_agreed_view(SETTING, U1, b"u" * 32, bodies, agreed)


def test_an_agreed_view_has_its_members_and_the_holders_of_their_shares() -> None:
    members = tuple(range(SPARSE.least))
    view = read(acknowledged(members))
    assert view.members == members
    assert view.edges.holders == {one: frozenset(HOLDERS[one]) for one in members}
    assert view.digest == view_digest(SETTING, U1, BODIES, acknowledged(members))


def test_a_small_u2_is_refused_by_its_size() -> None:
    """C05: although everybody in it has enough holders."""
    with pytest.raises(ProtocolError, match=f"U2 has {SPARSE.least - 1} members"):
        read(acknowledged(range(SPARSE.least - 1)))


def test_members_of_u2_dealt_shares_and_have_enough_holders_among_each_other() -> None:
    """C12, C21."""
    few = {dealer: one for dealer, one in BODIES.items() if dealer != 1}
    with pytest.raises(ProtocolError, match="a member that dealt no shares"):
        read(acknowledged(range(SPARSE.least), few), few)
    lonely = dict(BODIES)
    lonely[0] = Signed.create(SPARSE, MEMBERS.identities[0], body(*range(5, 17)))
    assert read(acknowledged(range(SPARSE.least + 1), lonely), lonely)
    with pytest.raises(ProtocolError, match="has 7 holders among those who are left"):
        read(acknowledged(range(SPARSE.least), lonely), lonely)


def test_members_of_u2_were_shown_one_u1_and_one_set_of_dealings_and_refuse_no_member() -> None:
    """C13, C14."""
    dealings = dealings_digest(SETTING, BODIES.values())
    good = Acknowledge(b"u" * 32, dealings, ())
    members = range(SPARSE.least)
    outside = SPARSE.least + 1
    assert read(acknowledged(members, t3=replace(good, refused=(outside,))))
    with pytest.raises(ProtocolError, match="participant 3 was shown another U1"):
        read(acknowledged(members, t3=replace(good, directory_digest=b"v" * 32)))
    for other in (
        replace(good, dealings_digest=ROOT),
        replace(good, refused=(2,)),
        replace(good, refused=(2, outside)),
    ):
        with pytest.raises(ProtocolError, match="participant 3 has not acknowledged every member"):
            read(acknowledged(members, t3=other))


def test_the_view_covers_u1_the_dealings_of_u2_and_the_acknowledgements() -> None:
    members = range(SPARSE.least)
    agreed = acknowledged(members)
    other = Setting(replace(SPARSE, round_number=2), MEMBERS.roster)
    forged = BODIES | {1: replace(BODIES[1], signature=bytes(64))}
    absent = BODIES | {SPARSE.least: replace(BODIES[SPARSE.least], signature=bytes(64))}
    digests = [
        view_digest(SETTING, U1, BODIES, agreed),
        view_digest(other, U1, BODIES, agreed),
        view_digest(SETTING, KeyDirectory(U1.keys[:-1]), BODIES, agreed),
        view_digest(SETTING, U1, forged, agreed),
        view_digest(SETTING, U1, BODIES, acknowledged(range(SPARSE.least + 1))),
        view_digest(SETTING, U1, BODIES, acknowledged(members, t0=Acknowledge(ROOT, ROOT, ()))),
    ]
    assert len(set(digests)) == len(digests)
    assert view_digest(SETTING, U1, absent, agreed) == digests[0]


# ------------------------------------------------------------------ C18 to C25


def test_every_member_has_t_holders_among_those_who_are_left() -> None:
    """C21."""
    setting = Setting(SPARSE, MEMBERS.roster)
    graph = Edges({0: frozenset(TWELVE), 1: frozenset(range(2, 14))})
    require_holders(setting, graph, frozenset(range(2, 10)), Acknowledge)
    with pytest.raises(ProtocolError, match="has 7 holders among those who are left, and 8"):
        require_holders(setting, graph, frozenset(range(2, 9)), Acknowledge)


def test_an_upload_commitment_names_the_view_and_the_length() -> None:
    """C18."""
    good = UploadCommitment(b"v" * 32, ROOT, 99)
    check_commitment(b"v" * 32, good, 99, 4)
    with pytest.raises(ProtocolError, match="participant 4 uploaded under another view"):
        check_commitment(b"w" * 32, good, 99, 4)
    for size in (98, 100):
        with pytest.raises(ProtocolError, match=f"committed to 99 bytes instead of {size}"):
            check_commitment(b"v" * 32, good, size, 4)


def test_q_members_of_u3_sign_this_very_u3() -> None:
    """C23."""
    setting = Setting(COMPLETE, MEMBERS.roster)
    members = tuple(Survivor(index, bytes([index]) * 32) for index in range(15))
    agreement = Agreement.over(setting, ROOT, members)
    assert agreement.indices == frozenset(range(15))

    def quorum(*signers: int, said: Survivors = agreement.body) -> Quorum:
        return Quorum(
            tuple(Signed.create(COMPLETE, MEMBERS.identities[index], said) for index in signers)
        )

    q = COMPLETE.quorum
    assert read_quorum(setting, agreement, quorum(*range(q))) == tuple(range(q))
    assert read_quorum(setting, agreement, quorum(*range(15))) == tuple(range(15))
    with pytest.raises(ProtocolError, match=f"{q - 1} signatures are below the quorum of {q}"):
        read_quorum(setting, agreement, quorum(*range(q - 1)))
    with pytest.raises(ProtocolError, match="a signer is outside U3"):
        read_quorum(setting, agreement, quorum(*range(q), 15))
    other = Survivors(ROOT, bytes(31) + b"x")
    mixed = Quorum(quorum(*range(q)).signatures + quorum(q, said=other).signatures)
    with pytest.raises(ProtocolError, match="over another U3"):
        read_quorum(setting, agreement, mixed)


def test_what_is_signed_about_u3_covers_view_members_order_and_roots() -> None:
    setting = Setting(COMPLETE, MEMBERS.roster)
    members = tuple(Survivor(index, bytes([index]) * 32) for index in range(3))
    said = {
        Agreement.over(setting, view, one).body
        for view, one in (
            (ROOT, members),
            (b"v" * 32, members),
            (ROOT, members[:2]),
            (ROOT, members[::-1]),
            (ROOT, (replace(members[0], root=ROOT[:-1] + b"x"), *members[1:])),
        )
    }
    assert len(said) == 5


def test_an_answer_has_the_committed_share_of_the_right_kind_for_each_dealer() -> None:
    """C24, C25."""
    setting, context = Setting(COMPLETE, MEMBERS.roster), COMPLETE.context
    view = View(b"v" * 32, Edges({0: frozenset({5, 6}), 1: frozenset({5}), 2: frozenset({6})}))
    survivors = Agreement.over(setting, view.digest, (Survivor(0, ROOT), Survivor(5, ROOT)))
    share, opening = bytes(33), bytes(32)
    outlines = {
        dealer: {
            holder: LeafOutline(
                holder,
                tuple(
                    share_commitment(context, kind, dealer, holder, share, opening)
                    for kind in (0, 1)
                ),
                b"",
                ROOT,
                b"",
            )
            for holder in holders
        }
        for dealer, holders in view.edges.holders.items()
    }
    answers = (Answer(0, 0, share, opening), Answer(1, 1, share, opening))
    good = Unmask(view.digest, answers)
    check_answers(setting, view, survivors, outlines, 5, good)
    for wrong in (
        replace(good, view=ROOT),
        replace(good, answers=answers[:1]),
        replace(good, answers=answers[::-1]),
        replace(good, answers=(*answers, Answer(2, 1, share, opening))),
        replace(good, answers=(replace(answers[0], kind=1), answers[1])),
    ):
        with pytest.raises(ProtocolError, match="other dealers or kinds than U3 asks for"):
            check_answers(setting, view, survivors, outlines, 5, wrong)
    for given in (answers, ()):
        wrong = replace(good, answers=given, key_sum=share)
        with pytest.raises(ProtocolError, match="it answered with a sum of shares") as caught:
            check_answers(setting, view, survivors, outlines, 5, wrong)
        assert caught.value.step is Unmask.STEP
    for place in (0, 1):
        for spoilt in (
            replace(answers[place], share=bytes(32) + b"x"),
            replace(answers[place], opening=bytes(31) + b"x"),
        ):
            pair = (spoilt, answers[1]) if place == 0 else (answers[0], spoilt)
            with pytest.raises(ProtocolError, match=f"its share of participant {place} is not"):
                check_answers(setting, view, survivors, outlines, 5, replace(good, answers=pair))


def test_commitments_bind_everything_that_they_name() -> None:
    """C11, C25, C26."""
    base = (b"c" * 32, 0, 1, 2, b"s" * 33, b"o" * 32)
    changed = [
        (*base[:place], other, *base[place + 1 :])
        for place, other in enumerate((b"d" * 32, 1, 2, 3, b"t" * 33, b"p" * 32))
    ]
    assert len({share_commitment(*one) for one in (base, *changed)}) == 7
    assert len({secret_commitment(*one) for one in (
        (b"c" * 32, 1, b"s" * 32), (b"d" * 32, 1, b"s" * 32), (b"c" * 32, 2, b"s" * 32),
        (b"c" * 32, 1, b"t" * 32),
    )}) == 4  # fmt: skip


def test_what_is_acknowledged_is_every_dealing_in_order() -> None:
    setting = Setting(COMPLETE, MEMBERS.roster)
    other = Setting(replace(COMPLETE, round_number=2), MEMBERS.roster)
    one, two = (Signed.create(COMPLETE, MEMBERS.identities[index], body(0, 1)) for index in (0, 1))
    digests = {
        dealings_digest(setting, shown)
        for shown in ([], [one], [two], [one, two], [two, one], [replace(one, signature=bytes(64))])
    }
    assert len(digests) == 6
    assert dealings_digest(other, [one]) not in digests
