"""One whole round of scheme `ckks`, what its parties refuse, and sums of shares that are wrong.

Five tenants, two of whose answers open; t003 falls silent before its upload. Spoilt messages are
kept as edits of those of the round, because a message with a share in it has thousands of bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from secagg import checks, merkle, suite
from secagg.ckks import sharing
from secagg.ckks.field import PRIME
from secagg.ckks.packings import parameters_of
from secagg.ckks.scheme import one_time_key
from secagg.errors import Step
from secagg.messages import (
    Acknowledge,
    AdvertiseKeys,
    Answer,
    DeliveredLeaf,
    KeyDirectory,
    Leaf,
    ShareDelivery,
    ShareKeys,
    ShareKeysBody,
    Signed,
    Unmask,
    UploadCommitment,
    decode_message,
)
from secagg.outputs import Aborted, Excluded, Finished
from secagg.participant_steps import Advertised
from secagg.plan import RoundPlan
from secagg.recompute import sum_root
from secagg.records import encode
from secagg.secret import Seed
from secagg.suite import Peer
from secagg.testing import cohort
from secagg.transcript import verify_transcript
from tests.vectors import rounds
from tests.vectors.cases import shake

NAME = "round-ckks"
WHO = rounds.RECIPES[NAME].bystander


def plan() -> RoundPlan:
    found: RoundPlan = rounds.ran(NAME).aggregator.plan
    return found


def facts() -> dict[str, Any]:
    """The content of the round's file."""
    network, found = rounds.ran(NAME), plan()
    roster = cohort(found.n).roster
    result = network.outcome.opened
    return {
        "suite": found.suite,
        "roster": roster.encode().hex(),
        "roster_digest": roster.digest.hex(),
        "plan": found.encode().hex(),
        "context": found.context.hex(),
        "tenants": [tenant(one) for one in found.cohort],
        "messages": list(rounds.messages(NAME)),
        **rounds.digests(NAME),
        "survivors": list(result.survivors),
        "level_sum": result.level_sum.tolist(),
        "total_weight": result.total_weight,
        "sum_root": sum_root(found, result.level_sum, result.total_weight).hex(),
        "transcript_digest": verify_transcript(network.aggregator.transcript, roster).digest.hex(),
        "refused": list(refusals()),
        "complaints": list(complaints()),
        "openings": list(openings()),
    }


def tenant(who: str) -> dict[str, Any]:
    row = rounds.tenant(NAME, who)
    del row["mask_seed"]  # drawn in every scheme, and of no use in this one
    return {**row, "dealing_seed": dealing_seed(who).expose().hex()}


def dealing_seed(who: str) -> Seed:
    """From which a dealer's coefficients and blinding come: its first draw in step 1."""
    one = rounds.ran(NAME).tenants[who]
    assert isinstance(one, rounds.Remembers)
    return Seed(one.first_in_dealing)


# ---------------------------------------------------------------------------- refusals


def refusals() -> Iterator[dict[str, Any]]:
    for label, last, case, check, data in spoilt_to_a_participant():
        where = {"message": label, "to": WHO, "after": last.label}
        change = rounds.edits(rounds.message_of(NAME, WHO, label), data)
        yield rounds.refusal(NAME, {"case": case, **where, "edits": change}, check)
    for label, step, case, check, data in spoilt_to_the_aggregator():
        where = {"message": label, "from": WHO, "in": step.label}
        change = rounds.edits(rounds.message_of(NAME, WHO, label), data)
        yield rounds.refusal(NAME, {"case": case, **where, "edits": change}, check)
    yield from spoilt_uploads()


Spoilt = Iterator[tuple[str, Step, str, str, bytes]]
"""(message, step, case, check, bytes)."""


def spoilt_to_a_participant() -> Spoilt:
    directory = decode_message(rounds.message_of(NAME, WHO, "key_directory"))
    assert isinstance(directory, KeyDirectory)
    first, *rest = directory.keys
    masked = replace(first.read(AdvertiseKeys), mask_key=shake("mask key", 32))
    yield (
        "key_directory",
        Step.ADVERTISE_KEYS,
        "a mask key, which the scheme has not",
        "C06",
        encode(KeyDirectory((rounds.resigned(NAME, first, masked), *rest))),
    )
    message, body = delivery(), dealt_by_the_first()
    for case, commitment in (
        ("a degree check a byte short", body.secret_commitment[:-1]),
        ("a degree check of another threshold", body.secret_commitment + bytes(16)),
        ("no degree check", b""),
    ):
        yield (
            "share_delivery",
            Step.SHARE_KEYS,
            case,
            "C09",
            encode(with_body(message, replace(body, secret_commitment=commitment))),
        )


def spoilt_to_the_aggregator() -> Spoilt:
    one = rounds.signed(NAME, WHO, "advertise_keys")
    masked = replace(one.read(AdvertiseKeys), mask_key=shake("mask key", 32))
    data = encode(rounds.resigned(NAME, one, masked))
    yield (
        "advertise_keys",
        Step.ADVERTISE_KEYS,
        "a mask key, which the scheme has not",
        "C06",
        data,
    )
    dealing = decode_message(rounds.message_of(NAME, WHO, "share_keys"))
    assert isinstance(dealing, ShareKeys)
    body = dealing.body.read(ShareKeysBody)
    size = len(body.secret_commitment)
    for length in (0, size - 1, size + 16):
        changed = replace(body, secret_commitment=bytes(length))
        again = ShareKeys(rounds.resigned(NAME, dealing.body, changed), dealing.leaves)
        case = f"a degree check of {length} bytes"
        yield "share_keys", Step.SHARE_KEYS, case, "C09", encode(again)
    for case, change in (
        ("a bundle a byte short", {"sealed": dealing.leaves[0].sealed[:-1]}),
        (
            "a pad, which the scheme has not",
            {"pad_box": b"box", "pad_commitment": shake("pad", 32)},
        ),
        ("commitments to two shares", {"commitments": dealing.leaves[0].commitments * 2}),
    ):
        leaves = (replace(dealing.leaves[0], **change), *dealing.leaves[1:])  # type: ignore[arg-type]
        changed = replace(body, leaves_root=root_of(leaves))
        again = ShareKeys(rounds.resigned(NAME, dealing.body, changed), leaves)
        yield "share_keys", Step.SHARE_KEYS, case, "C09", encode(again)
    yield from spoilt_answers()


def spoilt_answers() -> Spoilt:
    one = rounds.signed(NAME, WHO, "unmask")
    body = one.read(Unmask)
    good = body.key_sum
    share = Answer(0, 0, shake("share", 33), shake("opening", 32))
    for case, changed in (
        ("a byte short", replace(body, key_sum=good[:-1])),
        ("a byte too many", replace(body, key_sum=good + b"\0")),
        ("with the blinding", replace(body, key_sum=good + bytes(16))),
        ("an element is p", replace(body, key_sum=with_prime(good, 0))),
        ("the last element is p", replace(body, key_sum=with_prime(good, 31 * 2047))),
        ("none", replace(body, key_sum=b"")),
        ("beside a share", replace(body, answers=(share,))),
        ("a share in place of it", replace(body, answers=(share,), key_sum=b"")),
    ):
        data = encode(rounds.resigned(NAME, one, changed))
        yield "unmask", Step.UNMASK, f"a sum of shares: {case}", "C25", data


def with_prime(packed: bytes, bit: int) -> bytes:
    """p in place of the element at a bit."""
    return (int.from_bytes(packed, "little") | PRIME << bit).to_bytes(len(packed), "little")


def spoilt_uploads() -> Iterator[dict[str, Any]]:
    """Uploads that hang under the root that their sender signs, with a residue beyond its prime."""
    one = rounds.signed(NAME, WHO, "upload_commitment")
    good, body, parameters = rounds.upload_of(NAME, WHO), one.read(UploadCommitment), plan().ckks
    assert parameters is not None
    last = 8 * len(good) - parameters.modulus_bits[-1]
    for case, bit, size, value in (
        ("the first residue is its prime", 0, parameters.modulus_bits[0], parameters.primes[0]),
        ("the last residue is its prime", last, parameters.modulus_bits[-1], parameters.primes[-1]),
        ("a residue has all bits", 18, parameters.modulus_bits[0], (1 << 18) - 1),
    ):
        stream = int.from_bytes(good, "little") & ~(((1 << size) - 1) << bit) | value << bit
        bad = stream.to_bytes(len(good), "little")
        root = merkle.root([merkle.bulk_leaf_hash(bad)])
        data = encode(rounds.resigned(NAME, one, replace(body, root=root)))
        row = {
            "case": case, "message": "upload_commitment", "from": WHO,
            "in": Step.MASKED_INPUT.label, "upload_edits": rounds.edits(good, bad),
            "edits": rounds.edits(rounds.message_of(NAME, WHO, "upload_commitment"), data),
        }  # fmt: skip
        yield rounds.refusal(NAME, row, "C44")


# ---------------------------------------------------------------------------- complaints


def delivery() -> ShareDelivery:
    found = decode_message(rounds.message_of(NAME, WHO, "share_delivery"))
    assert isinstance(found, ShareDelivery)
    return found


def dealt_by_the_first() -> ShareKeysBody:
    return delivery().bodies[0].read(ShareKeysBody)


def with_body(message: ShareDelivery, body: ShareKeysBody) -> ShareDelivery:
    """Another dealing of t000, which signs it."""
    first, *rest = message.bodies
    return replace(message, bodies=(rounds.resigned(NAME, first, body), *rest))


def root_of(leaves: tuple[Leaf, ...]) -> bytes:
    return merkle.root([checks.leaf_digest(leaf.outline) for leaf in leaves])


def complaints() -> Iterator[dict[str, Any]]:
    """Deliveries with a wrong dealing of t000: the holder acknowledges, and refuses it (C42)."""
    before = rounds.message_of(NAME, WHO, "share_delivery")
    for case, data in complained_about():
        row = {"case": case, "message": "share_delivery", "to": WHO,
               "after": Step.SHARE_KEYS.label, "edits": rounds.edits(before, data)}  # fmt: skip
        yield {**row, "check": "C42", "refuses": refused_by_the_holder(row)}


def refused_by_the_holder(row: dict[str, Any]) -> list[int]:
    """Whom the bystander refuses."""
    holder = rounds.parked(NAME, row["to"], Step[row["after"].upper()])
    (answer,) = holder.receive(rounds.bytes_of(NAME, row))
    signed = decode_message(answer)
    assert isinstance(signed, Signed)
    return list(signed.read(Acknowledge).refused)


def complained_about() -> Iterator[tuple[str, bytes]]:
    body = dealt_by_the_first()
    check = body.secret_commitment
    for case, bad in (
        ("an element of the degree check is another", bytes([check[0] ^ 1]) + check[1:]),
        ("an element of the degree check is p", PRIME.to_bytes(4, "little") + check[4:]),
        ("the degree check is 0", bytes(len(check))),
    ):
        yield case, encode(with_body(delivery(), replace(body, secret_commitment=bad)))
    share = bundle_of_the_first()
    yield "a new bundle with the share that was dealt", encode(with_share(share))
    for case, bad in (
        ("a coefficient's share is another", bytes([share[0] ^ 1]) + share[1:]),
        ("a blinding element's share is another", share[:-1] + bytes([share[-1] ^ 0x10])),
        ("an element of the share is p", with_prime(share, 0)),
        ("a stray bit behind the share", share[:-1] + bytes([share[-1] | 0x80])),
    ):
        yield case, encode(with_share(bad))


@lru_cache(maxsize=1)
def dealing() -> sharing.Dealing:
    """What t000 dealt, once more."""
    one = rounds.ran(NAME).tenants["t000"]
    assert isinstance(one, rounds.Remembers)
    key = one_time_key(plan(), one.states[Advertised].secrets.self_mask)
    holders = dealt_by_the_first().holders
    return sharing.split(key, holders, plan().share_threshold, dealing_seed("t000"), plan().context)


def bundle_of_the_first() -> bytes:
    """The packed share that t000 dealt to the bystander."""
    return sharing.pack_elements(dealing().shares[1])


def with_share(share: bytes) -> ShareDelivery:
    """The delivery with another share in t000's bundle; commitment, root and check are its own.

    It is sealed under the key that sealed the right one, so that few bytes differ: a vector may.
    """
    found, message = plan(), delivery()
    dealer = rounds.ran(NAME).tenants["t000"]
    assert isinstance(dealer, rounds.Remembers)
    secrets = dealer.states[Advertised].secrets
    directory = decode_message(rounds.message_of(NAME, WHO, "key_directory"))
    assert isinstance(directory, KeyDirectory)
    peers = [Peer(place, directory.keys[place].read(AdvertiseKeys)) for place in (0, 1)]
    opening = shake("opening of another share", 32)
    dealt = decode_message(rounds.message_of(NAME, "t000", "share_keys"))
    assert isinstance(dealt, ShareKeys)
    before, sealed = suite.seal(
        found.context, peers[0], peers[1], suite.private_keys(found.suite, secrets.channel),
        share + opening, lambda size: dealt.leaves[1].encapsulation[:size],
    )  # fmt: skip
    commitment = checks.share_commitment(found.context, 0, 0, 1, share, opening)
    leaf = Leaf(1, before, sealed, (commitment,))
    leaves = (dealt.leaves[0], leaf, *dealt.leaves[2:])
    hashes = [checks.leaf_digest(one.outline) for one in leaves]
    root = merkle.root(hashes)
    rho = sharing.challenge(found.context, 0, (root,), parameters_of(found).degree)
    check = sharing.encode_check(sharing.check_polynomial(dealing(), rho))
    body = replace(dealt_by_the_first(), secret_commitment=check, leaves_root=root)
    delivered = tuple(
        DeliveredLeaf(0, leaf, merkle.path(hashes, 1)) if one.dealer == 0 else one
        for one in message.leaves
    )
    return replace(with_body(message, body), leaves=delivered)


# ---------------------------------------------------------------------------- openings


def openings() -> Iterator[dict[str, Any]]:
    """Answers in this order; what is opened, and by whose answers (C45)."""
    kept = [who for who in plan().cohort if who != rounds.RECIPES[NAME].silent]
    for case, order, wrong in (
        ("two answers", kept[:2], ()),
        ("two others", kept[2:], ()),
        ("a wrong one, and two right ones", kept[:3], kept[:1]),
        ("a wrong one, and three right ones", kept, kept[:1]),
        ("two wrong ones, and two right ones", kept, kept[:2]),
        ("two wrong ones, and one right one", kept[:3], kept[:2]),
        ("a wrong one among two", kept[1:3], kept[2:3]),
    ):
        changes = {who: [(0, 1, f"{sum_of(who)[0] ^ 1:02x}")] for who in wrong}
        row = {"case": case, "order": list(order), "edits": changes}
        yield {**row, **opened(row)}


def sum_of(who: str) -> bytes:
    return rounds.signed(NAME, who, "unmask").read(Unmask).key_sum


def opened(row: Mapping[str, Any]) -> dict[str, Any]:
    """What an aggregator makes of these answers once nobody else is waited for."""
    aggregator = rounds.waiting(NAME, Step.UNMASK)
    outputs = []
    for who in row["order"]:
        one = rounds.signed(NAME, who, "unmask")
        body = one.read(Unmask)
        data = rounds.edited_bytes(body.key_sum, row["edits"].get(who, []))
        changed = rounds.resigned(NAME, one, replace(body, key_sum=data))
        if not aggregator.waiting or aggregator.result is not None:
            break
        outputs += aggregator.receive(who, encode(changed), 0.0)
    for who in aggregator.waiting:
        outputs += aggregator.on_silence(who, 0.0)
    if any(one.evidence for one in outputs if isinstance(one, Excluded)):
        raise AssertionError("a wrong sum is no proof")
    for one in outputs:
        match one:
            case Aborted(error):
                return {"refused": {"error": type(error).__name__, "check": "C45"}}
            case Finished():
                result, roster = aggregator.result, cohort(plan().n).roster
                assert result is not None
                answered = verify_transcript(aggregator.transcript, roster).answered
                return {
                    "output": {"level_sum": result.level_sum.tolist(), "answered": list(answered)}
                }
    raise AssertionError(row["case"])
