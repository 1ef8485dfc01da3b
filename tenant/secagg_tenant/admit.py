"""This tenant's own check of the emulator or the block that an owner sends, before it trains it.

In order: the signature by the pinned owner, the pinned manifest, the files (those of the manifest,
of kinds that run no code), the configuration, the tensors' layout and digest, and then what tensors
and behaviour show (`secagg_models.admission`). What nobody vouches for is not looked at further: a
package is read as code, configuration or tensors only after the clauses before have passed.

Every admission is kept in the tenant's database, with its figures. They come from private text as
well, and stay there. A pass says that these checks passed, never that the emulator is harmless.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from secagg.errors import ConfigError, ProtocolError
from secagg.identity import sha256
from secagg_models.admission.configuration import check_configuration, check_tokenizer
from secagg_models.admission.examine import CLAUSES as MODEL_CLAUSES
from secagg_models.admission.examine import examine
from secagg_models.admission.limits import Thresholds
from secagg_models.admission.report import Check, Report, clauses_after
from secagg_models.base import Base
from secagg_models.block_package import KIND as BLOCK
from secagg_models.block_package import LoadedBlock, read_block_files
from secagg_models.package import CONFIG_FILE, LoadedEmulator, read_package
from secagg_models.text import corpus_of_folder, encode
from secagg_tenant.config import Config, LoraTraining
from secagg_tenant.store import TenantStore
from secagg_wire.manifest import MAX_MANIFEST_BYTES, Manifest
from secagg_wire.signed_manifest import (
    MANIFEST_FILE,
    MAX_SIGNATURE_FILE_BYTES,
    SIGNATURE_FILE,
    ManifestSignature,
    SignedFolder,
    read_signed_folder,
    verify_manifest,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

CLAUSES: Final = (
    "signature", "manifest_digest", "files", "configuration", "layout", *MODEL_CLAUSES,
)  # fmt: skip
"""All clauses, in the order in which they are checked."""
_TOKENIZER_CONFIG = "tokenizer_config.json"
_MAX_CONFIG_BYTES = 1 << 22
_TEXT_BYTES = 1 << 16
_TextOf = Any  # a tokeniser in, token ids or None out


@dataclass(frozen=True, slots=True)
class Pins:
    """What this tenant knows beforehand: the owner's public key, and the manifest's SHA-256."""

    owner_key: bytes | None
    manifest_digest: bytes | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Admission:
    """What was found. `digest` is the manifest's, None where there is none to read; `emulator` (or
    one block of a model) is loaded where the package could be read, whether or not it passed."""

    folder: Path
    digest: bytes | None
    owner: str
    report: Report
    emulator: LoadedEmulator | LoadedBlock | None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "manifest_sha256": None if self.digest is None else self.digest.hex(),
            "owner": self.owner,
        } | self.report.to_json()


class EmulatorRefused(ProtocolError):
    """The emulator that this tenant was to train is not admitted; `clause` names why."""

    def __init__(self, folder: Path, clause: str, reason: str) -> None:
        super().__init__(f"the emulator in {folder} is not admitted: clause {clause!r}: {reason}")
        self.clause = clause


class _Examination:
    """Clauses so far. `run` gives what a clause finds, and None once one was refused."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    @property
    def going(self) -> bool:
        return all(check.passed for check in self.checks)

    def run(self, clause: str, look: Callable[[], tuple[str, Any]]) -> Any:
        if not self.going:
            return None
        try:
            fact, found = look()
        except (ConfigError, OSError, ValueError, RecursionError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.checks.append(Check(clause, refusal=reason))
            return None
        self.checks.append(Check(clause, fact=fact))
        return found


def admit(
    folder: Path,
    pins: Pins,
    thresholds: Thresholds | None = None,
    text_of: _TextOf = None,
    seed: int | None = None,
) -> Admission:
    """Check a package, clause by clause; nothing is raised for what it finds.

    `text_of(tokenizer)` gives token ids of this tenant's own text, or None. `seed` draws random
    tokens and is this tenant's secret until then: from the system's source where it is None.
    """
    limits = thresholds or Thresholds()
    done = _Examination()
    data = done.run("signature", lambda: _vouched(folder, pins.owner_key))
    owner, manifest = data or ("", b"")
    done.run("manifest_digest", lambda: _pinned(manifest, pins.manifest_digest))
    files = done.run("files", lambda: _listed(folder, pins.owner_key, sha256(manifest)))
    done.run("configuration", lambda: _configured(folder))
    emulator = done.run("layout", lambda: _loaded(files))
    if emulator is not None:
        drawn = int.from_bytes(os.urandom(7), "big") if seed is None else seed
        text = None if text_of is None else text_of(emulator.tokenizer)
        done.checks += examine(emulator.model, text, limits, seed=drawn)
    checks = tuple(done.checks)
    report = Report(checks, clauses_after(checks, CLAUSES), limits.loosened())
    digest = sha256(manifest) if manifest else None
    return Admission(folder, digest, owner, report, emulator)


def admitted_base(config: Config) -> Base:
    """The emulator of `model.emulator`, admitted now, as the base that this tenant trains.

    The admission is kept in the tenant's database, whatever it found.

    Raises:
        EmulatorRefused: names the clause and why.
        ConfigError: `model.base_digest` pins another emulator.
    """
    if config.model.emulator is None:
        raise ConfigError("model.emulator is not set: there is nothing to admit")
    done = admit(
        config.model.emulator, pins_of(config), Thresholds.from_json(config.admission),
        lambda tokenizer: own_text(config, tokenizer),
    )  # fmt: skip
    keep(config, done)
    require(done)
    if done.emulator is None:  # no report passes then
        raise EmulatorRefused(done.folder, "layout", "it was not loaded")
    digest = done.emulator.digest
    if config.model.base_digest not in (None, digest):
        raise ConfigError(
            f"the emulator in {done.folder} has tensors of digest {digest}, and model.base_digest "
            f"pins {config.model.base_digest}; leave it out, or pin this one"
        )
    return Base(done.emulator.model, done.emulator.tokenizer, digest, str(done.folder))


def pins_of(config: Config) -> Pins:
    """What the configuration pins."""
    key, digest = config.model.owner_key, config.model.emulator_digest
    return Pins(
        None if key is None else bytes.fromhex(key),
        None if digest is None else bytes.fromhex(digest),
    )


def require(done: Admission) -> None:
    """Raises: EmulatorRefused where a clause refused."""
    refusal = done.report.first_refusal
    if refusal is not None:
        raise EmulatorRefused(done.folder, refusal.clause, refusal.reason)
    if not done.report.passed:
        raise EmulatorRefused(done.folder, done.report.skipped[0], "it was not checked")


def keep(config: Config, done: Admission) -> None:
    """Record an admission and its figures; from whichever thread."""
    config.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with closing(TenantStore(config.data / "tenant.sqlite")) as store:
        store.add_admission(done.digest or b"", done.report.passed, done.to_json())


def own_text(config: Config, tokenizer: Any) -> torch.Tensor | None:
    """The beginning of this tenant's training text as token ids; None where it has none."""
    training = config.training
    if not isinstance(training, LoraTraining):
        return None
    files, size = [], 0
    for file in corpus_of_folder(training.text, pattern=training.pattern).part("train"):
        files.append(file)
        size += len(file.content)
        if size >= _TEXT_BYTES:
            break
    ids = encode("own text", files, tokenizer).ids
    return torch.from_numpy(ids[:_TEXT_BYTES].astype("int64"))


def _vouched(folder: Path, key: bytes | None) -> tuple[str, tuple[str, bytes]]:
    if key is None:
        raise ConfigError(
            "no owner's key is pinned: give --owner-key or model.owner_key, and ask the owner for "
            "it by another way than the package came"
        )
    manifest = _read(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
    path = folder / SIGNATURE_FILE
    if not path.exists():
        verify_manifest(manifest, None, key)
    signature = ManifestSignature.decode(_read(path, MAX_SIGNATURE_FILE_BYTES))
    verify_manifest(manifest, signature, key)
    return f"by {signature.owner}, {key.hex()[:16]}...", (signature.owner, manifest)


def _pinned(manifest: bytes, pinned: bytes | None) -> tuple[str, None]:
    digest = sha256(manifest)
    if pinned is None:
        return f"{digest.hex()}, which is not pinned", None
    if digest != pinned:
        raise ConfigError(
            f"the manifest has the digest {digest.hex()}, and {pinned.hex()} is pinned; ask the "
            "owner which is right"
        )
    return digest.hex(), None


def _listed(folder: Path, key: bytes | None, digest: bytes) -> tuple[str, SignedFolder]:
    Manifest.decode(_read(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES))
    files = read_signed_folder(folder, key, digest)
    return f"{len(files.names)} files of {files.manifest.total_size} bytes", files


def _configured(folder: Path) -> tuple[str, None]:
    fact = check_configuration(_json(folder / CONFIG_FILE))
    check_tokenizer(_json(folder / _TOKENIZER_CONFIG))
    return fact, None


def _loaded(files: SignedFolder) -> tuple[str, LoadedEmulator | LoadedBlock]:
    meta = files.manifest.meta
    read = read_block_files if meta.get("kind") == BLOCK else read_package
    loaded = read(files.folder, files.names, meta)
    return f"{len(loaded.meta.layout)} tensors as the manifest says", loaded


def _json(path: Path) -> Mapping[str, Any]:
    value: Mapping[str, Any] = json.loads(_read(path, _MAX_CONFIG_BYTES))
    return value


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path.name}: {error.strerror}; is it a package?") from None
    if len(data) > limit:
        raise ConfigError(f"{path.name} is above {limit} bytes")
    return data
