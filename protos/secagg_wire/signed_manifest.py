"""The owner's signature over a manifest: who vouches for an emulator or for a model version.

Ed25519 (RFC 8032) by the owner's identity over the manifest's canonical bytes, under a label of its
own, so that no signature of the protocol's passes for one of these. A package carries it in
`manifest.sig.json`; a version carries it beside its manifest. Who reads it pins the owner's public
key: a key that travels with what it signs proves nothing by itself.

Not here: what the manifest says. A signed version is the owner's word, not a correct sum.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

from secagg.errors import ConfigError
from secagg.identity import NO_CONTEXT, PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity, Member

SIGNATURE_FILE: Final = "manifest.sig.json"
MAX_SIGNATURE_FILE_BYTES: Final = 4096
_LABEL: Final = "manifest"
_KEYS = {"owner", "public_key", "signature"}
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class ManifestSignature:
    """`owner` is the signer's name, `public_key` has 32 bytes and `signature` 64."""

    owner: str
    public_key: bytes
    signature: bytes

    def __post_init__(self) -> None:
        if not 0 < len(self.owner) <= 63 or not self.owner.isprintable():
            raise ConfigError("manifest signature: the owner's name has 1 to 63 characters")
        if (len(self.public_key), len(self.signature)) != (PUBLIC_KEY_BYTES, SIGNATURE_BYTES):
            raise ConfigError("manifest signature: a key has 32 bytes and a signature 64")

    def verifies(self, manifest: bytes) -> bool:
        """Whether it is `public_key`'s signature over these bytes."""
        signer = Member(self.owner, self.public_key)
        return signer.verify("", _LABEL, NO_CONTEXT, manifest, self.signature)

    def encode(self) -> bytes:
        """The contents of `manifest.sig.json`: canonical JSON."""
        value = {
            "owner": self.owner,
            "public_key": self.public_key.hex(),
            "signature": self.signature.hex(),
        }
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> ManifestSignature:
        """Inverse of `encode`.

        Raises:
            ConfigError: no such file.
        """
        try:
            value = json.loads(data[: MAX_SIGNATURE_FILE_BYTES + 1])
            if set(value) != _KEYS or not all(map(_HEX.fullmatch, _digits(value))):
                raise ValueError
            key, signature = map(bytes.fromhex, _digits(value))
            found = cls(str(value["owner"]), key, signature)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"{SIGNATURE_FILE} is not the JSON of a signature: owner, public_key, signature"
            ) from None
        return found


def _digits(value: dict[str, str]) -> tuple[str, str]:
    return value["public_key"], value["signature"]


def sign_manifest(manifest: bytes, identity: Identity) -> ManifestSignature:
    """The owner's signature over a manifest's canonical bytes."""
    signature = identity.sign("", _LABEL, NO_CONTEXT, manifest)
    return ManifestSignature(identity.tenant, identity.public_key, signature)


def verify_manifest(
    manifest: bytes, signature: ManifestSignature | None, pinned_public_key: bytes
) -> None:
    """Demand the pinned owner's signature over a manifest's canonical bytes.

    Raises:
        ConfigError: unsigned, signed by another key, or altered after it was signed.
    """
    if signature is None:
        raise ConfigError("the manifest is not signed, and an owner's key is pinned")
    if signature.public_key != pinned_public_key:
        raise ConfigError(
            f"the manifest is signed by the key {signature.public_key.hex()} of "
            f"{signature.owner!r}, and {pinned_public_key.hex()} is pinned"
        )
    if not signature.verifies(manifest):
        raise ConfigError(
            f"the signature of {signature.owner!r} is not over this manifest: one of them was "
            "altered, or they are of two different versions"
        )
