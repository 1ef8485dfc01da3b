"""An emulator package on the owner's disk: the model's files, the manifest, the owner's signature.

`secagg_models.package` knows the files and `secagg_wire.signed_manifest` the manifest and the
signature; here the two meet. A package is written beside its place and moved there when it is
whole, so what is there can always be read.

Not here: whether it may leave (`secagg owner audit`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from secagg.errors import ConfigError
from secagg.identity import Identity
from secagg_models.package import LoadedEmulator, LoadedModel, read_package, write_package
from secagg_models.split import Split
from secagg_wire.signed_manifest import SignedFolder, read_signed_folder, write_signed_folder

# The audit may lie in the package's folder at the owner; it is not part of what leaves.
BESIDE: Final = frozenset({"audit.json", "report.html"})


@dataclass(frozen=True, slots=True, eq=False)
class EmulatorPackage:
    """A verified folder and the emulator in it."""

    signed: SignedFolder
    emulator: LoadedEmulator

    @property
    def digest(self) -> bytes:
        """The manifest's digest: what tenants pin and an audit is of (32 bytes)."""
        return self.signed.manifest.digest


def write_emulator_package(
    folder: Path,
    full: LoadedModel,
    emulator: Any,
    split: Split,
    *,
    distillation: Mapping[str, Any] | None,
    identity: Identity | None,
) -> EmulatorPackage:
    """Write the package into a folder that does not exist yet, and read it back.

    Raises:
        ConfigError: the folder exists, cannot be written, or edges differ from the full model's.
    """

    def write(passing: Path) -> Mapping[str, Any]:
        meta = write_package(
            passing, full, emulator, split, distillation=distillation, signed=identity is not None
        )
        return meta.to_json()

    write_whole(folder, identity, write)
    return read_emulator_package(folder, None if identity is None else identity.public_key)


def write_whole(
    folder: Path, identity: Identity | None, write: Callable[[Path], Mapping[str, Any]]
) -> None:
    """Have a package's files written, add the manifest that says what `write` returns, sign it.

    Raises:
        ConfigError: the folder exists, or cannot be written.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists already; choose another, or remove it")
    passing = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    try:
        write_signed_folder(passing, write(passing), identity)
        passing.rename(folder)
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(passing, ignore_errors=True)


def read_emulator_package(
    folder: Path, public_key: bytes | None = None, digest: bytes | None = None
) -> EmulatorPackage:
    """Read a package; with a key or a manifest's digest, only that owner's or that very one.

    Raises:
        ConfigError: see `read_signed_folder` and `read_package`.
    """
    signed = read_signed_folder(folder, public_key, digest, beside=BESIDE)
    return EmulatorPackage(signed, read_package(folder, signed.names, signed.manifest.meta))
