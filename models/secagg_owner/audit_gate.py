"""The gate that a package passes before anything of it leaves: an audit of this very package.

`audit.json` in the package's folder must be of the package's manifest, and its figures must satisfy
the owner's policy as it is today, whatever it was when the audit ran. Packages that left since then
count: the release log is read again. What fails is refused with the clause and what to change,
unless the owner forces it with a reason; that is written down before anything leaves.

DATA/releases.jsonl     every package that passed, in order: the cumulative audit's memory
DATA/blocks.jsonl       every block that passed its own gate (block_gate.py): its layers count here
DATA/forced.jsonl       every forced passage: when, which package, which clauses, why

They are only ever appended to. The gate protects an owner from oversight, not from itself: who can
write these files can also publish by other means.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from secagg.errors import ConfigError
from secagg.identity import NO_CONTEXT, Identity, Member, sha256

if TYPE_CHECKING:
    from secagg_models.audit.policy import AuditPolicy, Verdict
    from secagg_models.audit.release import Release
    from secagg_models.split import Split

AUDIT_FILE: Final = "audit.json"
RELEASES_FILE: Final = "releases.jsonl"
BLOCKS_FILE: Final = "blocks.jsonl"
FORCED_FILE: Final = "forced.jsonl"
_LABEL: Final = "audit"
_FORMAT: Final = "secagg-audit/1"


@dataclass(frozen=True, slots=True)
class Passage:
    """How a package passed: clean, or forced past the clauses that refused it.

    Digests in hex; `audit_sha256` is empty where there was no audit of this package.
    """

    manifest_digest: str
    audit_sha256: str
    refused: tuple[str, ...] = ()
    reason: str = ""

    @property
    def forced(self) -> bool:
        """Whether something refused it."""
        return bool(self.refused)

    def to_json(self) -> dict[str, Any]:
        """JSON values, for a lineage."""
        return {
            "manifest_digest": self.manifest_digest,
            "audit_sha256": self.audit_sha256,
            "refused": list(self.refused),
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class _Refusal:
    clause: str
    sentence: str


def require_audit(
    folder: Path,
    manifest_digest: bytes,
    policy: AuditPolicy,
    force_reason: str | None = None,
    *,
    data: Path,
    owner_key: bytes | None = None,
) -> Passage:
    """Let a package pass, and remember that it did; or refuse it.

    `data` is the owner's data directory. With `owner_key`, the audit has to be signed by it.

    Raises:
        ConfigError: the package has no audit, or a clause refuses it, and no reason was given to
            force it; or the reason is empty.
    """
    if force_reason is not None and not force_reason.strip():
        raise ConfigError("forcing a package past its audit needs a reason that is not empty")
    wanted = manifest_digest.hex()
    audit_bytes = read_if_there(folder / AUDIT_FILE)
    audit, refusals = _own_audit(folder, audit_bytes, wanted)
    if audit is not None:
        refusals += _unsigned(folder, audit, owner_key)
        blocks = read_blocks(data / BLOCKS_FILE)
        refusals += _judge(audit, policy, read_releases(data / RELEASES_FILE), blocks, wanted)
    passage = Passage(
        wanted,
        "" if audit is None else sha256(audit_bytes or b"").hex(),
        tuple(refusal.clause for refusal in refusals),
        force_reason.strip() if refusals and force_reason else "",
    )
    if refusals and not force_reason:
        raise ConfigError(_message(folder, refusals))
    released = _unaudited(folder, wanted) if audit is None else audit["released"]
    if refusals:
        append_line(data / FORCED_FILE, passage.to_json() | {"at": round(time.time(), 3)})
    _remember(data / RELEASES_FILE, released, wanted)
    return passage


def _message(folder: Path, refusals: Sequence[_Refusal]) -> str:
    first = refusals[0]
    others = ", ".join(refusal.clause for refusal in refusals[1:])
    return (
        f"package {folder} may not leave: {first.clause}: {first.sentence}"
        + (f" (also refused by {others})" if others else "")
        + "; to publish it all the same: --force --reason TEXT"
    )


def _own_audit(
    folder: Path, data: bytes | None, wanted: str
) -> tuple[dict[str, Any] | None, list[_Refusal]]:
    command = f"run `secagg owner audit {folder} --full MODEL`"
    if data is None:
        return None, [_Refusal("audit.missing", f"it was never audited; {command}")]
    audit = decode_audit(data, str(folder / AUDIT_FILE))
    if audit.get("manifest_digest") != wanted:
        return None, [_Refusal("audit.package", f"its audit is of another package; {command}")]
    return audit, []


def _unaudited(folder: Path, wanted: str) -> dict[str, Any]:
    """What the log keeps of a package that was forced without an audit: its layers at least."""
    from secagg_models.audit.release import Release
    from secagg_models.split import Split
    from secagg_wire.manifest import Manifest

    manifest = Manifest.decode(read_if_there(folder / "manifest.json") or b"")
    if manifest.digest.hex() != wanted:
        raise ConfigError(f"the manifest in {folder} is not the one that is to leave")
    split = Split.from_json(manifest.meta.get("split"))
    full_digest = str(manifest.meta.get("full_digest", ""))
    return Release(wanted, full_digest, "", split, 0, 0, {}, {}).to_json()


def _unsigned(folder: Path, audit: Mapping[str, Any], owner_key: bytes | None) -> list[_Refusal]:
    if owner_key is None or signed_by(audit, owner_key):
        return []
    sentence = (
        f"the audit is not signed by this owner; run `secagg owner audit {folder}` with --keys"
    )
    return [_Refusal("audit.signature", sentence)]


def _judge(
    audit: Mapping[str, Any], policy: AuditPolicy, log: Sequence[Release],
    blocks: Sequence[BlockRelease], wanted: str,
) -> list[_Refusal]:  # fmt: skip
    from secagg_models.audit.figures import Figures
    from secagg_models.audit.policy import judge
    from secagg_models.audit.release import Release, audit_release

    figures = Figures.from_json(audit.get("figures"))
    released = Release.from_json(audit["released"])
    if released.manifest_digest != wanted:
        raise ConfigError("the audit's own record of the release is of another package")
    now = audit_release(released, log, closer_by=policy.release.closer_by)
    figures = replace(
        figures,
        other_subsets=max(figures.other_subsets or 0, len(now.others)),
        closer_copies=max(figures.closer_copies or 0, len(now.closer)),
        layers_share=max(figures.layers_share or 0.0, now.layers_share)
        + _share_of_blocks(released.split, blocks),
    )
    verdicts: tuple[Verdict, ...] = judge(figures, policy)
    return [_Refusal(v.clause, v.sentence) for v in verdicts if v.outcome != "pass"]


def _share_of_blocks(split: Split, blocks: Sequence[BlockRelease]) -> float:
    """What blocks of a model of this depth show beyond this emulator's edges, as a share of its
    layers. Layers that other emulators showed may be counted twice: too many, never too few."""
    edges = {split.full_index(layer) for layer in split.edge_layers}
    shown = {layer for block in blocks if block.layers == split.layers for layer in block.shown}
    return len(shown - edges) / split.layers


@dataclass(frozen=True, slots=True)
class BlockRelease:
    """One block package as the log keeps it; digests in hex, layers by the full model's numbers."""

    manifest_digest: str
    full_digest: str
    layers: int
    shown: tuple[int, ...]


def read_blocks(path: Path) -> list[BlockRelease]:
    """A log of blocks (block_gate.py); nothing where there is none.

    Raises:
        ConfigError: a line is none of ours.
    """
    found = []
    for number, line in enumerate((read_if_there(path) or b"").splitlines(), 1):
        try:
            value = json.loads(line)
            found.append(BlockRelease(**(value | {"shown": tuple(map(int, value["shown"]))})))
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path}, line {number}: not a block: {error}") from None
    return found


def read_releases(path: Path) -> list[Release]:
    """A release log; nothing where there is none.

    Raises:
        ConfigError: a line is none of ours.
    """
    from secagg_models.audit.release import Release

    data = read_if_there(path) or b""
    found = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise TypeError("no object")
            found.append(Release.from_json(value))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}, line {number}: not a release: {error}") from None
    return found


def _remember(path: Path, released: Mapping[str, Any], wanted: str) -> None:
    """Once for each package."""
    if all(release.manifest_digest != wanted for release in read_releases(path)):
        append_line(path, released)


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """One line, on disk before this returns."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(json.dumps(value, sort_keys=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def read_if_there(path: Path) -> bytes | None:
    """A file's bytes; None where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


# ---------------------------------------------------------------------- the audit's file


def encode_audit(report: Mapping[str, Any], identity: Identity | None) -> bytes:
    """The bytes of `audit.json`, signed where there is an identity."""
    value = dict(report)
    if identity is not None:
        value["signature"] = {
            "owner": identity.tenant,
            "public_key": identity.public_key.hex(),
            "signature": identity.sign("", _LABEL, NO_CONTEXT, _canonical(report)).hex(),
        }
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def decode_audit(data: bytes, source: str) -> dict[str, Any]:
    """Inverse of `encode_audit`. The signature stays in it, unchecked.

    Raises:
        ConfigError: it is no audit of this format.
    """
    try:
        value = json.loads(data)
        if value["format"] != _FORMAT or not isinstance(value["released"], dict):
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ConfigError(f"{source} is not an audit of format {_FORMAT}") from None
    return dict(value)


def signed_by(audit: Mapping[str, Any], public_key: bytes) -> bool:
    """Whether the audit carries this owner's signature over all the rest of it."""
    said = audit.get("signature")
    try:
        if not isinstance(said, dict) or bytes.fromhex(said["public_key"]) != public_key:
            return False
        signer = Member(str(said["owner"]), public_key)
        body = _canonical({name: value for name, value in audit.items() if name != "signature"})
        return signer.verify("", _LABEL, NO_CONTEXT, body, bytes.fromhex(said["signature"]))
    except (ValueError, TypeError, KeyError):
        return False


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
