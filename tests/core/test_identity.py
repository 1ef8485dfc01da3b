"""Identities and rosters: what a signature covers, and which rosters there can be."""

import hashlib
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secagg.canonical import Writer
from secagg.errors import ConfigError, MalformedMessage
from secagg.identity import (
    Identity,
    IdentitySeed,
    Member,
    Roster,
    labelled_hash,
    signing_input,
)
from secagg.messages import Acknowledge, Signed, decode_message
from secagg.testing import cohort

SEED = IdentitySeed(bytes(range(32)))
ADA = Identity("ada", SEED)
MEMBER = Member.create(ADA)
MEMBERS = cohort(3).roster.members
WHERE = ("suite", "label", b"c" * 32, b"body")


def test_a_signature_covers_suite_label_sender_round_and_body() -> None:
    """C03."""
    signature = ADA.sign(*WHERE)
    assert MEMBER.verify(*WHERE, signature)
    for place, other in enumerate(("suite2", "label2", b"d" * 32, b"bodies")):
        changed = (*WHERE[:place], other, *WHERE[place + 1 :])
        assert not MEMBER.verify(*changed, signature)  # type: ignore[arg-type]
    assert not replace(MEMBER, tenant="eve").verify(*WHERE, signature)
    assert not Member.create(cohort(3).identities[0]).verify(*WHERE, signature)


def test_a_signature_has_64_bytes_and_what_follows_them_is_no_part_of_the_message() -> None:
    """C03: else whoever signs could make a second signature under one message."""
    key = Ed25519PrivateKey.from_private_bytes(SEED.expose())
    covered = signing_input("suite", "label", "ada", b"c" * 32, b"body")
    longer = key.sign(b"x" + covered) + b"x"
    assert not MEMBER.verify(*WHERE, longer)
    signature = ADA.sign(*WHERE)
    for spoilt in (signature[:-1], signature + b"\0", b"", signature[:-1] + b"\xff"):
        assert not MEMBER.verify(*WHERE, spoilt)


def test_a_key_of_another_length_verifies_nothing() -> None:
    assert not replace(MEMBER, public_key=b"short").verify(*WHERE, ADA.sign(*WHERE))


def test_a_printed_identity_shows_its_name_and_its_public_key_alone() -> None:
    assert repr(ADA) == f"Identity('ada', public_key={ADA.public_key.hex()[:16]}...)"
    assert SEED.expose().hex() not in repr(ADA)


def test_a_hash_has_its_label_round_and_fields_which_cannot_run_over() -> None:
    data = Writer().tag("secagg/1 hash").tag("label").fixed(b"c" * 32, 32).blob(b"a").blob(b"bc")
    assert labelled_hash("label", b"c" * 32, b"a", b"bc") == hashlib.sha256(data.finish()).digest()
    assert labelled_hash("label", b"c" * 32, b"ab", b"c") != labelled_hash(
        "label", b"c" * 32, b"a", b"bc"
    )


# ------------------------------------------------------------------ rosters


def test_a_roster_is_sorted_whatever_the_order_of_its_members() -> None:
    """C38."""
    assert Roster.create(MEMBERS[::-1]).members == MEMBERS
    assert Roster.create(MEMBERS[:1]).members == MEMBERS[:1]
    with pytest.raises(ConfigError, match="unique, sorted and not empty"):
        Roster(MEMBERS[::-1])
    with pytest.raises(ConfigError, match="unique, sorted and not empty"):
        Roster((MEMBERS[0], MEMBERS[0]))


def test_a_roster_has_members_and_each_has_a_name() -> None:
    """C38."""
    with pytest.raises(ConfigError, match="0 members; 1 to"):
        Roster(())
    with pytest.raises(ConfigError, match="unique, sorted and not empty"):
        Roster((Member.create(Identity("", SEED)),))


def test_a_roster_has_no_more_members_than_its_limit() -> None:
    """C38: refused before a single line is verified."""
    line = MEMBERS[0]
    many = tuple(replace(line, tenant=f"{number:06}") for number in range((1 << 14) + 1))
    with pytest.raises(ConfigError, match="16385 members; 1 to 16384"):
        Roster(many)
    with pytest.raises(ConfigError, match="share one public key"):
        Roster(many[:-1])


def test_each_member_has_its_own_key_and_signed_its_own_line() -> None:
    """C38."""
    with pytest.raises(ConfigError, match="share one public key"):
        Roster((Member.create(Identity("ada", SEED)), Member.create(Identity("eve", SEED))))
    for spoilt in (
        replace(MEMBERS[1], proof=bytes(64)),
        replace(MEMBERS[1], proof=MEMBERS[0].proof),
        replace(MEMBERS[1], group="other"),
        replace(MEMBERS[1], tenant="t001x"),
    ):
        with pytest.raises(ConfigError, match=f"the line of '{spoilt.tenant}' is not signed"):
            Roster((MEMBERS[0], spoilt, MEMBERS[2]))


def test_a_committee_is_any_part_of_the_members_and_nobody_else() -> None:
    names = tuple(member.tenant for member in MEMBERS)
    for committee in ((), names[:1], names):
        assert Roster(MEMBERS, committee).committee == committee
    with pytest.raises(ConfigError, match="names tenants that are not members"):
        Roster(MEMBERS, ("t000", "stranger"))
    digests = {Roster(MEMBERS, committee).digest for committee in ((), names[:1], names)}
    assert len(digests) == 3


def test_a_roster_reads_back_and_what_is_none_is_malformed() -> None:
    """C01."""
    roster = Roster(MEMBERS, ("t001",))
    assert Roster.decode(roster.encode()) == roster
    assert roster.digest == hashlib.sha256(roster.encode()).digest()
    assert "t001" in roster
    assert "t009" not in roster
    assert roster["t001"] == MEMBERS[1]
    for data in (roster.encode() + b"\0", roster.encode()[:-1], b""):
        with pytest.raises(MalformedMessage):
            Roster.decode(data)
    with pytest.raises(MalformedMessage, match="malformed roster: roster: the line of"):
        Roster.decode(roster.encode().replace(MEMBERS[1].proof, bytes(64)))


# ------------------------------------------------------------------ messages


@pytest.mark.parametrize("length", range(7))
def test_bytes_too_short_for_a_tag_are_no_message(length: int) -> None:
    """C01."""
    with pytest.raises(MalformedMessage, match="no message of secagg/1"):
        decode_message(bytes(length))


def test_a_signed_record_is_read_as_what_its_label_says_alone() -> None:
    """C03: the label is signed, so that no body can pass for another step's."""
    signed = Signed("survivors", 0, b"", bytes(64))
    with pytest.raises(MalformedMessage, match="expected acknowledge, got 'survivors'") as caught:
        signed.read(Acknowledge)
    assert caught.value.step is Acknowledge.STEP
