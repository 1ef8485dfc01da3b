"""A live round's private files: what a restart in the middle of an upload needs.

An upload may only go on with the very same input (check C34), so the contribution is kept until the
upload is committed. It is as private as the text that it was trained on, lies beside it (mode 0600)
and never leaves.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secagg_tenant.residual import ResidualFile
from secagg_tenant.trainer import Contribution

_WEIGHT_BYTES = 8


@dataclass(frozen=True, slots=True)
class RoundFiles:
    """The files of one live round."""

    folder: Path

    @property
    def residual(self) -> ResidualFile:
        """The residual of this round's upload, until it takes the old one's place."""
        return ResidualFile(self.folder / "residual.bin")

    def write_contribution(self, contribution: Contribution) -> None:
        """Keep it durably."""
        self.folder.mkdir(parents=True, exist_ok=True)
        passing = self._contribution.with_suffix(".new")
        descriptor = os.open(passing, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(contribution.weight.to_bytes(_WEIGHT_BYTES, "big"))
            np.lib.format.write_array(file, contribution.vector, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(passing, self._contribution)

    def read_contribution(self) -> Contribution | None:
        """What was kept, None if nothing was."""
        try:
            with self._contribution.open("rb") as file:
                weight = int.from_bytes(file.read(_WEIGHT_BYTES), "big")
                vector = np.lib.format.read_array(file, allow_pickle=False)
        except (OSError, ValueError):
            return None
        return Contribution(vector, weight)

    def drop_contribution(self) -> None:
        """The upload is committed: nothing needs it any more."""
        self._contribution.unlink(missing_ok=True)

    @property
    def _contribution(self) -> Path:
        return self.folder / "contribution.bin"
