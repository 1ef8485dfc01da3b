"""Suites: channel keys, mask keys, sealed bundles, sealed pads and pairwise seeds.

    x25519              X25519 alone
    x25519-mlkem768     X25519 and ML-KEM-768 together (default): whoever records today's traffic
                        and opens X25519 with a later quantum computer still lacks every secret

Sources: RFC 7748 (X25519), FIPS 203 (ML-KEM), RFC 5869 (HKDF with SHA-256), NIST SP 800-38D
(AES-256-GCM). Both secrets of a hybrid enter one HKDF, and the KEM ciphertext its info, so that
the result is secret while either of the two is.

Channel keys seal share bundles; mask keys agree on pairwise seeds. Both are fresh each round and
signed by their owners. X25519 gives a pair one secret from two public keys, a KEM does not: there,
one of the two draws a *pad* (from its mask seed, so that rebuilding the seed rebuilds the pad) and
seals it to the other's mask KEM key. A key seals one plaintext, ever: a fresh KEM ciphertext, or 32
fresh random bytes in its place, enters each derivation.

What success does not imply: that the peer is honest, or that its bundle holds correct shares.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secagg.canonical import Writer
from secagg.errors import MalformedMessage
from secagg.identity import labelled_hash
from secagg.messages import AdvertiseKeys
from secagg.plan import Suite
from secagg.secret import ChannelSeed, MaskSeed, Pad, PairwiseSeed, Randomness

TAG_BYTES = 16
KEM_KEY_BYTES = 1184
KEM_CIPHERTEXT_BYTES = 1088
_FRESH_BYTES = 32
_POINT_BYTES = 32
_FIELD = 2**255 - 19
_ZERO_NONCE = bytes(12)
# The points of small order (Bernstein, "Curve25519", section 3); their non-canonical aliases are
# at or above 2^255 - 19 and are refused as such.
_LOW_ORDER = frozenset(
    {
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _FIELD - 1,
    }
)


@dataclass(frozen=True, slots=True, repr=False)
class PrivateKeys:
    """The private half of a channel or mask key; `kem` is None in suite `x25519`.

    Making it costs as much as several exchanges: once for all peers.
    """

    point: X25519PrivateKey
    kem: MLKEM768PrivateKey | None


@dataclass(frozen=True, slots=True)
class Peer:
    """One end of a pair: its index in the cohort and its advertised keys."""

    index: int
    keys: AdvertiseKeys


def derive(ikm: bytes, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """HKDF-SHA256 (RFC 5869), `length` bytes out."""
    return HKDF(SHA256(), length, salt, info).derive(ikm)


# ---------------------------------------------------------------------- keys


def private_keys(suite: Suite, seed: ChannelSeed | MaskSeed) -> PrivateKeys:
    """The private keys behind a seed; the seed's kind is in the derivation."""
    purpose = "mask seed" if isinstance(seed, MaskSeed) else "channel seed"
    point = derive(seed.expose(), b"", Writer().tag(purpose).tag("x25519").finish())
    kem = None
    if suite == "x25519-mlkem768":
        # FIPS 203, algorithm 16: the 64 bytes d || z.
        kem_seed = derive(seed.expose(), b"", Writer().tag(purpose).tag("mlkem768").finish(), 64)
        kem = MLKEM768PrivateKey.from_seed_bytes(kem_seed)
    return PrivateKeys(X25519PrivateKey.from_private_bytes(point), kem)


def advertise(suite: Suite, channel: ChannelSeed, mask: MaskSeed | None) -> AdvertiseKeys:
    """The public keys that belong to both private seeds; a scheme without masks has one alone."""
    channel_key, channel_kem = public_keys(private_keys(suite, channel))
    mask_key, mask_kem = (b"", b"") if mask is None else public_keys(private_keys(suite, mask))
    return AdvertiseKeys(channel_key, mask_key, channel_kem, mask_kem)


def public_keys(private: PrivateKeys) -> tuple[bytes, bytes]:
    """(X25519 key, ML-KEM key or nothing): what an aggregator compares a rebuilt seed's with."""
    kem = b"" if private.kem is None else private.kem.public_key().public_bytes_raw()
    return private.point.public_key().public_bytes_raw(), kem


def check_public_keys(suite: Suite, keys: AdvertiseKeys, masks: bool = True) -> None:
    """Refuse low-order points, non-canonical encodings and fields of other suites or of a scheme
    without `masks` (C06).

    Raises:
        MalformedMessage: names which key and why.
    """
    pairs = [("channel key", keys.channel_key, keys.channel_kem)]
    if masks:
        pairs.append(("mask key", keys.mask_key, keys.mask_kem))
    elif keys.mask_key or keys.mask_kem:
        raise MalformedMessage("the scheme has no mask keys")
    for name, key, kem in pairs:
        value = int.from_bytes(key, "little")
        if len(key) != _POINT_BYTES or value >= _FIELD:
            raise MalformedMessage(f"the {name} is no canonical X25519 encoding")
        if value in _LOW_ORDER:
            raise MalformedMessage(f"the {name} is a point of low order")
        if suite == "x25519":
            if kem:
                raise MalformedMessage("suite x25519 has no KEM keys")
        else:
            _kem_public(kem, name)
    if keys.channel_key == keys.mask_key or (keys.mask_kem and keys.channel_kem == keys.mask_kem):
        raise MalformedMessage("channel key and mask key are the same")


# ---------------------------------------------------------------------- share bundles


def encapsulation_bytes(suite: Suite) -> int:
    """Length of what precedes a sealed bundle."""
    return _FRESH_BYTES if suite == "x25519" else KEM_CIPHERTEXT_BYTES


def seal(
    context: bytes,
    sender: Peer,
    receiver: Peer,
    channel: PrivateKeys,
    plaintext: bytes,
    randomness: Randomness,
) -> tuple[bytes, bytes]:
    """Seal `plaintext` for `receiver`: (encapsulation, ciphertext with its 16-byte tag)."""
    if channel.kem is None:
        encapsulation, fresh = randomness(_FRESH_BYTES), b""
    else:
        encapsulation, fresh = _encapsulate(receiver.keys.channel_kem)
    shared = fresh + _exchange(channel, receiver.keys.channel_key)
    key = _bundle_key(context, sender, receiver, shared, encapsulation)
    return encapsulation, AESGCM(key).encrypt(_ZERO_NONCE, plaintext, context)


def open_sealed(
    context: bytes,
    sender: Peer,
    receiver: Peer,
    channel: PrivateKeys,
    encapsulation: bytes,
    sealed: bytes,
) -> bytes:
    """Open what `seal` made.

    Raises:
        MalformedMessage: it was not sealed by `sender` for `receiver` in this round.
    """
    fresh = b"" if channel.kem is None else _decapsulate(channel.kem, encapsulation)
    shared = fresh + _exchange(channel, sender.keys.channel_key)
    return _open(_bundle_key(context, sender, receiver, shared, encapsulation), sealed, context)


# ---------------------------------------------------------------------- pads (hybrid suites)


def pad_box_bytes(suite: Suite) -> int:
    """Length of a sealed pad; 0 where a suite has none."""
    return 0 if suite == "x25519" else KEM_CIPHERTEXT_BYTES + Pad.LENGTH + TAG_BYTES


def pad_of(context: bytes, mask: MaskSeed, dealer: int, holder: int) -> Pad:
    """The pad that the owner of this mask seed deals to `holder`."""
    info = Writer().tag("pad").u32(dealer).u32(holder).finish()
    return Pad(derive(mask.expose(), context, info))


def seal_pad(context: bytes, dealer: Peer, holder: Peer, pad: Pad) -> tuple[bytes, bytes]:
    """Seal a pad under the holder's mask KEM key: (box, commitment)."""
    ciphertext, fresh = _encapsulate(holder.keys.mask_kem)
    key = _pad_key(context, dealer, holder, fresh, ciphertext)
    box = ciphertext + AESGCM(key).encrypt(_ZERO_NONCE, pad.expose(), context)
    return box, pad_commitment(context, dealer.index, holder.index, pad, box)


def open_pad(
    context: bytes, dealer: Peer, holder: Peer, mask: PrivateKeys, box: bytes, commitment: bytes
) -> Pad:
    """Open a box and check the pad against its commitment; `mask` belongs to `holder`.

    Raises:
        MalformedMessage: no such box, or another pad than committed to.
    """
    ciphertext, sealed = box[:KEM_CIPHERTEXT_BYTES], box[KEM_CIPHERTEXT_BYTES:]
    if mask.kem is None or len(box) != pad_box_bytes("x25519-mlkem768"):
        raise MalformedMessage(f"a pad box of {len(box)} bytes does not belong to this suite")
    fresh = _decapsulate(mask.kem, ciphertext)
    pad = Pad(_open(_pad_key(context, dealer, holder, fresh, ciphertext), sealed, context))
    if pad_commitment(context, dealer.index, holder.index, pad, box) != commitment:
        raise MalformedMessage("a pad is not the one committed to")
    return pad


def pad_commitment(context: bytes, dealer: int, holder: int, pad: Pad, box: bytes) -> bytes:
    """H("pad", context, i, j, pad, ct): 32 uniform bytes need no opening beside them."""
    place = dealer.to_bytes(4) + holder.to_bytes(4)
    return labelled_hash("pad", context, place, pad.expose(), box[:KEM_CIPHERTEXT_BYTES])


# ---------------------------------------------------------------------- pairwise seeds


def pairwise_seed(
    context: bytes, mine: Peer, theirs: Peer, mask: PrivateKeys, pad: Pad | None, commitment: bytes
) -> PairwiseSeed:
    """s_ij, the same from either end; `mask` belongs to `mine`.

    `pad` and its commitment are those of the one box that counts between the two (`edges.py`);
    the commitment stands for the ciphertext in the derivation, which it covers.
    """
    shared = _exchange(mask, theirs.keys.mask_key) + (b"" if pad is None else pad.expose())
    low, high = sorted((mine, theirs), key=lambda peer: peer.index)
    info = (
        Writer().tag("pairwise").u32(low.index).u32(high.index)
        .fixed(low.keys.mask_key, 32).blob(low.keys.mask_kem)
        .fixed(high.keys.mask_key, 32).blob(high.keys.mask_kem)
        .blob(commitment).finish()
    )  # fmt: skip
    return PairwiseSeed(derive(shared, context, info))


# ---------------------------------------------------------------------- inside


def _exchange(private: PrivateKeys, public: bytes) -> bytes:
    try:
        return private.point.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise MalformedMessage("an X25519 exchange gave the all-zero secret") from None


def _kem_public(kem: bytes, name: str) -> MLKEM768PublicKey:
    """FIPS 203, section 7.2: length and modulus are checked by the library."""
    try:
        return MLKEM768PublicKey.from_public_bytes(kem)
    except ValueError:
        raise MalformedMessage(f"the KEM part of the {name} is no ML-KEM-768 key") from None


def _encapsulate(kem: bytes) -> tuple[bytes, bytes]:
    """(ciphertext, shared secret). The library draws from the operating system."""
    fresh, ciphertext = _kem_public(kem, "peer's key").encapsulate()
    return ciphertext, fresh


def _decapsulate(private: MLKEM768PrivateKey, ciphertext: bytes) -> bytes:
    try:
        return private.decapsulate(ciphertext)
    except ValueError:
        raise MalformedMessage("a KEM ciphertext has another length than its suite's") from None


def _open(key: bytes, sealed: bytes, context: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(_ZERO_NONCE, sealed, context)
    except InvalidTag:
        raise MalformedMessage("a sealed bundle does not open") from None


def _bundle_key(
    context: bytes, sender: Peer, receiver: Peer, shared: bytes, encapsulation: bytes
) -> bytes:
    info = (
        Writer().tag("bundle").u32(sender.index).u32(receiver.index)
        .fixed(sender.keys.channel_key, 32).blob(sender.keys.channel_kem)
        .fixed(receiver.keys.channel_key, 32).blob(receiver.keys.channel_kem)
        .blob(encapsulation).finish()
    )  # fmt: skip
    return derive(shared, context, info)


def _pad_key(context: bytes, dealer: Peer, holder: Peer, fresh: bytes, ciphertext: bytes) -> bytes:
    info = (
        Writer().tag("padbox").u32(dealer.index).u32(holder.index)
        .fixed(dealer.keys.mask_key, 32).blob(dealer.keys.mask_kem)
        .fixed(holder.keys.mask_key, 32).blob(holder.keys.mask_kem)
        .blob(ciphertext).finish()
    )  # fmt: skip
    return derive(fresh, context, info)
