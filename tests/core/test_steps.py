"""The participant's steps as functions of a state: what each takes, and what it keeps."""

from functools import lru_cache

import pytest

from secagg import participant_steps as steps
from secagg.checks import Setting
from secagg.errors import ProtocolError, Step
from secagg.messages import KeyDirectory, ShareKeysBody
from secagg.participant_steps import Advertised, Self
from secagg.testing import SeededRandomness, cohort, make_round

MEMBERS = cohort(20)
SPARSE = MEMBERS.plan(4, max_colluders=2, neighbours=12)  # t = 8, and U1 needs 12


@lru_cache(maxsize=1)
def advertised() -> tuple[tuple[Self, Advertised], ...]:
    setting = Setting(SPARSE, MEMBERS.roster)
    made = []
    for index, identity in enumerate(MEMBERS.identities):
        me = Self(setting, identity, index)
        made.append((me, steps.advertise_keys(me, SeededRandomness(f"steps {index}"))[0]))
    return tuple(made)


def directory(*members: int) -> KeyDirectory:
    return KeyDirectory(tuple(advertised()[index][1].own for index in sorted(members)))


def u1_with(present: int) -> KeyDirectory:
    """Twelve members, with this many of those that participant 0 drew."""
    drawn = advertised()[0][1].drawn
    others = [index for index in range(1, 20) if index not in drawn]
    return directory(0, *drawn[:present], *others[: 11 - present])


def test_a_participant_deals_to_those_of_its_drawn_holders_that_are_in_u1() -> None:
    """C08."""
    me, state = advertised()[0]
    for present in (8, 11):
        dealt, message = steps.share_keys(me, state, u1_with(present), SeededRandomness("deal"))
        body = message.body.read(ShareKeysBody)
        assert body.holders == state.drawn[:present]
        assert tuple(leaf.holder for leaf in message.leaves) == body.holders
        assert dealt.kept == ()
        assert [(pad.dealer, pad.holder) for pad in dealt.pads] == [(0, h) for h in body.holders]


def test_a_participant_deals_nothing_when_too_few_of_its_holders_are_in_u1() -> None:
    """C08: with less than t holders nobody could open what it deals."""
    me, state = advertised()[0]
    with pytest.raises(ProtocolError, match="7 of the drawn holders are in U1 and 8 are") as caught:
        steps.share_keys(me, state, u1_with(7), SeededRandomness("deal"))
    assert caught.value.step is Step.ADVERTISE_KEYS


def test_what_a_participant_signed_itself_it_need_not_verify() -> None:
    me, state = advertised()[3]
    assert state.own.digest in me.setting.verified


def test_shares_are_kept_in_the_order_of_their_dealers() -> None:
    """Also where the own share comes first, and others after it."""
    network = make_round(5)
    network.begin()
    tenant = network.tenants["t003"]
    while type(getattr(tenant.participant, "_state", None)).__name__ != "Acknowledged":
        assert network.advance()
    held = tenant.running._state.held  # type: ignore[union-attr]
    assert [one.dealer for one in held] == [0, 1, 2, 3, 4]
