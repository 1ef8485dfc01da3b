"""Messages, plans and rosters byte by byte; hashes, signatures and commitments."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from secagg import checks, messages
from secagg.identity import (
    Identity,
    IdentitySeed,
    Member,
    Roster,
    labelled_hash,
    signing_input,
)
from secagg.messages import BODIES, Leaf, decode_message
from secagg.plan import RoundPlan
from secagg.records import decode, encode
from secagg.secret import Pad
from secagg.suite import pad_commitment
from secagg.testing import cohort
from tests.vectors.cases import Case, case, operation, shake

CONTEXT = shake("context", 32).hex()
KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *BODIES.values(), messages.Signed, messages.Leaf, messages.LeafOutline, messages.Survivor,
        messages.Answer, messages.ShareKeys, messages.Dealing, messages.PadBox, messages.PadBoxes,
        messages.KeyDirectory, messages.DeliveredLeaf, messages.ShareDelivery, messages.AgreedView,
        messages.SurvivorSet, messages.Quorum,
    )
}  # fmt: skip


# ---------------------------------------------------------------------------- a record as JSON


def view(value: Any) -> Any:
    """Fields by name, bytes in hexadecimal."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [view(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {f.name: view(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def from_view(kind: Any, value: Any) -> Any:
    """Inverse of `view`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return from_view(arguments[0], value)
    if origin is tuple:
        return tuple(from_view(arguments[0], item) for item in value)
    if kind is bytes:
        return bytes.fromhex(value)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        names = [field.name for field in dataclasses.fields(kind)]
        return kind(*[from_view(hints[name], value[name]) for name in names])  # type: ignore[operator]
    return value


@operation("record.encode")
def record_encode(type: str, fields: Any) -> str:  # noqa: A002
    return encode(from_view(KINDS[type], fields)).hex()


@operation("record.decode")
def record_decode(type: str, data: str) -> Any:  # noqa: A002
    return view(decode(KINDS[type], bytes.fromhex(data)))


@operation("message.decode")
def message_decode(data: str) -> dict[str, Any]:
    message = decode_message(bytes.fromhex(data))
    return {"type": type(message).__name__, "fields": view(message)}


@operation("plan.decode")
def plan_decode(data: str) -> dict[str, Any]:
    plan = RoundPlan.decode(bytes.fromhex(data))
    return {
        "context": plan.context.hex(),
        "suite": plan.suite,
        "cohort": list(plan.cohort),
        "f": plan.max_colluders,
        "k": plan.share_count,
        "t": plan.share_threshold,
        "q": plan.quorum,
        "min_survivors": plan.min_survivors,
        "least": plan.least,
        "vectors": [list(pair) for pair in plan.vectors],
    }


@operation("roster.decode")
def roster_decode(data: str) -> dict[str, Any]:
    roster = Roster.decode(bytes.fromhex(data))
    return {"digest": roster.digest.hex(), "members": [one.tenant for one in roster.members]}


# ---------------------------------------------------------------------------- hashes, signatures


@operation("hash.labelled")
def hash_labelled(label: str, context: str, fields: list[str]) -> str:
    return labelled_hash(label, bytes.fromhex(context), *map(bytes.fromhex, fields)).hex()


@operation("signature.input")
def signature_input(suite: str, label: str, sender: str, context: str, body: str) -> str:
    return signing_input(suite, label, sender, bytes.fromhex(context), bytes.fromhex(body)).hex()


@operation("signature.sign")
def signature_sign(
    seed: str, suite: str, label: str, sender: str, context: str, body: str
) -> dict[str, str]:
    identity = Identity(sender, IdentitySeed(bytes.fromhex(seed)))
    signature = identity.sign(suite, label, bytes.fromhex(context), bytes.fromhex(body))
    return {"public_key": identity.public_key.hex(), "signature": signature.hex()}


@operation("signature.verify")
def signature_verify(
    public_key: str, suite: str, label: str, sender: str, context: str, body: str, signature: str
) -> bool:
    member = Member(sender, bytes.fromhex(public_key))
    parts = (bytes.fromhex(part) for part in (context, body, signature))
    return member.verify(suite, label, *parts)


@operation("commitment.share")
def commitment_share(
    context: str, kind: int, dealer: int, holder: int, share: str, opening: str
) -> str:
    place, parts = (kind, dealer, holder), map(bytes.fromhex, (share, opening))
    return checks.share_commitment(bytes.fromhex(context), *place, *parts).hex()


@operation("commitment.secret")
def commitment_secret(context: str, dealer: int, secret: str) -> str:
    return checks.secret_commitment(bytes.fromhex(context), dealer, bytes.fromhex(secret)).hex()


@operation("commitment.pad")
def commitment_pad(context: str, dealer: int, holder: int, pad: str, box: str) -> str:
    sealed, opened = bytes.fromhex(box), Pad(bytes.fromhex(pad))
    return pad_commitment(bytes.fromhex(context), dealer, holder, opened, sealed).hex()


@operation("leaf.outline")
def leaf_outline(leaf: Any) -> dict[str, str]:
    outline = from_view(Leaf, leaf).outline
    return {"outline": encode(outline).hex(), "leaf_hash": checks.leaf_digest(outline).hex()}


@operation("leaf.path")
def leaf_path(body: Any, leaf: Any, path: list[str], holder: int) -> str:
    checks.check_path(
        from_view(messages.ShareKeysBody, body), from_view(Leaf, leaf),
        [bytes.fromhex(node) for node in path], holder,
    )  # fmt: skip
    return "accepted"


# ---------------------------------------------------------------------------- cases


def filled(kind: Any, name: str, sizes: Mapping[str, int]) -> Any:
    """Some value of a record type: bytes from SHAKE-256 of the field's name, numbers that rise.

    `sizes` gives the lengths of byte strings and tuples that have no fixed one.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        size = arguments[1].size
        return shake(name, size) if arguments[0] is bytes else len(name) % 200
    if origin is tuple:
        count = sizes.get(name.rpartition(".")[2], 2)
        return tuple(filled(arguments[0], f"{name}.{i}", sizes) for i in range(count))
    if kind is bytes:
        return shake(name, sizes.get(name.rpartition(".")[2], 5))
    if kind is str:
        return "unmask"
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = [field.name for field in dataclasses.fields(kind)]
    return kind(*[filled(hints[field], f"{name}.{field}", sizes) for field in fields])


MASKS = {"mask_key": 32, "secret_commitment": 32, "key_sum": 0}
HYBRID = {"channel_kem": 1184, "mask_kem": 1184, "encapsulation": 1088, "sealed": 146,
          "pad_box": 1136, "pad_commitment": 32, "box": 1136, **MASKS}  # fmt: skip
PLAIN = {"channel_kem": 0, "mask_kem": 0, "encapsulation": 32, "sealed": 146, "pad_box": 0,
         "pad_commitment": 0, "box": 0, **MASKS}  # fmt: skip
CKKS = {**HYBRID, "mask_key": 0, "mask_kem": 0, "secret_commitment": 70, "answers": 0,
        "key_sum": 70}  # fmt: skip
_SIZED = ("AdvertiseKeys", "Leaf")


def record_cases() -> Iterator[Case]:
    for name, kind in KINDS.items():
        small = {**PLAIN, "encapsulation": 3, "sealed": 3}
        for suite, sizes in (("x25519", PLAIN), ("x25519-mlkem768", HYBRID)):
            if name in _SIZED or (suite == "x25519" and (small := {**small, "box": 4})):
                value = filled(kind, name, sizes if name in _SIZED else small)
                yield case(f"{suite}: {name}", "record.encode", type=name, fields=view(value))
                data = encode(value).hex()
                yield case(f"{suite}: {name}", "record.decode", type=name, data=data)
    for name in ("AdvertiseKeys", "ShareKeysBody", "Unmask"):
        value = filled(KINDS[name], name, CKKS)
        yield case(f"ckks: {name}", "record.encode", type=name, fields=view(value))
        yield case(f"ckks: {name}", "record.decode", type=name, data=encode(value).hex())
    yield from malformed_cases()


def malformed_cases() -> Iterator[Case]:
    signed = encode(filled(messages.Signed, "Signed", {}))
    directory = encode(filled(messages.KeyDirectory, "KeyDirectory", {}))
    yield case("a message by its tag", "message.decode", data=directory.hex())
    label = b"\0\0\0\x06unmask"
    for name, data in (
        ("nothing", b""),
        ("a version alone", b"\x01"),
        ("another version", b"\x02" + signed[1:]),
        ("a trailing byte", signed + b"\0"),
        ("a byte short", signed[:-1]),
        ("two messages", signed + signed[1:]),
        ("an unknown tag", signed.replace(b"Signed", b"Sealed")),
        ("a tag of another length", signed[:1] + b"\0\0\0\x07" + signed[5:]),
        ("a body where a message is due", encode(filled(messages.Unmask, "Unmask", {}))),
        ("a count of 3 for 2 records", directory.replace(b"\0\0\0\x02", b"\0\0\0\x03", 1)),
        ("a count of 1 for 2 records", directory.replace(b"\0\0\0\x02", b"\0\0\0\x01", 1)),
        ("a count of 2^32 - 1", directory.replace(b"\0\0\0\x02", b"\xff\xff\xff\xff", 1)),
        ("a label that is not UTF-8", signed.replace(label, b"\0\0\0\x06\xffnmask")),
        ("a label that is not NFC", signed.replace(label, b"\0\0\0\x05ue\xcc\x81k")),
        ("a label over the limit", signed.replace(label, b"\0\0\x10\x01" + 4097 * b"u")),
        ("a body over the limit", signed.replace(b"\0\0\0\x05", b"\x04\0\0\x01", 1)),
    ):
        yield case(name, "message.decode", data=data.hex())


def hash_cases() -> Iterator[Case]:
    for fields in ([], [""], ["", ""], ["00"], [shake("field", 40).hex(), "ff"]):
        yield case(
            f"{len(fields)} fields of {[len(field) // 2 for field in fields]} bytes",
            "hash.labelled", label="view", context=CONTEXT, fields=fields,
        )  # fmt: skip
    parts: dict[str, Any] = {
        "suite": "x25519-mlkem768", "label": "unmask", "sender": "Zoë", "context": CONTEXT,
        "body": shake("body", 20).hex(),
    }  # fmt: skip
    yield case("what a signature covers", "signature.input", **parts)
    seed = shake("identity", 32).hex()
    yield case("a signature", "signature.sign", seed=seed, **parts)
    made = signature_sign(seed=seed, **parts)
    yield from verify_cases({**parts, **made})
    share, opening = shake("share", 33).hex(), shake("opening", 32).hex()
    place = {"context": CONTEXT, "dealer": 3, "holder": 7}
    for kind in (0, 1):
        yield case(f"a share of kind {kind}", "commitment.share", kind=kind, share=share,
                   opening=opening, **place)  # fmt: skip
    yield case("a self-mask seed", "commitment.secret", context=CONTEXT, dealer=3,
               secret=shake("secret", 32).hex())  # fmt: skip
    pad, box = shake("pad", 32).hex(), shake("box", 1136).hex()
    yield case("a pad: the box's ciphertext counts, not its seal", "commitment.pad", pad=pad,
               box=box, **place)  # fmt: skip
    yield from leaf_cases()


def verify_cases(good: dict[str, Any]) -> Iterator[Case]:
    order = 2**252 + 27742317777372353535851937790883648493
    signature = bytes.fromhex(good["signature"])
    lifted = (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    for name, change in {
        "right": {},
        "of another suite": {"suite": "x25519"},
        "under another label": {"label": "consistency_check"},
        "of another sender": {"sender": "Zoe"},
        "in another round": {"context": bytes(32).hex()},
        "over another body": {"body": ""},
        "with another R": {"signature": (bytes([signature[0] ^ 1]) + signature[1:]).hex()},
        "with S + L in place of S": {"signature": (signature[:32] + lifted).hex()},
        "of 63 bytes": {"signature": signature[:-1].hex()},
        "of 65 bytes": {"signature": (signature + b"\0").hex()},
        "under a key that is no point": {"public_key": (b"\x02" + bytes(31)).hex()},
    }.items():
        yield case(f"a signature {name}", "signature.verify", **{**good, **change})


def leaf_cases() -> Iterator[Case]:
    for suite, sizes in (("x25519", PLAIN), ("x25519-mlkem768", HYBRID)):
        leaf = filled(Leaf, f"leaf {suite}", sizes)
        yield case(f"{suite}: a leaf and what is hashed of it", "leaf.outline", leaf=view(leaf))
    from secagg import merkle

    leaves = [
        dataclasses.replace(filled(Leaf, f"leaf {place}", PLAIN), holder=place)
        for place in (2, 5, 9)
    ]
    hashes = [checks.leaf_digest(leaf.outline) for leaf in leaves]
    body = messages.ShareKeysBody((2, 5, 9), shake("commitment", 32), merkle.root(hashes))
    good: dict[str, Any] = {
        "body": view(body), "leaf": view(leaves[1]), "holder": 5,
        "path": [node.hex() for node in merkle.path(hashes, 1)],
    }  # fmt: skip
    for name, change in {
        "of its holder": {},
        "of another holder": {"holder": 2},
        "of another dealer's": {"leaf": view(dataclasses.replace(leaves[1], sealed=b""))},
        "by another path": {"path": [node.hex() for node in merkle.path(hashes, 0)]},
        "of somebody who holds nothing": {"holder": 4},
    }.items():
        yield case(f"the leaf {name}", "leaf.path", check="C09", **{**good, **change})


# ---------------------------------------------------------------------------- plans and rosters


def unchecked(plan: RoundPlan, **changes: Any) -> str:
    """The encoding of a plan that nobody could make."""
    new = object.__new__(RoundPlan)
    vars(new).update({f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)} | changes)
    return new.encode().hex()


def unchecked_roster(members: tuple[Member, ...], committee: tuple[str, ...] = ()) -> str:
    new = object.__new__(Roster)
    vars(new).update(members=members, committee=committee)
    return new.encode().hex()


def plan_cases() -> Iterator[Case]:
    plan, sparse = cohort(5).plan(7), cohort(8).plan(7, max_colluders=0, neighbours=4)
    yield case("complete", "plan.decode", data=plan.encode().hex())
    yield case("suite x25519", "plan.decode", data=cohort(5).plan(7, suite="x25519").encode().hex())
    yield case("sparse", "plan.decode", data=sparse.encode().hex())
    whole = plan.encode()
    quorum = bytes([0, 0, 0, 4] * 3)  # t, q and min_survivors of five with f = 1
    for name, data in (
        ("a trailing byte", whole + b"\0"),
        ("another version", b"\x02" + whole[1:]),
        ("another quorum", whole.replace(quorum, bytes([0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0, 4]))),
        ("an unknown suite", whole.replace(b"x25519-mlkem768", b"x25519-mlkem769")),
        ("an unknown scheme", whole.replace(b"masking", b"maskinG")),
        ("clip is infinite", whole.replace(b"\x3f\xf0" + bytes(6), b"\x7f\xf0" + bytes(6))),
        ("clip is negative zero", whole.replace(b"\x3f\xf0" + bytes(6), b"\x80" + bytes(7))),
    ):
        if data == whole:
            raise AssertionError(name)
        yield case(name, "plan.decode", check="C01", data=data.hex())
    names = plan.cohort
    for name, base, changes in (
        ("round number 0", plan, {"round_number": 0}),
        ("the cohort is not sorted", plan, {"cohort": (*names[1:], names[0])}),
        ("the cohort has a name twice", plan, {"cohort": (names[0], *names[:4])}),
        ("a cohort of two", plan, {"cohort": names[:2]}),
        ("t = f", plan, {"max_colluders": 4, "share_threshold": 4}),
        ("2t = n + f", plan, {"share_threshold": 3}),
        ("t above n", plan, {"share_threshold": 6}),
        ("t = 0", plan, {"share_threshold": 0}),
        ("min_survivors = f + 1", plan, {"min_survivors": 2}),
        ("min_survivors above n", plan, {"min_survivors": 6}),
        ("guard_bits = 3", plan, {"guard_bits": 3}),
        ("the ring is a bit too narrow", plan, {"ring_bits": plan.ring_bits - 1}),
        ("a ring of 65 bits", plan, {"ring_bits": 65}),
        ("max_weight = 0", plan, {"max_weight": 0}),
        ("the weight's ring is too narrow", plan, {"weight_ring_bits": 8, "max_weight": 1 << 40}),
        ("a rotation seed", plan, {"rotation_seed": b"\0"}),
        ("k above n", sparse, {"share_count": 9}),
        ("t above k", sparse, {"share_threshold": 5}),
        ("sparse: 2t = k + c", sparse, {"share_threshold": 2}),
        ("sparse: colluders fill every list", sparse, {"max_colluders": 4, "min_survivors": 7}),
    ):
        data = unchecked(base, **changes)  # type: ignore[arg-type]
        yield case(name, "plan.decode", check="C29", data=data)
    yield from roster_cases()


def roster_cases() -> Iterator[Case]:
    members = cohort(3).roster.members
    yield case("three members", "roster.decode", data=cohort(3).roster.encode().hex())
    forged = dataclasses.replace(members[2], proof=members[1].proof)
    twice = dataclasses.replace(members[2], public_key=members[1].public_key)
    regrouped = dataclasses.replace(members[2], group="other")
    whole = cohort(3).roster.encode()
    for name, check, data in (
        ("a trailing byte", "C01", (whole + b"\0").hex()),
        ("another version", "C01", (b"\x02" + whole[1:]).hex()),
        ("no member", "C38", unchecked_roster(())),
        ("not sorted", "C38", unchecked_roster(members[::-1])),
        ("a line twice", "C38", unchecked_roster((members[0], members[0]))),
        ("one key twice", "C38", unchecked_roster((*members[:2], twice))),
        ("a line under another's signature", "C38", unchecked_roster((*members[:2], forged))),
        ("a line with another group", "C38", unchecked_roster((*members[:2], regrouped))),
        ("a stranger in the committee", "C38", unchecked_roster(members, ("t009",))),
    ):
        yield case(name, "roster.decode", check=check, data=data)
