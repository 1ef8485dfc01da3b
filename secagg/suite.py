"""Suite `x25519`: channel keys, mask keys, sealed bundles and pairwise seeds.

Sources: RFC 7748 (X25519), RFC 5869 (HKDF with SHA-256), NIST SP 800-38D (AES-256-GCM).

Channel keys seal share bundles; mask keys agree on pairwise seeds. Both are fresh each round and
signed by their owners. A bundle's key is used for one plaintext, ever: 32 fresh random bytes (the
place where a KEM ciphertext stands in hybrid suites) enter its derivation, so that dealing again
never repeats key and nonce.

What success does not imply: that the peer is honest, or that its bundle holds correct shares.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secagg.canonical import Writer
from secagg.errors import MalformedMessage
from secagg.messages import AdvertiseKeys
from secagg.secret import ChannelSeed, MaskSeed, PairwiseSeed, Randomness

PrivateKey = X25519PrivateKey
TAG_BYTES = 16
ENCAPSULATION_BYTES = 32
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


@dataclass(frozen=True, slots=True)
class Peer:
    """One end of a pair: its index in the cohort and its advertised keys."""

    index: int
    keys: AdvertiseKeys


def derive(ikm: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869), 32 bytes out."""
    return HKDF(SHA256(), 32, salt, info).derive(ikm)


def channel_private(seed: ChannelSeed) -> PrivateKey:
    """The private channel key. Making it costs as much as an exchange: once for all peers."""
    return X25519PrivateKey.from_private_bytes(seed.expose())


def mask_private(seed: MaskSeed) -> PrivateKey:
    """The private mask key."""
    info = Writer().tag("mask seed").tag("x25519").finish()
    return X25519PrivateKey.from_private_bytes(derive(seed.expose(), b"", info))


def advertise(channel: ChannelSeed, mask: MaskSeed) -> AdvertiseKeys:
    """The public keys that belong to both private seeds."""
    return AdvertiseKeys(
        channel_key=channel_private(channel).public_key().public_bytes_raw(),
        mask_key=mask_private(mask).public_key().public_bytes_raw(),
    )


def check_public_keys(keys: AdvertiseKeys) -> None:
    """Refuse low-order points, non-canonical encodings and fields of other suites (C06).

    Raises:
        MalformedMessage: names which key and why.
    """
    for name, key in (("channel key", keys.channel_key), ("mask key", keys.mask_key)):
        value = int.from_bytes(key, "little")
        if value >= _FIELD:
            raise MalformedMessage(f"the {name} is no canonical X25519 encoding")
        if value in _LOW_ORDER:
            raise MalformedMessage(f"the {name} is a point of low order")
    if keys.channel_key == keys.mask_key:
        raise MalformedMessage("channel key and mask key are the same")
    if keys.channel_kem or keys.mask_kem:
        raise MalformedMessage("suite x25519 has no KEM keys")


def seal(
    context: bytes,
    sender: Peer,
    receiver: Peer,
    channel: PrivateKey,
    plaintext: bytes,
    randomness: Randomness,
) -> tuple[bytes, bytes]:
    """Seal `plaintext` for `receiver`: (encapsulation, ciphertext with its 16-byte tag)."""
    encapsulation = randomness(ENCAPSULATION_BYTES)
    shared = _exchange(channel, receiver.keys.channel_key)
    key = _bundle_key(context, sender, receiver, shared, encapsulation)
    return encapsulation, AESGCM(key).encrypt(_ZERO_NONCE, plaintext, context)


def open_sealed(
    context: bytes,
    sender: Peer,
    receiver: Peer,
    channel: PrivateKey,
    encapsulation: bytes,
    sealed: bytes,
) -> bytes:
    """Open what `seal` made.

    Raises:
        MalformedMessage: it was not sealed by `sender` for `receiver` in this round.
    """
    shared = _exchange(channel, sender.keys.channel_key)
    key = _bundle_key(context, sender, receiver, shared, encapsulation)
    try:
        return AESGCM(key).decrypt(_ZERO_NONCE, sealed, context)
    except InvalidTag:
        raise MalformedMessage("a sealed bundle does not open") from None


def pairwise_seed(context: bytes, mine: Peer, theirs: Peer, mask: PrivateKey) -> PairwiseSeed:
    """s_ij, the same from either end; `mask` belongs to `mine`."""
    shared = _exchange(mask, theirs.keys.mask_key)
    low, high = sorted((mine, theirs), key=lambda peer: peer.index)
    info = (
        Writer().tag("pairwise").u32(low.index).u32(high.index)
        .fixed(low.keys.mask_key, 32).fixed(high.keys.mask_key, 32).finish()
    )  # fmt: skip
    return PairwiseSeed(derive(shared, context, info))


def mask_public_key(mask: MaskSeed) -> bytes:
    """The public mask key of a seed: what an aggregator compares a rebuilt seed with."""
    return mask_private(mask).public_key().public_bytes_raw()


def _exchange(private: PrivateKey, public: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise MalformedMessage("an X25519 exchange gave the all-zero secret") from None


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
