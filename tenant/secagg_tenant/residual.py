"""Error feedback on disk: what quantising lost, kept at the tenant for its next contribution.

Seide et al. 2014; Karimireddy et al. 2019. The residual of a round is written beside the round
before its upload is committed and takes the old one's place right after, so that a crash in between
adds nothing twice. It is updated at upload, whatever survivor set is opened. It is as private as
the text, and off where nothing is kept (a change of layout, a version that is gone).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secagg_tenant.trainer import Vector

_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class ResidualFile:
    """One residual, with the digests of the layout and of the version that it belongs to."""

    path: Path

    def write(self, residual: Vector, layout_digest: bytes, version_digest: bytes) -> None:
        """Write it durably."""
        passing = self.path.with_suffix(".new")
        descriptor = os.open(passing, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(layout_digest + version_digest)
            np.lib.format.write_array(file, residual, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(passing, self.path)

    def read(self, layout_digest: bytes) -> tuple[Vector, bytes] | None:
        """The residual and its version's digest; None if there is none of this layout."""
        try:
            with self.path.open("rb") as file:
                digests = file.read(2 * _DIGEST_BYTES)
                if digests[:_DIGEST_BYTES] != layout_digest:
                    return None
                residual = np.lib.format.read_array(file, allow_pickle=False)
        except (OSError, ValueError):
            return None
        return residual.astype(np.float32), digests[_DIGEST_BYTES:]

    def take_over(self, target: Path) -> None:
        """Put this residual in the place of `target`; nothing happens where there is none."""
        if self.path.exists():
            os.replace(self.path, target)
