"""An implementation that shares no line with ours (`independent.py`) gives the vectors' outputs.

It has pycryptodome's X25519, Ed25519, ML-KEM-768 and AES where ours has OpenSSL's, integers where
ours has numpy, and RFC 6962's recursion where ours has levels. Refusals are ours to show
(test_vectors.py): it reads well-formed messages only.
"""

import ast
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from tests.core import independent as other

VECTORS = Path(__file__).parents[1] / "vectors"
SUITES = {"x25519": "", other.HYBRID: "mlkem768"}


@lru_cache(maxsize=32)
def committed(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text())


def unhex(text: str) -> bytes:
    return bytes.fromhex(text)


def test_it_imports_nothing_of_ours() -> None:
    tree = ast.parse(Path(other.__file__).read_text())
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported <= {
        "__future__", "Crypto", "collections", "dataclasses", "fractions", "hashlib", "struct",
        "typing",
    }  # fmt: skip


# ---------------------------------------------------------------------------- operations


def shake(text: str) -> Callable[[int], bytes]:
    import hashlib

    place = 0

    def draw(length: int) -> bytes:
        nonlocal place
        place += length
        name = text.removeprefix("shake ").encode()
        return hashlib.shake_256(name).digest(place)[place - length :]

    return draw


def keys_of(suite: str, seeds: dict[str, dict[str, str]]) -> dict[int, other.Keys]:
    return {
        int(index): other.Keys(
            other.public_keys(suite, "channel seed", unhex(seed["channel"])),
            other.public_keys(suite, "mask seed", unhex(seed["mask"])),
        )
        for index, seed in seeds.items()
    }


def canonical_write(fields: list[tuple[str, Any]]) -> str:
    import struct

    sizes = {"u8": 1, "u32": 4, "u64": 8}
    parts = []
    for kind, value in fields:
        if kind in sizes:
            parts.append(int(value).to_bytes(sizes[kind], "big"))
        elif kind == "f64":
            parts.append(struct.pack(">d", value))
        elif kind == "fixed":
            parts.append(unhex(value))
        else:
            parts.append(other.blob(unhex(value) if kind == "blob" else value.encode()))
    return other.record(*parts).hex()


def shamir_split(secret: str, indices: list[int], threshold: int, randomness: str) -> Any:
    shares = other.shamir_deal(unhex(secret), indices, threshold, shake(randomness))
    return {str(index): share.hex() for index, share in shares.items()}


def shamir_open(shares: dict[str, str]) -> Any:
    secret = other.shamir_open({int(index): unhex(share) for index, share in shares.items()})
    return None if secret is None else secret.hex()


def keystream(key: str, chunk: int, size: int) -> Any:
    data = other.keystream(unhex(key), chunk, size)
    return {"begins": data[:48].hex(), "sha256": other.sha256(data).hex()}


def merkle_tree(leaves: list[str]) -> Any:
    hashes = [other.merkle_leaf(unhex(leaf)) for leaf in leaves]
    paths = [other.merkle_path(hashes, index) for index in range(len(hashes))]
    return {
        "root": other.merkle_root(hashes).hex(),
        "paths": [[node.hex() for node in path] for path in paths],
    }


def ring(levels: list[int], ring_bits: int) -> Any:
    packed = other.pack(levels, ring_bits)
    half = 1 << ring_bits - 1
    centred = [
        (value + half) % (1 << ring_bits) - half
        for value in other.unpack(packed, ring_bits, len(levels))
    ]
    return {"packed": packed.hex(), "centred": centred}


def public_keys(suite: str, kind: str, seed: str) -> Any:
    point, kem = other.public_keys(suite, f"{kind} seed", unhex(seed))
    return {"x25519": point.hex(), "mlkem768": kem.hex()}


def seal(
    suite: str, context: str, seeds: Any, sender: int, receiver: int, plaintext: str, drawn: str
) -> Any:
    keys = keys_of(suite, seeds)
    before, shared = unhex(drawn), b""
    if SUITES[suite]:
        before, shared = other.encapsulate(keys[receiver].channel[1], unhex(drawn))
    point, _ = other.private_keys(suite, "channel seed", unhex(seeds[str(sender)]["channel"]))
    shared += other.x25519(point, keys[receiver].channel[0])
    key = other.bundle_key(unhex(context), sender, receiver, keys, shared, before)
    sealed = other.aead_seal(key, unhex(plaintext), unhex(context))
    return {"encapsulation": before.hex(), "sealed": sealed.hex()}


def opened(
    suite: str,
    context: str,
    seeds: Any,
    sender: int,
    receiver: int,
    encapsulation: str,
    sealed: str,
) -> str:
    return other.open_bundle(
        suite, unhex(context), sender, receiver, keys_of(suite, seeds),
        unhex(seeds[str(receiver)]["channel"]), unhex(encapsulation), unhex(sealed),
    ).hex()  # fmt: skip


def seal_pad(context: str, seeds: Any, dealer: int, holder: int, pad: str, drawn: str) -> Any:
    keys = keys_of(other.HYBRID, seeds)
    ciphertext, shared = other.encapsulate(keys[holder].mask[1], unhex(drawn))
    key = other.pad_key(unhex(context), dealer, holder, keys, shared, ciphertext)
    box = ciphertext + other.aead_seal(key, unhex(pad), unhex(context))
    commitment = other.pad_commitment(unhex(context), dealer, holder, unhex(pad), box)
    return {"box": box.hex(), "commitment": commitment.hex()}


def open_pad(context: str, seeds: Any, dealer: int, holder: int, box: str, commitment: str) -> str:
    seed, keys = unhex(seeds[str(holder)]["mask"]), keys_of(other.HYBRID, seeds)
    pad = other.open_pad(unhex(context), dealer, holder, keys, seed, unhex(box))
    assert other.pad_commitment(unhex(context), dealer, holder, pad, unhex(box)).hex() == commitment
    return pad.hex()


def pairwise_seed(
    suite: str, context: str, seeds: Any, mine: int, theirs: int, pad: str, commitment: str
) -> str:
    keys = keys_of(suite, seeds)
    point, _ = other.private_keys(suite, "mask seed", unhex(seeds[str(mine)]["mask"]))
    shared = other.x25519(point, keys[theirs].mask[0])
    return other.pairwise_seed(
        unhex(context), mine, theirs, keys, shared, unhex(pad), unhex(commitment)
    ).hex()


def signature_sign(seed: str, **covered: str) -> Any:
    signature = other.sign(unhex(seed), unhex(signature_input(**covered)))
    from Crypto.Signature import eddsa

    public = eddsa.import_private_key(unhex(seed)).public_key().export_key(format="raw")
    return {"public_key": public.hex(), "signature": signature.hex()}


def signature_input(suite: str, label: str, sender: str, context: str, body: str) -> str:
    return other.signing_input(suite, label, sender, unhex(context), unhex(body)).hex()


def signature_verify(public_key: str, signature: str, **covered: str) -> bool:
    return other.signed_by(unhex(public_key), unhex(signature_input(**covered)), unhex(signature))


def leaf_outline(leaf: dict[str, Any]) -> Any:
    one = other.Leaf(
        leaf["holder"], unhex(leaf["encapsulation"]), unhex(leaf["sealed"]),
        tuple(map(unhex, leaf["commitments"])), unhex(leaf["pad_box"]),
        unhex(leaf["pad_commitment"]),
    )  # fmt: skip
    return {"outline": one.outline.hex(), "leaf_hash": other.merkle_leaf(one.outline).hex()}


OPERATIONS: dict[str, Callable[..., Any]] = {
    "canonical.write": canonical_write,
    "shamir.split": shamir_split,
    "shamir.open": shamir_open,
    "prg.stream_key": lambda seed, label, context, purpose, vector: other.stream_key(
        unhex(seed), label, unhex(context), purpose, vector
    ).hex(),
    "prg.keystream": keystream,
    "packing.pack": lambda words, bits: other.pack(words, bits).hex(),
    "packing.unpack": lambda data, bits, count: other.unpack(unhex(data), bits, count),
    "encoding.levels": other.levels,
    "encoding.ring": ring,
    "merkle.tree": merkle_tree,
    "merkle.bulk_leaf": lambda data: other.merkle_bulk_leaf(unhex(data)).hex(),
    "hash.labelled": lambda label, context, fields: other.labelled(
        label, unhex(context), *map(unhex, fields)
    ).hex(),
    "signature.input": signature_input,
    "signature.sign": signature_sign,
    "signature.verify": signature_verify,
    "commitment.share": lambda context, kind, dealer, holder, share, opening: (
        other.share_commitment(
            unhex(context), kind, dealer, holder, unhex(share), unhex(opening)
        ).hex()
    ),
    "commitment.secret": lambda context, dealer, secret: other.secret_commitment(
        unhex(context), dealer, unhex(secret)
    ).hex(),
    "commitment.pad": lambda context, dealer, holder, pad, box: other.pad_commitment(
        unhex(context), dealer, holder, unhex(pad), unhex(box)
    ).hex(),
    "leaf.outline": leaf_outline,
    "suite.derive": lambda ikm, salt, info, length: other.hkdf(
        unhex(ikm), unhex(salt), unhex(info), length
    ).hex(),
    "suite.public_keys": public_keys,
    "suite.seal": seal,
    "suite.open": opened,
    "suite.pad": lambda context, mask_seed, dealer, holder: other.pad_of(
        unhex(context), unhex(mask_seed), dealer, holder
    ).hex(),
    "suite.seal_pad": seal_pad,
    "suite.open_pad": open_pad,
    "suite.pairwise_seed": pairwise_seed,
    "graph.draw": lambda n, index, k, randomness: other.draw_neighbours(
        n, index, k, shake(randomness)
    ),
}
FILES = ("canonical", "hashes", "suites", "shamir", "merkle", "prg", "packing", "encoding", "graph")
CASES = [
    pytest.param(case, id=f"{name}: {case['operation']}: {case['name']}")
    for name in FILES
    for case in committed(name)
    if "output" in case and case["operation"] in OPERATIONS
]


@pytest.mark.parametrize("case", CASES)
def test_it_gives_the_output_of_every_vector(case: dict[str, Any]) -> None:
    assert OPERATIONS[case["operation"]](**case["input"]) == case["output"]


# ---------------------------------------------------------------------------- whole rounds


ROUNDS = ("round-x25519", "round-hybrid", "round-sparse")


@lru_cache(maxsize=4)
def heard(name: str) -> other.Round:
    """A round as a coordinator of that implementation would hear it; every signature holds."""
    facts = committed(name)
    plan = other.Plan(unhex(facts["plan"]))
    public = {
        row["index"]: unhex(signature_sign(row["identity_seed"], **COVERED)["public_key"])
        for row in facts["tenants"]
    }
    found = other.Round(plan, public)
    for row in facts["messages"]:
        if "from" in row:
            sender = plan.cohort.index(row["from"])
            found.hear(row["message"], unhex(row["bytes"]), row.get("offset", 0), sender)
    return found


COVERED = {"suite": "", "label": "", "sender": "", "context": "", "body": ""}


def tenants(name: str) -> list[dict[str, Any]]:
    return list(committed(name)["tenants"])


@pytest.mark.parametrize("name", ROUNDS)
def test_it_reads_the_roster_and_the_plan(name: str) -> None:
    facts, found = committed(name), heard(name)
    assert found.plan.context.hex() == facts["context"]
    lines = b"".join(
        other.blob(who.encode()) + found.public[index] + other.blob(b"")
        + other.sign(unhex(tenants(name)[index]["identity_seed"]), roster_line(found, index, who))
        for index, who in enumerate(found.plan.cohort)
    )  # fmt: skip
    n = len(found.plan.cohort)
    roster = other.record(other.tag("roster"), other.u32(n), lines, other.u32(0))
    assert roster.hex() == facts["roster"]
    assert other.sha256(roster).hex() == facts["roster_digest"]


def roster_line(found: other.Round, index: int, who: str) -> bytes:
    line = other.record(
        other.tag("member"), other.blob(who.encode()), found.public[index], other.blob(b"")
    )
    return other.signing_input("", "roster entry", who, bytes(32), line)


@pytest.mark.parametrize("name", ROUNDS)
def test_it_derives_the_advertised_keys(name: str) -> None:
    found = heard(name)
    for row in tenants(name):
        assert found.keys[row["index"]] == other.Keys(
            other.public_keys(found.plan.suite, "channel seed", unhex(row["channel_seed"])),
            other.public_keys(found.plan.suite, "mask seed", unhex(row["mask_seed"])),
        )


@pytest.mark.parametrize("name", ROUNDS)
def test_it_opens_every_bundle_and_the_shares_are_of_the_seeds(name: str) -> None:
    found = heard(name)
    shares: dict[int, dict[int, tuple[bytes, bytes]]] = {}
    for row in tenants(name):
        for dealer, pair in found.shares_of(row["index"], unhex(row["channel_seed"])).items():
            shares.setdefault(dealer, {})[row["index"]] = pair
    for row in tenants(name):
        held = list(shares[row["index"]].items())
        for kind, seed in enumerate(("self_mask_seed", "mask_seed")):
            # On the complete graph the dealer keeps one share itself: t of the others do as well.
            for some in (held[: found.plan.threshold], held[-found.plan.threshold :]):
                secret = other.shamir_open({holder: pair[kind] for holder, pair in some})
                assert secret == unhex(row[seed])
        _, commitment, root = other.read_dealing_body(found.signed["share_keys"][row["index"]].body)
        context, seed = found.plan.context, unhex(row["self_mask_seed"])
        assert commitment == other.secret_commitment(context, row["index"], seed)
        leaves = found.leaves[row["index"]]
        assert root == other.merkle_root([other.merkle_leaf(leaf.outline) for leaf in leaves])


@pytest.mark.parametrize("name", ROUNDS)
def test_it_derives_pads_and_pairwise_seeds_from_either_end(name: str) -> None:
    found, facts = heard(name), committed(name)
    masks = {row["index"]: unhex(row["mask_seed"]) for row in tenants(name)}
    for row in facts["pads"]:
        place = row["dealer"], row["holder"]
        box = found.leaf(*place).box
        pad = other.pad_of(found.plan.context, masks[row["dealer"]], *place)
        assert pad.hex() == row["pad"]
        back = other.open_pad(found.plan.context, *place, found.keys, masks[row["holder"]], box)
        assert back == pad
        sealed_to = found.keys[row["holder"]].mask[1]
        assert other.encapsulate(sealed_to, unhex(row["m"]))[0] == box[:1088]
        commitment = other.pad_commitment(found.plan.context, *place, pad, box)
        assert commitment.hex() == row["commitment"] == found.leaf(*place).pad_commitment.hex()
    for row in facts["pairwise_seeds"]:
        for mine, theirs in ((row["low"], row["high"]), (row["high"], row["low"])):
            assert found.pair_seed(mine, theirs, masks[mine]).hex() == row["seed"]
    pairs = {frozenset((i, j)) for i in found.members for j in found.neighbours(i)}
    assert {frozenset((row["low"], row["high"])) for row in facts["pairwise_seeds"]} == pairs


@pytest.mark.parametrize("name", ROUNDS)
def test_it_encodes_and_masks_every_upload_byte_for_byte(name: str) -> None:
    found = heard(name)
    for row in tenants(name):
        if "levels" not in row:
            continue
        plan, seed = found.plan, unhex(row["rounding_seed"])
        uniform = other.rounding_words(seed, plan.context, 0, plan.length)
        factor = row["weight"] / plan.max_weight
        levels = other.levels(plan.clip, plan.value_bits, row["vector"], factor, uniform)
        assert levels == row["levels"]
        seeds = unhex(row["mask_seed"]), unhex(row["self_mask_seed"])
        made = found.upload_of(row["index"], levels, row["weight"], *seeds)
        assert made == found.uploads[row["index"]]


@pytest.mark.parametrize("name", ROUNDS)
def test_it_agrees_on_every_digest_and_bundles_what_was_announced(name: str) -> None:
    found, facts = heard(name), committed(name)
    for digest in ("directory_digest", "dealings_digest", "view", "members_digest"):
        assert getattr(found, digest).hex() == facts[digest]
    announced = {row["message"]: row["bytes"] for row in facts["messages"] if "bytes" in row}
    assert found.directory.hex() == announced["key_directory"]
    for kind, label, message, senders in (
        ("AgreedView", "acknowledge", "agreed_view", found.members),
        ("SurvivorSet", "upload_commitment", "survivor_set", found.survivors),
        ("Quorum", "consistency_check", "quorum", found.survivors[: found.plan.quorum]),
    ):
        assert found.bundled(kind, label, senders).hex() == announced[message]


@pytest.mark.parametrize("name", ROUNDS)
def test_it_delivers_the_same_leaves_with_the_same_paths(name: str) -> None:
    found = heard(name)
    for row in committed(name)["messages"]:
        if row["message"] == "share_delivery":
            data = found.delivery(found.plan.cohort.index(row["to"][0]))
            assert other.sha256(data).hex() == row.get("sha256", other.sha256(data).hex())
            assert row.get("bytes", data.hex()) == data.hex()


@pytest.mark.parametrize("name", ROUNDS)
def test_it_opens_the_same_sum_from_what_was_sent(name: str) -> None:
    found, facts = heard(name), committed(name)
    level_sum, weight = found.open()
    assert (level_sum, weight) == (facts["level_sum"], facts["total_weight"])
    assert [found.plan.cohort[i] for i in found.survivors] == facts["survivors"]
    inputs = [row for row in tenants(name) if row["tenant"] in facts["survivors"]]
    assert level_sum == [
        sum(column) for column in zip(*(row["levels"] for row in inputs), strict=True)
    ]
    assert weight == sum(row["weight"] for row in inputs)
    assert other.sum_root(level_sum, weight).hex() == facts["sum_root"]


@pytest.mark.parametrize("name", ROUNDS)
def test_it_writes_the_same_transcript(name: str) -> None:
    found, facts = heard(name), committed(name)
    whole, digest = found.transcript(unhex(facts["roster"]))
    assert digest.hex() == facts["transcript_digest"]
    kept = {row["round"]: row["bytes"] for row in committed("transcripts")["transcripts"]}
    assert whole.hex() == kept.get(name, whole.hex())
