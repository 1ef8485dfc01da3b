"""What is being learnt, as the rounds see it: a layout to sum in, a clip, files to publish, a step.

`VectorSubject` publishes nothing and keeps nothing: rounds of flat vectors, for dry runs and tests.
`UpdateSubject` (update_subject.py), `OffsiteSubject` (offsite_subject.py) and `BlockSubject`
(block_subject.py) are loaded only where they are configured, since torch is heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from secagg.identity import sha256
from secagg.layout import Layout
from secagg_owner.config import (
    BlockModel,
    Config,
    EdgesModel,
    LoraModel,
    OffsiteModel,
    VectorModel,
)
from secagg_wire.manifest import Manifest

NO_MODEL: Final = sha256(b"secagg: flat vectors, no model")
"""What a plan names in place of a version where nothing is published."""


@dataclass(frozen=True, slots=True)
class Publication:
    """A model version: manifest and files."""

    manifest: Manifest
    contents: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Lineage:
    """What the present state stands on: digests in hex, empty where there is none.

    `plugged_digest` names the full model with this state in it.
    """

    base_digest: str
    emulator_manifest: str = ""
    plugged_digest: str = ""


class Subject(Protocol):
    """See the module's docstring. Methods may take long and run in a worker thread."""

    def layout(self) -> Layout:
        """What a round sums."""

    def clip(self) -> float:
        """The quantiser's public range, from the configuration or a dry run on own text."""

    def publication(self) -> Publication | None:
        """The version that the next round starts from; None where nothing is published."""

    def lineage(self) -> Lineage | None:
        """What the present state stands on; None where no versions are kept."""

    def step(self, mean: NDArray[np.float64]) -> None:
        """Take the opened mean, (d,) float64."""

    def evaluate(self) -> Mapping[str, float]:
        """Figures on the owner's own held-out text."""

    def save(self) -> bytes:
        """What `restore` needs."""

    def restore(self, data: bytes, rounds_done: int) -> None:
        """Go on from what an earlier process saved."""


class VectorSubject:
    """See the module's docstring."""

    def __init__(self, config: VectorModel) -> None:
        self._config = config

    def layout(self) -> Layout:
        """See `Subject`."""
        return Layout.flat(self._config.length)

    def clip(self) -> float:
        """See `Subject`."""
        return self._config.clip

    def publication(self) -> Publication | None:
        """See `Subject`."""
        return None

    def lineage(self) -> Lineage | None:
        """See `Subject`."""
        return None

    def step(self, mean: NDArray[np.float64]) -> None:
        """See `Subject`."""

    def evaluate(self) -> Mapping[str, float]:
        """See `Subject`."""
        return {}

    def save(self) -> bytes:
        """See `Subject`."""
        return b""

    def restore(self, data: bytes, rounds_done: int) -> None:
        """See `Subject`."""


def make_subject(config: Config) -> Subject:
    """The configured subject.

    Raises:
        ModuleNotFoundError: torch is not installed and a model is configured.
    """
    match config.model:
        case VectorModel() as vector:
            return VectorSubject(vector)
        case LoraModel() as lora:
            from secagg_owner.update_subject import UpdateSubject

            return UpdateSubject.of_lora(lora, config)
        case EdgesModel() as edges:
            from secagg_owner.update_subject import UpdateSubject

            return UpdateSubject.of_edges(edges, config)
        case OffsiteModel() as offsite:
            from secagg_owner.offsite_subject import OffsiteSubject

            return OffsiteSubject(offsite, config)
        case BlockModel() as block:
            from secagg_owner.block_subject import BlockSubject

            return BlockSubject(block, config)
