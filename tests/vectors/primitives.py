"""Canonical bytes, shares, keystreams, packing, encoding and trees."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from secagg import merkle
from secagg.canonical import Reader, Writer
from secagg.encoding import (
    Quantiser,
    RoundingStream,
    from_ring,
    ring_bits_needed,
    to_ring,
)
from secagg.packing import pack, unpack
from secagg.prg import Keystream, stream_key, word_dtype
from secagg.secret import MaskSeed, RoundingSeed, SelfMaskShare, StreamKey
from secagg.shamir import PRIME, Interpolation, parse_share, split
from tests.vectors.cases import Case, case, operation, shake, stream

operation("encoding.ring_bits_needed")(ring_bits_needed)


@operation("canonical.write")
def canonical_write(fields: Sequence[tuple[str, Any]]) -> str:
    writer = Writer()
    for kind, value in fields:
        if kind == "fixed":
            writer.fixed(bytes.fromhex(value), len(value) // 2)
        else:
            getattr(writer, kind)(bytes.fromhex(value) if kind == "blob" else value)
    return writer.finish().hex()


@operation("canonical.read")
def canonical_read(data: str, fields: Sequence[str]) -> list[Any]:
    reader = Reader(bytes.fromhex(data), "vector")
    values: list[Any] = []
    for field in fields:
        kind, *argument = field.split(" ")
        match kind:
            case "tag":
                reader.tag(*argument)
            case "fixed":
                values.append(reader.fixed(int(argument[0])).hex())
            case "blob":
                values.append(reader.blob().hex())
            case _:
                values.append(getattr(reader, kind)())
    reader.end()
    return values


@operation("shamir.split")
def shamir_split(
    secret: str, indices: list[int], threshold: int, randomness: str
) -> dict[str, str]:
    shares = split(
        MaskSeed(bytes.fromhex(secret)),
        indices,
        threshold,
        SelfMaskShare,
        stream(randomness.removeprefix("shake ")),
    )
    return {str(index): share.expose().hex() for index, share in shares.items()}


@operation("shamir.open")
def shamir_open(shares: dict[str, str]) -> str | None:
    kept = [parse_share(bytes.fromhex(share), SelfMaskShare) for share in shares.values()]
    secret = Interpolation([int(index) for index in shares]).at_zero(kept)
    return None if secret is None else secret.hex()


@operation("prg.stream_key")
def prg_stream_key(seed: str, label: str, context: str, purpose: str, vector: int) -> str:
    key = stream_key(
        MaskSeed(bytes.fromhex(seed)),
        label=label,
        context=bytes.fromhex(context),
        purpose=purpose,
        vector=vector,
    )
    return key.expose().hex()


@operation("prg.keystream")
def prg_keystream(key: str, chunk: int, size: int) -> dict[str, str]:
    out = np.empty(size, np.uint8)
    Keystream(StreamKey(bytes.fromhex(key))).fill(chunk, out)
    return {"begins": out[:48].tobytes().hex(), "sha256": hashlib.sha256(out.data).hexdigest()}


@operation("packing.pack")
def packing_pack(words: list[int], bits: int) -> str:
    return pack(np.array(words, np.uint64).astype(word_dtype(bits)), bits).hex()


@operation("packing.unpack")
def packing_unpack(data: str, bits: int, count: int) -> list[int]:
    return [int(word) for word in unpack(bytes.fromhex(data), bits, count)]


@operation("encoding.levels")
def encoding_levels(
    clip: float, value_bits: int, values: list[float], factor: float, uniform: list[int]
) -> list[int]:
    quantiser = Quantiser(clip, value_bits)
    levels = quantiser.levels(np.array(values), factor, np.array(uniform, np.uint32))
    return [int(level) for level in levels]


@operation("encoding.ring")
def encoding_ring(levels: list[int], ring_bits: int) -> dict[str, Any]:
    packed = pack(to_ring(np.array(levels, np.int64), ring_bits), ring_bits)
    centred = from_ring(unpack(packed, ring_bits, len(levels)), ring_bits)
    return {"packed": packed.hex(), "centred": [int(value) for value in centred]}


@operation("encoding.rounding_words")
def encoding_rounding_words(
    seed: str, context: str, vector: int, chunk: int, count: int
) -> dict[str, Any]:
    stream = RoundingStream(RoundingSeed(bytes.fromhex(seed)), bytes.fromhex(context), vector)
    words = stream.words(chunk, count)
    return {
        "begins": [int(word) for word in words[:4]],
        "sha256": hashlib.sha256(words.tobytes()).hexdigest(),
    }


@operation("merkle.tree")
def merkle_tree(leaves: list[str]) -> dict[str, Any]:
    hashes = [merkle.leaf_hash(bytes.fromhex(leaf)) for leaf in leaves]
    return {
        "root": merkle.root(hashes).hex(),
        "paths": [[node.hex() for node in path] for path in merkle.paths(hashes)],
    }


@operation("merkle.bulk_leaf")
def merkle_bulk_leaf(data: str) -> str:
    return merkle.bulk_leaf_hash(bytes.fromhex(data)).hex()


@operation("merkle.verify")
def merkle_verify(leaf: str, index: int, size: int, path: list[str], root: str) -> bool:
    nodes = [bytes.fromhex(node) for node in path]
    return merkle.verify_path(
        merkle.leaf_hash(bytes.fromhex(leaf)), index, size, nodes, bytes.fromhex(root)
    )


def canonical_cases() -> Iterator[Case]:
    fields = [
        ("tag", "vector"), ("u8", 255), ("u32", 16909060), ("u64", 2**64 - 1),
        ("f64", -0.1), ("fixed", "000102"), ("blob", ""), ("text", "Zoë"),
    ]  # fmt: skip
    types = ["tag vector", "u8", "u32", "u64", "f64", "fixed 3", "blob", "text"]
    data = canonical_write(fields)
    yield case("one field of every kind", "canonical.write", fields=fields)
    yield case("one field of every kind", "canonical.read", data=data, fields=types)
    for name, field in {
        "negative zero": ("f64", -0.0),
        "a decomposed letter": ("text", "Zoe\u0308"),
        "a byte of 256": ("u8", 256),
        "a negative number": ("u64", -1),
    }.items():
        yield case(name, "canonical.write", fields=[field])
    for name, bad, kinds in (
        ("trailing byte", data + "00", types),
        ("one byte short", data[:-2], types),
        ("another tag", data, ["tag vectors", *types[1:]]),
        ("another version", "02" + data[2:], types),
        ("empty", "", []),
        ("negative zero", "018000000000000000", ["f64"]),
        ("infinity", "017ff0000000000000", ["f64"]),
        ("not a number", "017ff8000000000001", ["f64"]),
        ("a decomposed letter", "010000000365cc88", ["text"]),
        ("text that is not UTF-8", "0100000001ff", ["text"]),
        ("a blob longer than the record", "0100000002ff", ["blob"]),
        ("a blob over the limit", "01ffffffff", ["blob"]),
    ):
        yield case(name, "canonical.read", data=bad, fields=kinds)


def shamir_cases() -> Iterator[Case]:
    secret = shake("secret", 32).hex()
    for name, value, indices, threshold in (
        ("3 of 5", secret, [0, 1, 2, 3, 4], 3),
        ("indices with gaps", secret, [7, 2, 1000], 2),
        ("threshold 1 deals the secret itself", "00" * 32, [4], 1),
        ("the largest secret", "ff" * 32, [0, 1, 2], 3),
        ("an index stands twice", secret, [0, 1, 1], 2),
        ("a negative index", secret, [-1, 0], 2),
        ("threshold above the holders", secret, [0, 1], 3),
        ("threshold 0", secret, [0, 1], 0),
    ):
        yield case(
            name,
            "shamir.split",
            secret=value,
            indices=indices,
            threshold=threshold,
            randomness="shake coefficients",
        )
    shares = shamir_split(secret, [0, 1, 2, 3, 4], 3, "shake coefficients")
    yield case("any three", "shamir.open", shares={i: shares[i] for i in "420"})
    yield case("all five", "shamir.open", shares=shares)
    for name, number in (
        ("a share of 0 is valid", 0),
        ("2^256 is no secret", 2**256),
        ("p - 1 is a share and no secret", PRIME - 1),
        ("p is no share", PRIME),
    ):
        yield case(name, "shamir.open", shares={"3": number.to_bytes(33).hex()})
    yield case("a share of 32 bytes", "shamir.open", shares={"3": "00" * 32})


def prg_cases() -> Iterator[Case]:
    base: dict[str, Any] = {
        "seed": shake("seed", 32).hex(),
        "label": "secagg/1",
        "context": shake("context", 32).hex(),
        "purpose": "mask",
        "vector": 0,
    }
    yield case("a stream key", "prg.stream_key", **base)
    yield case("another vector", "prg.stream_key", **{**base, "vector": 1})
    yield case("another purpose", "prg.stream_key", **{**base, "purpose": "self"})
    key = prg_stream_key(**base)
    for chunk in (0, 1, 255, 2**32, 2**95):
        yield case(f"chunk {chunk}, all of it", "prg.keystream", key=key, chunk=chunk, size=262144)
    yield case("a short last chunk", "prg.keystream", key=key, chunk=1, size=50)
    yield case("more than a chunk", "prg.keystream", key=key, chunk=1, size=262145)


def packing_cases() -> Iterator[Case]:
    for bits in (8, 11, 16, 17, 24, 26, 31, 32, 33, 48, 63, 64):
        size = word_dtype(bits).itemsize
        drawn = shake(f"words of {bits} bits", 9 * size)
        words = [int(word) for word in np.frombuffer(drawn, word_dtype(bits))]
        yield case(f"nine of {bits} bits", "packing.pack", words=words, bits=bits)
        packed = packing_pack(words, bits)
        yield case(f"nine of {bits} bits", "packing.unpack", data=packed, bits=bits, count=9)
    yield case("no value", "packing.pack", words=[], bits=24)
    for name, data, bits, count in (
        ("no value", "", 24, 0),
        ("a byte too many", "000000", 8, 2),
        ("a byte too few", "00", 8, 2),
        ("the first padding bit is set", "000002", 17, 1),
        ("the last padding bit is set", "000080", 17, 1),
        ("7 bits", "00", 7, 1),
        ("65 bits", "00" * 9, 65, 1),
    ):
        yield case(name, "packing.unpack", data=data, bits=bits, count=count)


def encoding_cases() -> Iterator[Case]:
    edge = [-2.0, -1.0, -0.5, 0.0, 1e-9, 0.5, 1.0, 2.0]
    for name, clip, value_bits, values, factor, uniform in (
        ("16 bits, smallest random words", 1.0, 16, edge, 1.0, [0] * 8),
        ("16 bits, largest random words", 1.0, 16, edge, 1.0, [2**32 - 1] * 8),
        ("16 bits, halves", 1.0, 16, edge, 1.0, [2**31] * 8),
        ("weighted", 0.75, 8, edge, 0.25, [2**31] * 8),
        ("4 bits", 1.0, 4, edge, 1.0, [2**31] * 8),
        ("32 bits", 1.0, 32, edge, 1.0, [2**32 - 1] * 8),
        ("3 bits", 1.0, 3, edge, 1.0, [0] * 8),
        ("33 bits", 1.0, 33, edge, 1.0, [0] * 8),
        ("a clip of 0", 0.0, 16, edge, 1.0, [0] * 8),
        ("a factor above 1", 1.0, 16, edge, 1.5, [0] * 8),
    ):
        yield case(
            name,
            "encoding.levels",
            clip=clip,
            value_bits=value_bits,
            values=values,
            factor=factor,
            uniform=uniform,
        )
    ends = [-(2**15), -1, 0, 1, 2**15 - 1]
    yield case("16 bits of ring", "encoding.ring", levels=ends, ring_bits=16)
    yield case("24 bits of ring", "encoding.ring", levels=ends, ring_bits=24)
    for chunk, count in ((0, 131072), (5, 65536), (5, 3), (5, 131073)):
        yield case(
            f"{count} rounding words of chunk {chunk}",
            "encoding.rounding_words",
            seed=shake("rounding", 32).hex(),
            context=shake("context", 32).hex(),
            vector=0,
            chunk=chunk,
            count=count,
        )
    for value_bits, n, guard_bits in ((16, 10, 4), (16, 1, 4), (8, 256, 4), (32, 2**28, 4),
                                      (32, 2**28 + 1, 4), (16, 0, 4), (16, 10, 3)):  # fmt: skip
        yield case(
            f"{value_bits} bits of {n}",
            "encoding.ring_bits_needed",
            value_bits=value_bits,
            n=n,
            guard_bits=guard_bits,
        )


def merkle_cases() -> Iterator[Case]:
    leaves = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657",
              "606162636465666768696a6b6c6d6e6f"]  # fmt: skip
    for size in range(9):
        yield case(f"{size} leaves", "merkle.tree", leaves=leaves[:size])
    for data in (*leaves, "00" * 1025):
        yield case(f"a bulk leaf of {len(data) // 2} bytes", "merkle.bulk_leaf", data=data)
    tree = merkle_tree(leaves[:7])
    good: Case = {"leaf": leaves[6], "index": 6, "size": 7, "path": tree["paths"][6]}
    changes: dict[str, Case] = {
        "the last of seven": {},
        "another leaf": {"leaf": leaves[5]},
        "another index": {"index": 5},
        "an index beyond the size": {"index": 7},
        "another size": {"size": 8},
        "a node too many": {"path": [*good["path"], tree["root"]]},
        "a node too few": {"path": good["path"][:-1]},
        "a short node": {"path": [good["path"][0][:-2], *good["path"][1:]]},
    }
    for name, changed in changes.items():
        yield case(name, "merkle.verify", root=tree["root"], **{**good, **changed})
