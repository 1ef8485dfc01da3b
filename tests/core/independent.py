"""The protocol's derivations once more, from the documents: pycryptodome, hashlib and integers.

Written from docs/protocol.md and docs/vectors.md; shares no line with `secagg` and imports nothing
of it (a test says so). What both compute alike has been understood twice. Not for use: it is slow,
nothing runs in constant time, and messages are read only as far as a check needs them.

Sources: RFC 5869, 6962, 7748, 8032; FIPS 203; NIST SP 800-38A and 800-38D; O'Connor et al.,
"BLAKE3" (2021).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from Crypto.Cipher import AES
from Crypto.Hash import SHA256
from Crypto.Protocol import DH
from Crypto.Protocol.KDF import HKDF
from Crypto.PublicKey import MLKEM
from Crypto.Signature import eddsa

PRIME = 2**256 + 297
CHUNK = 1 << 18
HYBRID = "x25519-mlkem768"
KEM_CIPHERTEXT = 1088


# ---------------------------------------------------------------------------- encoding


def blob(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def tag(name: str) -> bytes:
    return blob(name.encode())


def u32(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, "big") for number in numbers)


def record(*parts: bytes) -> bytes:
    """Parts behind the version of the encoding."""
    return b"\x01" + b"".join(parts)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def labelled(label: str, context: bytes, *fields: bytes) -> bytes:
    """H(label, context, fields...)."""
    return sha256(record(tag("secagg/1 hash"), tag(label), context, *map(blob, fields)))


class Cursor:
    """Reads the fields of a message that is known to be well-formed."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        piece = self.data[self.at : self.at + size]
        if len(piece) != size:
            raise ValueError("it ends too soon")
        self.at += size
        return piece

    def number(self, size: int = 4) -> int:
        return int.from_bytes(self.take(size), "big")

    def blob(self) -> bytes:
        return self.take(self.number())

    def tag(self, name: str) -> None:
        if self.blob() != name.encode():
            raise ValueError(f"{name} expected")

    def many(self, read: Callable[[], Any]) -> list[Any]:
        return [read() for _ in range(self.number())]

    def end(self) -> None:
        if self.at != len(self.data):
            raise ValueError("it goes on")


def reading(data: bytes) -> Cursor:
    cursor = Cursor(data)
    if cursor.number(1) != 1:
        raise ValueError("another version")
    return cursor


# ---------------------------------------------------------------------------- primitives


def hkdf(ikm: bytes, salt: bytes, info: bytes, length: int = 32) -> bytes:
    # pycryptodome refuses an empty salt; RFC 5869, section 2.2: then it is 32 zeros.
    return bytes(HKDF(ikm, length, salt or bytes(32), SHA256, context=info))


def x25519_public(private: bytes) -> bytes:
    return bytes(DH.import_x25519_private_key(private).public_key().export_key(format="raw"))


def x25519(private: bytes, public: bytes) -> bytes:
    return bytes(
        DH.key_agreement(
            static_priv=DH.import_x25519_private_key(private),
            static_pub=DH.import_x25519_public_key(public),
            kdf=bytes,
        )
    )


def kem_private(seed: bytes) -> MLKEM.MLKEMKey:
    return MLKEM.construct(param_set=MLKEM.ML_KEM_768, seed=seed)


def encapsulate(public: bytes, m: bytes) -> tuple[bytes, bytes]:
    """FIPS 203, algorithm 17, with its random m: (ciphertext, shared secret)."""
    shared, ciphertext = MLKEM.construct(param_set=MLKEM.ML_KEM_768, ek=public)._encaps(m)
    return ciphertext, shared


def decapsulate(seed: bytes, ciphertext: bytes) -> bytes:
    return kem_private(seed)._decaps(ciphertext)


def aead_seal(key: bytes, plain: bytes, associated: bytes) -> bytes:
    """AES-256-GCM under the zero nonce: ciphertext, then the tag."""
    cipher = AES.new(key, AES.MODE_GCM, nonce=bytes(12))
    cipher.update(associated)
    return b"".join(cipher.encrypt_and_digest(plain))


def aead_open(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    cipher = AES.new(key, AES.MODE_GCM, nonce=bytes(12))
    cipher.update(associated)
    return bytes(cipher.decrypt_and_verify(sealed[:-16], sealed[-16:]))


def sign(seed: bytes, message: bytes) -> bytes:
    return bytes(eddsa.new(eddsa.import_private_key(seed), "rfc8032").sign(message))


def signed_by(public: bytes, message: bytes, signature: bytes) -> bool:
    try:
        eddsa.new(eddsa.import_public_key(public), "rfc8032").verify(message, signature)
    except ValueError:
        return False
    return True


def signing_input(suite: str, label: str, sender: str, context: bytes, body: bytes) -> bytes:
    return record(
        tag("secagg/1"), tag(suite), tag(label), blob(sender.encode()), context, sha256(body)
    )


def blake3(data: bytes) -> bytes:
    """The BLAKE3 paper, section 2.2 to 2.4, in its recursive form."""
    if len(data) <= 1024:
        return _blake3_root(*_blake3_chunk(data, 0))
    return _blake3_root(*_blake3_parent(data, 0))


_IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB,
       0x5BE0CD19)  # fmt: skip
_PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
_DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
_CHUNK_START, _CHUNK_END, _PARENT, _ROOT = 1, 2, 4, 8
_Node = tuple[Sequence[int], list[int], int, int, int]
"""Of a compression: chaining value, block, counter, length, flags."""


def _compress(
    value: Sequence[int], block: list[int], counter: int, length: int, flags: int
) -> list[int]:
    v = [*value, *_IV[:4], counter % 2**32, counter >> 32, length, flags]
    for _ in range(7):
        pairs = iter(block)
        for a, b, c, d in (*_COLUMNS, *_DIAGONALS):
            for right in ((16, 12), (8, 7)):
                v[a] = (v[a] + v[b] + next(pairs)) % 2**32
                v[d] = _rotated(v[d] ^ v[a], right[0])
                v[c] = (v[c] + v[d]) % 2**32
                v[b] = _rotated(v[b] ^ v[c], right[1])
        block = [block[place] for place in _PERMUTATION]
    return [v[i] ^ v[i + 8] for i in range(8)]


def _rotated(word: int, right: int) -> int:
    return (word >> right | word << 32 - right) % 2**32


def _blake3_chunk(data: bytes, counter: int) -> _Node:
    blocks = [data[at : at + 64] for at in range(0, len(data), 64)] or [b""]
    value: Sequence[int] = _IV
    for number, block in enumerate(blocks):
        flags = _CHUNK_START * (number == 0) | _CHUNK_END * (number == len(blocks) - 1)
        node = (value, words(block.ljust(64, b"\0"), 4), counter, len(block), flags)
        if number < len(blocks) - 1:
            value = _compress(*node)
    return node


def _blake3_value(data: bytes, first: int) -> list[int]:
    if len(data) <= 1024:
        return _compress(*_blake3_chunk(data, first))
    return _compress(*_blake3_parent(data, first))


def _blake3_parent(data: bytes, first: int) -> _Node:
    """Its left side is the largest power of two of chunks that leaves something to the right."""
    left = 1 << (-(-len(data) // 1024) - 1).bit_length() - 1
    sides = _blake3_value(data[: left * 1024], first)
    sides += _blake3_value(data[left * 1024 :], first + left)
    return (_IV, sides, 0, 64, _PARENT)


def _blake3_root(
    value: Sequence[int], block: list[int], counter: int, length: int, flags: int
) -> bytes:
    out = _compress(value, block, 0, length, flags | _ROOT)
    return b"".join(word.to_bytes(4, "little") for word in out)


# ---------------------------------------------------------------------------- shares and trees


def shamir_deal(
    secret: bytes, indices: Sequence[int], threshold: int, draw: Callable[[int], bytes]
) -> dict[int, bytes]:
    """Coefficients come highest power first; 33 bytes of a block each, if below p."""
    coefficients: list[int] = []
    while len(coefficients) < threshold - 1:
        block = draw(2 * (threshold - 1 - len(coefficients)) * 33)
        pieces = [block[at : at + 33] for at in range(0, len(block), 33)]
        values = [int.from_bytes(piece, "big") % 2**257 for piece in pieces]
        coefficients += [value for value in values if value < PRIME]
        coefficients = coefficients[: threshold - 1]
    powers = [int.from_bytes(secret, "big"), *reversed(coefficients)]
    return {
        index: (sum(c * (index + 1) ** power for power, c in enumerate(powers)) % PRIME).to_bytes(
            33, "big"
        )
        for index in indices
    }


def shamir_open(shares: dict[int, bytes]) -> bytes | None:
    points = {index + 1: int.from_bytes(share, "big") for index, share in shares.items()}
    value = 0
    for x, y in points.items():
        for other in points:
            if other != x:
                y = y * other * pow(other - x, -1, PRIME) % PRIME
        value += y
    value %= PRIME
    return value.to_bytes(32, "big") if value < 2**256 else None


def merkle_leaf(data: bytes) -> bytes:
    return sha256(b"\0" + data)


def merkle_bulk_leaf(data: bytes) -> bytes:
    """A leaf whose data is the BLAKE3 digest of what it stands for."""
    return merkle_leaf(blake3(data))


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, section 2.1, over leaf hashes: split at the largest power of two below n."""
    if len(leaves) < 2:
        return leaves[0] if leaves else sha256(b"")
    at = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\1" + merkle_root(leaves[:at]) + merkle_root(leaves[at:]))


def merkle_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    if len(leaves) < 2:
        return []
    at = 1 << (len(leaves) - 1).bit_length() - 1
    if index < at:
        return [*merkle_path(leaves[:at], index), merkle_root(leaves[at:])]
    return [*merkle_path(leaves[at:], index - at), merkle_root(leaves[:at])]


def sum_root(level_sum: Sequence[int], weight: int) -> bytes:
    """Of a sum whose vectors fit one leaf each."""
    vectors = (level_sum, [weight])
    data = [b"".join(v.to_bytes(8, "little", signed=True) for v in one) for one in vectors]
    return merkle_root([merkle_bulk_leaf(leaf) for leaf in data])


def share_commitment(
    context: bytes, kind: int, dealer: int, holder: int, share: bytes, opening: bytes
) -> bytes:
    return labelled("share commitment", context, u32(kind, dealer, holder), share, opening)


def secret_commitment(context: bytes, dealer: int, secret: bytes) -> bytes:
    return labelled("secret commitment", context, u32(dealer), secret)


def draw_neighbours(n: int, index: int, k: int, draw: Callable[[int], bytes]) -> list[int]:
    """Floyd's sampling of k out of n - 1, each candidate by rejection."""
    chosen: set[int] = set()
    for last in range(n - 1 - k, n - 1):
        bits = last.bit_length()
        while (value := int.from_bytes(draw(-(-bits // 8)), "big") % (1 << bits)) > last:
            pass
        chosen.add(last if value in chosen else value)
    return sorted(other + 1 if other >= index else other for other in chosen)


# ---------------------------------------------------------------------------- streams and words


def word_bytes(bits: int) -> int:
    return 2 if bits <= 16 else 4 if bits <= 32 else 8


def stream_key(seed: bytes, label: str, context: bytes, purpose: str, vector: int) -> bytes:
    return hkdf(seed, b"", record(tag(label), blob(context), tag(purpose), u32(vector)))


def keystream(key: bytes, chunk: int, size: int) -> bytes:
    cipher = AES.new(key, AES.MODE_CTR, nonce=chunk.to_bytes(12, "big"), initial_value=2)
    return bytes(cipher.encrypt(bytes(size)))


def words(data: bytes, size: int) -> list[int]:
    return [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]


def pack(values: Iterable[int], bits: int) -> bytes:
    stream, count = 0, 0
    for count, value in enumerate(values, 1):
        stream |= value % (1 << bits) << bits * (count - 1)
    return stream.to_bytes((count * bits + 7) // 8, "little")


def unpack(data: bytes, bits: int, count: int) -> list[int]:
    stream = int.from_bytes(data, "little")
    if len(data) != (count * bits + 7) // 8 or stream >> count * bits:
        raise ValueError("another length, or stray bits")
    return [stream >> bits * i & (1 << bits) - 1 for i in range(count)]


def levels(
    clip: float, value_bits: int, values: Sequence[float], factor: float, uniform: Sequence[int]
) -> list[int]:
    """Stochastic rounding in fixed point: floor(x + u), both in steps of 2^-b."""
    most, b = 2 ** (value_bits - 1) - 1, min(32, 50 - value_bits)
    steps = most / clip * factor
    clipped = (max(-most, min(most, value * steps)) for value in values)
    return [
        (round(Fraction(x) * 2**b) + (u >> 32 - b)) >> b
        for x, u in zip(clipped, uniform, strict=True)
    ]


def rounding_words(seed: bytes, context: bytes, vector: int, count: int) -> list[int]:
    """Those of the first chunk of coordinates, up to 65,536 of them."""
    key = stream_key(seed, "secagg/rounding", context, "rounding", vector)
    return words(keystream(key, 0, 4 * count), 4)


# ---------------------------------------------------------------------------- suites


@dataclass(frozen=True)
class Keys:
    """Advertised: (X25519, ML-KEM) of the channel and of the masks; KEM keys may be empty."""

    channel: tuple[bytes, bytes]
    mask: tuple[bytes, bytes]


def private_keys(suite: str, purpose: str, seed: bytes) -> tuple[bytes, bytes]:
    """(X25519 scalar, ML-KEM seed d || z or nothing); purpose: "channel seed" or "mask seed"."""
    kem = b""
    if suite == HYBRID:
        kem = hkdf(seed, b"", record(tag(purpose), tag("mlkem768")), 64)
    return hkdf(seed, b"", record(tag(purpose), tag("x25519"))), kem


def public_keys(suite: str, purpose: str, seed: bytes) -> tuple[bytes, bytes]:
    point, kem = private_keys(suite, purpose, seed)
    return x25519_public(point), kem_private(kem).ek if kem else b""


def _both(first: tuple[bytes, bytes], second: tuple[bytes, bytes]) -> bytes:
    return first[0] + blob(first[1]) + second[0] + blob(second[1])


def bundle_key(
    context: bytes, sender: int, receiver: int, keys: dict[int, Keys], shared: bytes, before: bytes
) -> bytes:
    """`shared`: the KEM's secret (nothing in suite x25519), then X25519's."""
    both = _both(keys[sender].channel, keys[receiver].channel)
    return hkdf(shared, context, record(tag("bundle"), u32(sender, receiver), both, blob(before)))


def pad_key(
    context: bytes, dealer: int, holder: int, keys: dict[int, Keys], shared: bytes, before: bytes
) -> bytes:
    both = _both(keys[dealer].mask, keys[holder].mask)
    return hkdf(shared, context, record(tag("padbox"), u32(dealer, holder), both, blob(before)))


def pad_of(context: bytes, mask_seed: bytes, dealer: int, holder: int) -> bytes:
    return hkdf(mask_seed, context, record(tag("pad"), u32(dealer, holder)))


def pad_commitment(context: bytes, dealer: int, holder: int, pad: bytes, box: bytes) -> bytes:
    return labelled("pad", context, u32(dealer, holder), pad, box[:KEM_CIPHERTEXT])


def pairwise_seed(
    context: bytes, one: int, other: int, keys: dict[int, Keys], mask_x25519: bytes, pad: bytes,
    commitment: bytes,
) -> bytes:  # fmt: skip
    """`mask_x25519` is X25519's secret of the pair, from either end."""
    low, high = sorted((one, other))
    both = _both(keys[low].mask, keys[high].mask)
    info = record(tag("pairwise"), u32(low, high), both, blob(commitment))
    return hkdf(mask_x25519 + pad, context, info)


def open_bundle(
    suite: str, context: bytes, sender: int, receiver: int, keys: dict[int, Keys],
    channel_seed: bytes, before: bytes, sealed: bytes,
) -> bytes:  # fmt: skip
    """`channel_seed` is the receiver's."""
    point, kem = private_keys(suite, "channel seed", channel_seed)
    shared = decapsulate(kem, before) if kem else b""
    shared += x25519(point, keys[sender].channel[0])
    return aead_open(bundle_key(context, sender, receiver, keys, shared, before), sealed, context)


def open_pad(
    context: bytes, dealer: int, holder: int, keys: dict[int, Keys], mask_seed: bytes, box: bytes
) -> bytes:
    """`mask_seed` is the holder's."""
    _, kem = private_keys(HYBRID, "mask seed", mask_seed)
    ciphertext, sealed = box[:KEM_CIPHERTEXT], box[KEM_CIPHERTEXT:]
    shared = decapsulate(kem, ciphertext)
    return aead_open(pad_key(context, dealer, holder, keys, shared, ciphertext), sealed, context)


# ---------------------------------------------------------------------------- messages


@dataclass(frozen=True)
class Signed:
    label: str
    sender: int
    body: bytes
    signature: bytes
    whole: bytes
    """Without the version byte: as it stands inside other messages."""


def read_signed(cursor: Cursor) -> Signed:
    begin = cursor.at
    cursor.tag("Signed")
    label, sender, body, signature = (
        cursor.blob().decode(), cursor.number(), cursor.blob(), cursor.take(64)
    )  # fmt: skip
    return Signed(label, sender, body, signature, cursor.data[begin : cursor.at])


@dataclass(frozen=True)
class Leaf:
    holder: int
    before: bytes
    sealed: bytes
    commitments: tuple[bytes, ...]
    box: bytes
    pad_commitment: bytes

    @property
    def whole(self) -> bytes:
        """As it stands in messages."""
        return b"".join(
            (tag("Leaf"), u32(self.holder), blob(self.before), blob(self.sealed),
             u32(len(self.commitments)), *self.commitments, blob(self.box),
             blob(self.pad_commitment))
        )  # fmt: skip

    @property
    def outline(self) -> bytes:
        """What the dealer's tree hashes, version byte included."""
        none = bytes(32)
        return record(
            tag("LeafOutline"), u32(self.holder, len(self.commitments)), *self.commitments,
            blob(self.pad_commitment), labelled("bundle", none, self.before, self.sealed),
            labelled("pad box", none, self.box),
        )  # fmt: skip


def read_leaf(cursor: Cursor) -> Leaf:
    cursor.tag("Leaf")
    holder, before, sealed = cursor.number(), cursor.blob(), cursor.blob()
    commitments = tuple(cursor.many(lambda: cursor.take(32)))
    return Leaf(holder, before, sealed, commitments, cursor.blob(), cursor.blob())


def read_signed_message(data: bytes) -> Signed:
    cursor = reading(data)
    signed = read_signed(cursor)
    cursor.end()
    return signed


def read_share_keys(data: bytes) -> tuple[Signed, list[Leaf]]:
    cursor = reading(data)
    cursor.tag("ShareKeys")
    body, leaves = read_signed(cursor), cursor.many(lambda: read_leaf(cursor))
    cursor.end()
    return body, leaves


def read_bundle_of(kind: str, data: bytes) -> list[Signed]:
    """KeyDirectory, AgreedView, SurvivorSet or Quorum."""
    cursor = reading(data)
    cursor.tag(kind)
    records = cursor.many(lambda: read_signed(cursor))
    cursor.end()
    return records


def read_keys(body: bytes) -> Keys:
    cursor = reading(body)
    cursor.tag("AdvertiseKeys")
    channel, mask = cursor.take(32), cursor.blob()
    return Keys((channel, cursor.blob()), (mask, cursor.blob()))


def read_dealing_body(body: bytes) -> tuple[list[int], bytes, bytes]:
    """(holders, commitment to the self-mask seed, root of the leaves)."""
    cursor = reading(body)
    cursor.tag("ShareKeysBody")
    return cursor.many(cursor.number), cursor.blob(), cursor.take(32)


def read_answers(body: bytes) -> tuple[bytes, list[tuple[int, int, bytes, bytes]]]:
    """(view, [(dealer, kind, share, opening)])."""
    cursor = reading(body)
    cursor.tag("Unmask")
    view = cursor.take(32)

    def answer() -> tuple[int, int, bytes, bytes]:
        cursor.tag("Answer")
        return cursor.number(), cursor.number(1), cursor.take(33), cursor.take(32)

    answers, key_sum = cursor.many(answer), cursor.blob()
    cursor.end()
    if key_sum:
        raise ValueError("a sum of shares, which scheme masking never releases")
    return view, answers


@dataclass(frozen=True)
class Plan:
    """What of a plan the derivations need."""

    data: bytes
    suite: str = field(init=False)
    cohort: list[str] = field(init=False)
    threshold: int = field(init=False)
    share_count: int = field(init=False)
    quorum: int = field(init=False)
    length: int = field(init=False)
    clip: float = field(init=False)
    value_bits: int = field(init=False)
    max_weight: int = field(init=False)
    bits: tuple[int, int] = field(init=False)
    """Ring widths of the delta and of the weight."""

    def __post_init__(self) -> None:
        import struct

        cursor = reading(self.data)
        cursor.tag("plan")
        found: dict[str, Any] = {"suite": cursor.blob().decode()}
        cursor.tag("masking")
        cursor.take(32 + 8)  # roster digest, round number
        found["cohort"] = [name.decode() for name in cursor.many(cursor.blob)]
        cursor.take(4)  # f
        found["share_count"], found["threshold"] = cursor.number(), cursor.number()
        found["quorum"] = cursor.number()
        cursor.take(4)  # min_survivors
        cursor.many(cursor.blob)  # committee
        cursor.take(32)  # model
        cursor.tag("layout")
        found["length"] = sum(cursor.many(lambda: self._tensor(cursor)))
        (found["clip"],) = struct.unpack(">d", cursor.take(8))
        found["value_bits"] = cursor.number(1)
        cursor.blob()  # rotation seed
        found["max_weight"] = cursor.number(8)
        weight_bits, ring_bits = cursor.number(1), cursor.number(1)
        found["bits"] = (ring_bits, weight_bits)
        for name, value in found.items():
            object.__setattr__(self, name, value)

    @staticmethod
    def _tensor(cursor: Cursor) -> int:
        cursor.blob(), cursor.blob()
        size = 1
        for side in cursor.many(lambda: cursor.number(8)):
            size *= side
        return size

    @property
    def context(self) -> bytes:
        return sha256(self.data)

    @property
    def complete(self) -> bool:
        return self.share_count == len(self.cohort)


# ---------------------------------------------------------------------------- a whole round


@dataclass
class Round:
    """What a coordinator has: every signed message by label and sender, leaves, uploads."""

    plan: Plan
    public: dict[int, bytes]
    """Ed25519 keys of the roster, by index."""
    signed: dict[str, dict[int, Signed]] = field(default_factory=dict)
    leaves: dict[int, list[Leaf]] = field(default_factory=dict)
    uploads: dict[int, bytes] = field(default_factory=dict)

    def hear(self, label: str, data: bytes, offset: int = 0, sender: int = -1) -> None:
        """Take one message as a tenant sent it; its signature must hold."""
        if label == "upload_chunk":
            if offset != len(self.uploads.get(sender, b"")):
                raise ValueError("a gap in an upload")
            self.uploads[sender] = self.uploads.get(sender, b"") + data
            return
        if label == "share_keys":
            signed, leaves = read_share_keys(data)
            self.leaves[signed.sender] = leaves
        else:
            signed = read_signed_message(data)
        name = self.plan.cohort[signed.sender]
        covered = signing_input(self.plan.suite, signed.label, name, self.plan.context, signed.body)
        if signed.label != label or not signed_by(
            self.public[signed.sender], covered, signed.signature
        ):
            raise ValueError(f"{label} of {name} is not signed")
        self.signed.setdefault(label, {})[signed.sender] = signed

    # -------------------------------------------------------------- digests

    @property
    def keys(self) -> dict[int, Keys]:
        return {i: read_keys(one.body) for i, one in sorted(self.signed["advertise_keys"].items())}

    def bundled(self, kind: str, label: str, senders: Iterable[int]) -> bytes:
        records = [self.signed[label][sender].whole for sender in senders]
        return record(tag(kind), u32(len(records)), *records)

    @property
    def directory(self) -> bytes:
        return self.bundled("KeyDirectory", "advertise_keys", sorted(self.keys))

    @property
    def directory_digest(self) -> bytes:
        return labelled("directory", self.plan.context, self.directory)

    def _bodies(self, dealers: Iterable[int]) -> bytes:
        return b"".join(sha256(record(self.signed["share_keys"][d].whole)) for d in dealers)

    @property
    def dealings_digest(self) -> bytes:
        return labelled("dealings", self.plan.context, self._bodies(sorted(self.leaves)))

    @property
    def members(self) -> list[int]:
        """U2: in these rounds, whoever acknowledged."""
        return sorted(self.signed["acknowledge"])

    @property
    def survivors(self) -> list[int]:
        """U3."""
        return sorted(self.signed["upload_commitment"])

    @property
    def view(self) -> bytes:
        agreed = self.bundled("AgreedView", "acknowledge", self.members)
        bodies = self._bodies(self.members)
        return labelled("view", self.plan.context, self.directory, bodies, agreed)

    def upload_root(self, sender: int) -> bytes:
        first = (self.plan.length * self.plan.bits[0] + 7) // 8
        data = self.uploads[sender]
        return merkle_root([merkle_bulk_leaf(data[:first]), merkle_bulk_leaf(data[first:])])

    @property
    def members_digest(self) -> bytes:
        listed = b"".join(
            record(tag("Survivor"), u32(one), self.upload_root(one)) for one in self.survivors
        )
        return labelled("survivors", self.plan.context, listed)

    # -------------------------------------------------------------- who masks with whom

    def holders(self, dealer: int) -> list[int]:
        return read_dealing_body(self.signed["share_keys"][dealer].body)[0]

    def neighbours(self, index: int) -> list[int]:
        return [
            other
            for other in self.members
            if other != index and (other in self.holders(index) or index in self.holders(other))
        ]

    def pad_dealer(self, one: int, other: int) -> int:
        """The smaller index if it dealt to the larger one, else the larger."""
        low, high = sorted((one, other))
        return low if high in self.holders(low) else high

    def leaf(self, dealer: int, holder: int) -> Leaf:
        return next(leaf for leaf in self.leaves[dealer] if leaf.holder == holder)

    def pair_seed(self, mine: int, other: int, mask_seed: bytes) -> bytes:
        """s of the pair, from the mask seed of `mine`."""
        context, keys, suite = self.plan.context, self.keys, self.plan.suite
        shared = x25519(private_keys(suite, "mask seed", mask_seed)[0], keys[other].mask[0])
        pad, commitment = b"", b""
        if suite == HYBRID:
            dealer = self.pad_dealer(mine, other)
            holder = mine + other - dealer
            leaf = self.leaf(dealer, holder)
            commitment = leaf.pad_commitment
            if dealer == mine:
                pad = pad_of(context, mask_seed, mine, other)
            else:
                pad = open_pad(context, other, mine, keys, mask_seed, leaf.box)
            if pad_commitment(context, dealer, holder, pad, leaf.box) != commitment:
                raise ValueError("another pad than committed to")
        return pairwise_seed(context, mine, other, keys, shared, pad, commitment)

    def mask(self, seed: bytes, purpose: str, vector: int, count: int) -> list[int]:
        size = word_bytes(self.plan.bits[vector])
        key = stream_key(seed, "secagg/1 masking", self.plan.context, purpose, vector)
        return words(keystream(key, 0, count * size), size)

    # -------------------------------------------------------------- a tenant's part

    def shares_of(self, holder: int, channel_seed: bytes) -> dict[int, tuple[bytes, bytes]]:
        """(self-mask share, mask-key share) of every dealer that sealed some for `holder`."""
        context, found = self.plan.context, {}
        for dealer in sorted(self.leaves):
            if holder == dealer or holder not in self.holders(dealer):
                continue
            leaf = self.leaf(dealer, holder)
            plain = open_bundle(
                self.plan.suite, context, dealer, holder, self.keys, channel_seed, leaf.before,
                leaf.sealed,
            )  # fmt: skip
            pairs = [(plain[:33], plain[33:65]), (plain[65:98], plain[98:])]
            committed = tuple(
                share_commitment(context, kind, dealer, holder, *pair)
                for kind, pair in enumerate(pairs)
            )
            if committed != leaf.commitments:
                raise ValueError("another share than committed to")
            found[dealer] = (pairs[0][0], pairs[1][0])
        return found

    def upload_of(
        self, index: int, encoded: Sequence[int], weight: int, mask_seed: bytes, self_mask: bytes
    ) -> bytes:
        """The bytes that this tenant has to send."""
        packed = b""
        for vector, values in enumerate((list(encoded), [weight])):
            masked = list(values)
            streams = [(1, self.mask(self_mask, "self_mask", vector, len(masked)))]
            for other in self.neighbours(index):
                seed = self.pair_seed(index, other, mask_seed)
                sign = 1 if other > index else -1
                streams.append((sign, self.mask(seed, "pairwise_mask", vector, len(masked))))
            for sign, stream in streams:
                masked = [value + sign * word for value, word in zip(masked, stream, strict=True)]
            packed += pack(masked, self.plan.bits[vector])
        return packed

    # -------------------------------------------------------------- opening

    def open(self) -> tuple[list[int], int]:
        """The sum of the levels and of the weights, from what was sent alone."""
        shares: dict[int, dict[int, bytes]] = {member: {} for member in self.members}
        for holder, signed in self.signed["unmask"].items():
            view, answers = read_answers(signed.body)
            if view != self.view:
                raise ValueError("another view")
            for dealer, kind, share, opening in answers:
                if kind != (0 if dealer in self.survivors else 1):
                    raise ValueError("another kind")
                committed = self.leaf(dealer, holder).commitments[kind]
                found = share_commitment(self.plan.context, kind, dealer, holder, share, opening)
                if found != committed:
                    raise ValueError("another share than committed to")
                shares[dealer][holder] = share
        seeds = {dealer: self._rebuilt(found) for dealer, found in shares.items()}
        return self._sum(seeds, 0, self.plan.length), self._sum(seeds, 1, 1)[0]

    def _rebuilt(self, shares: dict[int, bytes]) -> bytes:
        first = dict(sorted(shares.items())[: self.plan.threshold])
        secret = shamir_open(first)
        if secret is None or len(first) < self.plan.threshold:
            raise ValueError("too few shares")
        return secret

    def _sum(self, seeds: dict[int, bytes], vector: int, count: int) -> list[int]:
        bits = self.plan.bits[vector]
        first = (self.plan.length * self.plan.bits[0] + 7) // 8
        total = [0] * count
        for survivor in self.survivors:
            upload = self.uploads[survivor]
            part = upload[first:] if vector else upload[:first]
            streams = [(1, unpack(part, bits, count))]
            streams.append((-1, self.mask(seeds[survivor], "self_mask", vector, count)))
            for dropout in set(self.members) - set(self.survivors):
                if survivor in self.neighbours(dropout):
                    seed = self.pair_seed(dropout, survivor, seeds[dropout])
                    sign = 1 if survivor > dropout else -1
                    streams.append((sign, self.mask(seed, "pairwise_mask", vector, count)))
            for sign, stream in streams:
                total = [value + sign * word for value, word in zip(total, stream, strict=True)]
        half = 1 << bits - 1
        return [(value + half) % (1 << bits) - half for value in total]

    def delivery(self, holder: int) -> bytes:
        """The ShareDelivery of one holder: every body, its own leaves and their paths."""
        delivered = []
        for dealer in sorted(self.leaves):
            held = [leaf.holder for leaf in self.leaves[dealer]]
            if holder == dealer or holder not in held:
                continue
            place = held.index(holder)
            leaf = self.leaves[dealer][place]
            hashes = [merkle_leaf(one.outline) for one in self.leaves[dealer]]
            path = merkle_path(hashes, place)
            delivered.append(
                tag("DeliveredLeaf") + u32(dealer) + leaf.whole + u32(len(path)) + b"".join(path)
            )
        bodies = [self.signed["share_keys"][dealer].whole for dealer in sorted(self.leaves)]
        return record(
            tag("ShareDelivery"), u32(len(bodies)), *bodies, u32(len(delivered)), *delivered
        )

    def transcript(self, roster: bytes) -> tuple[bytes, bytes]:
        """A finished round's transcript, and the chain's last value."""
        messages = [self.directory]
        for dealer in sorted(self.leaves):
            outlines = [leaf.outline[1:] for leaf in self.leaves[dealer]]
            body = self.signed["share_keys"][dealer].whole
            messages.append(record(tag("Dealing"), body, u32(len(outlines)), *outlines))
        messages += [
            self.bundled("AgreedView", "acknowledge", self.members),
            self.bundled("SurvivorSet", "upload_commitment", self.survivors),
            self.bundled("Quorum", "consistency_check", self.survivors[: self.plan.quorum]),
            *(record(self.signed["unmask"][one].whole) for one in sorted(self.signed["unmask"])),
            self._pad_boxes(),
        ]
        context = self.plan.context
        chain, links = labelled("transcript", context, self.plan.data, roster), []
        for message in messages:
            chain = labelled("transcript", context, chain, message)
            links.append(tag("Link") + blob(message) + chain)
        head = [tag("Transcript"), blob(self.plan.data), blob(roster)]
        return record(*head, u32(len(links)), *links), chain

    def _pad_boxes(self) -> bytes:
        """The boxes between a survivor and a dropout."""
        places = sorted(
            (dealer, dropout + other - dealer)
            for dropout in set(self.members) - set(self.survivors)
            for other in self.neighbours(dropout)
            if other in self.survivors
            for dealer in [self.pad_dealer(dropout, other)]
        )
        boxes = [
            tag("PadBox") + u32(*place) + blob(self.leaf(*place).box)
            for place in places
            if self.leaf(*place).box
        ]
        return record(tag("PadBoxes"), u32(len(boxes)), *boxes)
