"""Model versions on this tenant's disk: fetched in pieces, believed only by their hashes.

A manifest is checked against the digest that was asked for and against the owner's key where one is
pinned, a file against the manifest, before anything of it is used. A broken download goes on where
it stopped. Nothing is ever unpickled: the manifest admits no file type that runs code.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from secagg.errors import ConfigError, PolicyRefused, ProtocolError
from secagg.identity import sha256
from secagg_tenant.trainer import ModelVersion
from secagg_wire.client import STREAM_SECONDS, Caller, is_unavailable, translated
from secagg_wire.codec import signature_from_wire
from secagg_wire.manifest import FileEntry, Manifest
from secagg_wire.refusals import InvalidRequest
from secagg_wire.signed_manifest import SIGNATURE_FILE, ManifestSignature, verify_manifest
from secagg_wire.v1 import model_service_pb2 as pb

if TYPE_CHECKING:
    from secagg_wire.v1.model_service_pb2_grpc import ModelServiceAsyncStub

OWNER_KEY = "owner_key"
"""The clause by which an unsigned or wrongly signed version is refused."""
_MANIFEST = "manifest.json"
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class VersionFiles:
    """Versions by digest, each in a folder of its own."""

    directory: Path

    def at_hand(self, digest: bytes, number: int = 0) -> ModelVersion | None:
        """A version that has been fetched completely."""
        folder = self._folder(digest)
        try:
            data = (folder / _MANIFEST).read_bytes()
        except OSError:
            return None
        return (
            ModelVersion(number, Manifest.decode(data), folder) if sha256(data) == digest else None
        )

    def intact(self, version: ModelVersion) -> bool:
        """Whether every file on disk is still, bit for bit, what the manifest says."""
        try:
            return all(
                _digest_of(version.directory / entry.name) == entry.sha256
                for entry in version.manifest.files
            )
        except OSError:
            return False

    async def manifest(
        self, caller: Caller, service: ModelServiceAsyncStub, number: int, digest: bytes,
        owner_key: bytes | None = None,
    ) -> Manifest:  # fmt: skip
        """The manifest with this digest: at hand, or version `number`'s at the coordinator.

        Raises:
            PolicyRefused: the coordinator's version has another digest, or clause `owner_key`: it
                is not signed by that key.
        """
        known = self.at_hand(digest, number)
        if known is not None and (owner_key is None or self._signed(known, owner_key)):
            return known.manifest
        answer = await caller.call(service.GetVersion, pb.GetVersionRequest(version=number))
        if sha256(answer.manifest) != digest:
            raise PolicyRefused(
                "model_digest", f"version {number} is not the model that the plan names"
            )
        if owner_key is not None:
            signature = _signature(answer)
            _require_signed(answer.manifest, signature, owner_key)
            self._keep_signature(digest, signature)
        return Manifest.decode(answer.manifest)

    async def fetch(
        self, caller: Caller, service: ModelServiceAsyncStub, number: int, manifest: Manifest
    ) -> ModelVersion:
        """The files of version `number`, as its manifest has them.

        Raises:
            ProtocolError: a file is not what the manifest says.
        """
        if (known := self.at_hand(manifest.digest, number)) is not None:
            return known
        folder = self._folder(manifest.digest)
        folder.mkdir(parents=True, exist_ok=True)
        for entry in manifest.files:
            await _fetch_file(caller, service, number, entry, folder / entry.name)
        # The manifest comes last: where it stands, everything stands.
        _write_durably(folder / _MANIFEST, manifest.encode())
        return ModelVersion(number, manifest, folder)

    def _signed(self, version: ModelVersion, owner_key: bytes) -> bool:
        """Whether a signature by this key lies beside a version."""
        try:
            data = (version.directory / SIGNATURE_FILE).read_bytes()
            verify_manifest(version.manifest.encode(), ManifestSignature.decode(data), owner_key)
        except (OSError, ConfigError):
            return False
        return True

    def _keep_signature(self, digest: bytes, signature: ManifestSignature | None) -> None:
        if signature is not None:
            folder = self._folder(digest)
            folder.mkdir(parents=True, exist_ok=True)
            _write_durably(folder / SIGNATURE_FILE, signature.encode())

    def _folder(self, digest: bytes) -> Path:
        return self.directory / digest.hex()


def _signature(answer: pb.GetVersionResponse) -> ManifestSignature | None:
    if not answer.HasField("signature"):
        return None
    try:
        return signature_from_wire(answer.signature)
    except InvalidRequest as error:
        raise PolicyRefused(OWNER_KEY, str(error)) from None


def _require_signed(manifest: bytes, signature: ManifestSignature | None, key: bytes) -> None:
    try:
        verify_manifest(manifest, signature, key)
    except ConfigError as error:
        raise PolicyRefused(OWNER_KEY, str(error)) from None


async def _fetch_file(
    caller: Caller, service: ModelServiceAsyncStub, number: int, entry: FileEntry, target: Path
) -> None:
    passing = target.with_name(f"{target.name}.part")
    for wait in caller.back_off.waits():
        try:
            await _append(passing, service, number, entry)
            break
        except grpc.aio.AioRpcError as error:
            ours = translated(error, caller.target)
            if not is_unavailable(ours):
                raise ours from None
            await caller.pause(ours, wait)
    if passing.stat().st_size != entry.size or _digest_of(passing) != entry.sha256:
        passing.unlink()
        raise ProtocolError(f"{entry.name} of version {number} is not the file in its manifest")
    os.replace(passing, target)


async def _append(
    passing: Path, service: ModelServiceAsyncStub, number: int, entry: FileEntry
) -> None:
    with passing.open("ab") as file:
        place = file.tell()
        if place >= entry.size:
            return
        request = pb.DownloadFileRequest(version=number, name=entry.name, offset=place)
        async for piece in service.DownloadFile(request, timeout=STREAM_SECONDS):
            if piece.offset != place or place + len(piece.payload) > entry.size:
                raise ProtocolError(f"{entry.name} of version {number} came out of order")
            place += file.write(piece.payload)
        file.flush()
        os.fsync(file.fileno())


def _digest_of(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.digest()


def _write_durably(path: Path, data: bytes) -> None:
    passing = path.with_name(f"{path.name}.new")
    with passing.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(passing, path)
