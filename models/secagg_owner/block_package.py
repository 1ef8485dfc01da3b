"""A block package on the owner's disk: the model's files, the manifest, the owner's signature.

As emulator_package.py, with `secagg_models.block_package` for the files. Not here: whether it may
leave (block_gate.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secagg.identity import Identity
from secagg_models.block_cut import BlockCut
from secagg_models.block_package import LoadedBlock, read_block_files, write_block_files
from secagg_models.package import LoadedModel
from secagg_owner.emulator_package import BESIDE, write_whole
from secagg_wire.signed_manifest import SignedFolder, read_signed_folder


@dataclass(frozen=True, slots=True, eq=False)
class BlockPackage:
    """A verified folder and the block in it."""

    signed: SignedFolder
    block: LoadedBlock

    @property
    def digest(self) -> bytes:
        """The manifest's digest: what tenants pin (32 bytes)."""
        return self.signed.manifest.digest


def write_block_package(
    folder: Path, full: LoadedModel, cut: BlockCut, identity: Identity | None
) -> BlockPackage:
    """Write the package into a folder that does not exist yet, and read it back.

    Raises:
        ConfigError: the folder exists, cannot be written, or the cut is of another model.
    """

    def write(passing: Path) -> Mapping[str, Any]:
        return write_block_files(passing, full, cut, signed=identity is not None).to_json()

    write_whole(folder, identity, write)
    return read_block_package(folder, None if identity is None else identity.public_key)


def read_block_package(
    folder: Path, public_key: bytes | None = None, digest: bytes | None = None
) -> BlockPackage:
    """Read a package; with a key or a manifest's digest, only that owner's or that very one.

    Raises:
        ConfigError: see `read_signed_folder` and `read_block_files`.
    """
    signed = read_signed_folder(folder, public_key, digest, beside=BESIDE)
    return BlockPackage(signed, read_block_files(folder, signed.names, signed.manifest.meta))
