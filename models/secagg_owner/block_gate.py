"""The gate that a block package passes before anything of it leaves.

A block leaves verbatim: there is nothing to attack that an audit would measure, and no score that
says it is safe. What can be held against the owner's policy is how much of the model has left: the
layers of this block with those of every block and every emulator's edges that passed before, as a
share of all layers (`verbatim.layers_max`). So two blocks of three do not leave by oversight.

DATA/blocks.jsonl     every block package that passed, in order
DATA/forced.jsonl     every forced passage, as for emulators (audit_gate.py)

Models of the same depth are taken for the same one, since a model that was tuned further still has
most of its weights. Shares are of layers, which are of equal size; embeddings, last norm and head
leave with any package and are not counted.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

from secagg.errors import ConfigError
from secagg_models.audit.policy import AuditPolicy
from secagg_models.audit.release import Release
from secagg_models.block_package import BlockMeta
from secagg_owner.audit_gate import (
    BLOCKS_FILE,
    FORCED_FILE,
    RELEASES_FILE,
    BlockRelease,
    Passage,
    append_line,
    read_blocks,
    read_releases,
)

CLAUSE: Final = "verbatim.layers_max"


def require_block(
    folder: Path,
    manifest_digest: bytes,
    meta: BlockMeta,
    policy: AuditPolicy,
    force_reason: str | None = None,
    *,
    data: Path,
) -> Passage:
    """Let a block package pass, and remember that it did; or refuse it. `data` is the owner's.

    Raises:
        ConfigError: with what left before, it would show more of the layers than the policy
            allows, and no reason was given to force it; or the reason is empty.
    """
    if force_reason is not None and not force_reason.strip():
        raise ConfigError("forcing a package past its gate needs a reason that is not empty")
    wanted, cut = manifest_digest.hex(), meta.cut
    release = BlockRelease(wanted, meta.full_digest, cut.layers, cut.full_block)
    shown = set(cut.full_block) | shown_before(data, cut.layers)
    allowed = policy.verbatim.layers_max
    refused = len(shown) > allowed * cut.layers
    if refused and not force_reason:
        raise ConfigError(
            f"package {folder} may not leave: {CLAUSE}: with what left before, layers "
            f"{sorted(shown)} of {cut.layers} would be known verbatim, and the policy allows "
            f"{allowed:.0%}; cut more blocks, or to publish it all the same: --force --reason TEXT"
        )
    reason = (force_reason or "").strip() if refused else ""
    passage = Passage(wanted, "", (CLAUSE,) if refused else (), reason)
    if refused:
        append_line(data / FORCED_FILE, passage.to_json() | {"at": round(time.time(), 3)})
    if all(earlier.manifest_digest != wanted for earlier in read_blocks(data / BLOCKS_FILE)):
        append_line(data / BLOCKS_FILE, asdict(release))
    return passage


def shown_before(data: Path, layers: int) -> set[int]:
    """Layers of a model of this depth that earlier packages show: blocks, edges, copies."""
    shown: set[int] = set()
    for block in read_blocks(data / BLOCKS_FILE):
        if block.layers == layers:
            shown |= set(block.shown)
    for release in read_releases(data / RELEASES_FILE):
        if release.split.layers == layers:
            shown |= _shown_by(release)
    return shown


def _shown_by(release: Release) -> set[int]:
    """An emulator's edges and verbatim copies; all that it has where no audit looked for copies."""
    if not release.layout_digest:
        return set(release.split.full_layers)
    edges = {release.split.full_index(layer) for layer in release.split.edge_layers}
    return edges | {int(name.partition(".")[0]) for name in release.verbatim}
