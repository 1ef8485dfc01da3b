"""What an owner keeps on disk, so that `run` goes on where an earlier process stopped.

DATA/state.json              rounds done, the clip, the round in flight
DATA/models/N/               the model's states and their lineage (registry.py)
DATA/adapters/K.bin          what a subject without versions saved after K rounds
DATA/versions/N/             published versions: manifest and files
DATA/rounds/R/               plan.bin, transcript.bin, opened_sum.npy, result.json
DATA/rounds/R/refused_sum.npy    in its place where the sum is not that of the uploads
DATA/rounds/R/leaves.json        the leaves that were drawn, where round.recompute is "random"
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from secagg.errors import ConfigError
from secagg.plan import RoundPlan
from secagg_owner.subject import Publication

MODELS: Final = "models"
"""The registry's folder in a data directory."""


@dataclass(frozen=True, slots=True)
class State:
    """`in_flight` is the number of a round that was planned and has no result yet; 0 for none.

    `model` is the registry's number of the present state, `origin` the round whose sum it was made
    from (`manifest.Origin`, as JSON) and `rollback` what it goes back to (`manifest.Rollback`).
    """

    rounds_done: int = 0
    clip: float | None = None
    in_flight: int = 0
    version: int = 0
    origin: dict[str, str] | None = None
    model: int = 0
    rollback: dict[str, str] | None = None


class OwnerFiles:
    """The files of one data directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot use {directory} for data: {error.strerror}") from None

    def read_state(self) -> State:
        """The state, a fresh one where there is none.

        Raises:
            ConfigError: the file is not one of ours.
        """
        path = self._directory / "state.json"
        if not path.exists():
            return State()
        try:
            return State(**json.loads(path.read_bytes()))
        except (ValueError, TypeError):
            raise ConfigError(f"{path} is not the state of an owner of this version") from None

    def write_state(self, state: State) -> State:
        """Keep it durably."""
        _write(self._directory / "state.json", _json(asdict(state)))
        return state

    def change(self, **changes: Any) -> State:
        """Read, change, keep."""
        return self.write_state(replace(self.read_state(), **changes))

    def write_adapter(self, rounds_done: int, data: bytes) -> None:
        """What the subject saved."""
        _write(self._directory / "adapters" / f"{rounds_done}.bin", data)

    def read_adapter(self, rounds_done: int) -> bytes | None:
        """Inverse; None where there is none."""
        path = self._directory / "adapters" / f"{rounds_done}.bin"
        return path.read_bytes() if path.exists() else None

    def write_version(self, number: int, publication: Publication) -> None:
        """A version as published."""
        folder = self._directory / "versions" / str(number)
        for name, data in publication.contents.items():
            _write(folder / name, data)
        _write(folder / "manifest.json", publication.manifest.encode())

    def write_plan(self, plan: RoundPlan) -> None:
        """Before it is sent: the same plan again opens the same round."""
        _write(self.round_folder(plan.round_number) / "plan.bin", plan.encode())

    def read_plan(self, number: int) -> RoundPlan:
        """Inverse."""
        return RoundPlan.decode((self.round_folder(number) / "plan.bin").read_bytes())

    def write_result(self, number: int, result: Mapping[str, Any]) -> None:
        """How a round ended."""
        _write(self.round_folder(number) / "result.json", _json(result))

    def draw(self, number: int, leaves: Sequence[int]) -> None:
        """Remember which leaves of a sum were drawn, before anybody hears of it."""
        _write(self.round_folder(number) / "leaves.json", _json(list(leaves)))

    def drawn(self, number: int) -> tuple[int, ...]:
        """Inverse; nothing where none were drawn."""
        path = self.round_folder(number) / "leaves.json"
        return tuple(json.loads(path.read_bytes())) if path.exists() else ()

    def write_sum(self, number: int, level_sum: NDArray[np.int64], transcript: bytes) -> None:
        """What was opened, and the messages that it stands on."""
        folder = self.round_folder(number)
        _write(folder / "transcript.bin", transcript)
        np.save(folder / "opened_sum.npy", level_sum)

    def write_refused_sum(
        self, number: int, level_sum: NDArray[np.int64], transcript: bytes
    ) -> None:
        """Evidence: what the coordinator claims, and the messages that say otherwise."""
        folder = self.round_folder(number)
        _write(folder / "transcript.bin", transcript)
        np.save(folder / "refused_sum.npy", level_sum)

    def results(self) -> list[dict[str, Any]]:
        """All results, in order."""
        paths = (self._directory / "rounds").glob("*/result.json")
        found = [json.loads(path.read_bytes()) for path in paths]
        return sorted(found, key=lambda result: int(result["round"]))

    def round_folder(self, number: int) -> Path:
        """Where a round's files lie."""
        return self._directory / "rounds" / str(number)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    passing = path.with_name(f"{path.name}.new")
    with passing.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(passing, path)


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
