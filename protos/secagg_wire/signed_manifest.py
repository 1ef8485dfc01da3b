"""The owner's signature over a manifest: who vouches for an emulator or for a model version.

Ed25519 (RFC 8032) by the owner's identity over the manifest's canonical bytes, under a label of its
own, so that no signature of the protocol's passes for one of these. A package carries it in
`manifest.sig.json`; a version carries it beside its manifest. Who reads it pins the owner's public
key: a key that travels with what it signs proves nothing by itself.

Not here: what the manifest says. A signed version is the owner's word, not a correct sum.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from secagg.errors import ConfigError
from secagg.identity import NO_CONTEXT, PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity, Member
from secagg_wire.manifest import MAX_MANIFEST_BYTES, FileEntry, Manifest

MANIFEST_FILE: Final = "manifest.json"
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


@dataclass(frozen=True, slots=True)
class SignedFolder:
    """A folder whose files are those of its manifest. `signature` is None where it is unsigned."""

    folder: Path
    manifest: Manifest
    signature: ManifestSignature | None

    @property
    def names(self) -> frozenset[str]:
        """The files that the manifest names."""
        return frozenset(entry.name for entry in self.manifest.files)


def write_signed_folder(
    folder: Path, meta: Mapping[str, Any], identity: Identity | None
) -> SignedFolder:
    """Make the folder's files a package: write manifest and, with an identity, its signature.

    `meta` has a truth value `signed` that agrees with there being an identity.
    """
    names = sorted(set(_names_in(folder)) - {MANIFEST_FILE, SIGNATURE_FILE})
    manifest = Manifest(tuple(_entry_of(folder, name) for name in names), meta)
    signature = None if identity is None else sign_manifest(manifest.encode(), identity)
    _check_promise(folder, manifest, signature)
    (folder / MANIFEST_FILE).write_bytes(manifest.encode())
    if signature is not None:
        (folder / SIGNATURE_FILE).write_bytes(signature.encode())
    return SignedFolder(folder, manifest, signature)


def read_signed_folder(
    folder: Path,
    pinned_public_key: bytes | None,
    pinned_digest: bytes | None,
    *,
    beside: Collection[str] = (),
) -> SignedFolder:
    """Hold a folder against its manifest, and the manifest against what is pinned.

    `beside` names files that may lie there without being part of the package. A signature that is
    there must be right whether its key is pinned or not.

    Raises:
        ConfigError: a pin, the signature, a file's size or hash is wrong; a file is missing or
            too many; or something in the folder is no plain file.
    """
    manifest = Manifest.decode(_read_small(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES))
    if pinned_digest is not None and manifest.digest != pinned_digest:
        raise ConfigError(
            f"{folder}: its manifest has the digest {manifest.digest.hex()}, and "
            f"{pinned_digest.hex()} is pinned; ask the owner which is right"
        )
    signature = _read_signature(folder)
    if pinned_public_key is not None or signature is not None:
        key = pinned_public_key if signature is None else pinned_public_key or signature.public_key
        verify_manifest(manifest.encode(), signature, key or b"")
    _check_promise(folder, manifest, signature)
    own = {MANIFEST_FILE, SIGNATURE_FILE}
    present = set(_names_in(folder)) - own - set(beside)
    wanted = {entry.name for entry in manifest.files}
    if present != wanted or own & wanted:
        raise ConfigError(
            f"{folder}: files that the manifest does not name: {sorted(present - wanted)[:5]}; "
            f"files that it names and are missing: {sorted(wanted - present)[:5]}"
        )
    for entry in manifest.files:
        _check_file(folder, entry)
    return SignedFolder(folder, manifest, signature)


def _check_promise(folder: Path, manifest: Manifest, signature: ManifestSignature | None) -> None:
    if manifest.meta.get("signed") is not (signature is not None):
        raise ConfigError(
            f"{folder}: its manifest says signed = {manifest.meta.get('signed')!r}, and "
            f"{SIGNATURE_FILE} is {'missing' if signature is None else 'there'}; ask the owner for "
            "the whole package"
        )


def _names_in(folder: Path) -> list[str]:
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"cannot read {folder}: {error.strerror}") from None
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise ConfigError(f"{folder}: {path.name[:128]!r} is no plain file; a package has none")
    return [path.name for path in paths]


def _read_signature(folder: Path) -> ManifestSignature | None:
    path = folder / SIGNATURE_FILE
    if not path.exists():
        return None
    return ManifestSignature.decode(_read_small(path, MAX_SIGNATURE_FILE_BYTES))


def _read_small(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; is it a package?") from None
    if len(data) > limit:
        raise ConfigError(f"{path} is above {limit} bytes")
    return data


def _check_file(folder: Path, entry: FileEntry) -> None:
    size = (folder / entry.name).stat().st_size
    if size != entry.size:
        raise ConfigError(
            f"{folder}: {entry.name} has {size} bytes, and the manifest says {entry.size}; it was "
            "cut off or changed"
        )
    if _entry_of(folder, entry.name).sha256 != entry.sha256:
        raise ConfigError(f"{folder}: {entry.name} is not the file that the manifest names")


def _entry_of(folder: Path, name: str) -> FileEntry:
    path = folder / name
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    return FileEntry(name, path.stat().st_size, digest)
