"""What a tenant measures where data keep coming: new windows, held-out windows, remembered ones.

`look` reads the private data again and measures what came since the last look under the model in
use, before anything of it is trained on. `compare` measures a new version beside the one in use.
Both measure a fixed number of windows whatever has come, so neither how long they take nor what
the tenant does next says anything about the data.

State lies in `data/online/`: `memory.npz`, the first held-out windows that there were, for good
(where they are too few to ever decide by, until there are more);
`watch.json`, what was seen and the drift detector's reference. Both are as private as the data
(mode 0600) and never leave.

A model that serves for the first time has other losses: the reference is moved by the mean
difference that it makes on the remembered windows, since a new model is no drift. It is a level:
where a version helps new data and hurts old ones, an alarm may come too late or too early.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from secagg.errors import ConfigError
from secagg_models.online.arrivals import Arrivals, Seen, series_arrivals, text_arrivals
from secagg_models.online.decision import (
    LEAST_WINDOWS,
    Judgement,
    Losses,
    NonInferiority,
    judge,
)
from secagg_models.online.drift import Alarm, DriftLimits, DriftState, observe_all, shifted
from secagg_models.online.windows import (
    Windows,
    load_windows,
    save_windows,
    window_losses,
    with_truth,
)
from secagg_models.text import SPLITS, Corpus
from secagg_tenant.config import OnlineTable
from secagg_tenant.trainer import ModelVersion
from secagg_tenant.update_trainer import UpdateTrainer


@dataclass(frozen=True, slots=True)
class Look:
    """How many windows were new, of how many measured, and the alarms that they raised."""

    fresh: int
    measured: int
    alarms: tuple[Alarm, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A version against the one in use: on held-out windows, and on those remembered."""

    held_out: Judgement
    memory: Judgement

    @property
    def verdict(self) -> str:
        """Approved on both, rejected on either, else undecided."""
        both = {self.held_out.verdict, self.memory.verdict}
        if "rejected" in both:
            return "rejected"
        return "approved" if both == {"approved"} else "undecided"

    @property
    def reason(self) -> str:
        """For this tenant's own eyes."""
        return f"held-out: {self.held_out.reason}; remembered: {self.memory.reason}"

    @property
    def figures(self) -> dict[str, float]:
        """Of the new version."""
        return {"held_out_loss": self.held_out.after, "memory_loss": self.memory.after}


@dataclass(frozen=True, slots=True)
class _Watch:
    """What is kept from one look to the next."""

    seen: Seen
    drift: DriftState
    serving: str
    memory_loss: float

    def to_json(self) -> dict[str, Any]:
        return {
            "seen": self.seen.to_json(), "drift": self.drift.to_json(),
            "serving": self.serving, "memory_loss": self.memory_loss,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Any) -> _Watch:
        return cls(
            Seen.from_json(data["seen"]), DriftState.from_json(data["drift"]),
            str(data["serving"]), float(data["memory_loss"]),
        )  # fmt: skip


@dataclass(frozen=True)
class Measuring:
    """See the module's docstring. Runs in the training thread, one call at a time."""

    trainer: UpdateTrainer
    table: OnlineTable
    folder: Path

    def look(self, like: ModelVersion, serving: ModelVersion | None) -> Look:
        """Read the data again and measure what came; `like` says how windows are cut.

        Raises:
            ConfigError: the data, or what was kept of the last look, cannot be read.
        """
        self.trainer.reread(like)
        before = self._kept()
        found = self._arrivals(like, before.seen if before else Seen())
        losses = self._losses(serving, found.windows, like)
        losses = losses[with_truth(found.windows) & (np.arange(len(losses)) < found.fresh)]
        level = self._level(serving, like)
        name = "" if serving is None else serving.manifest.digest.hex()
        drift = before.drift if before else DriftState()
        if before is not None and before.serving != name:
            drift = shifted(drift, level - before.memory_loss)
        drift, alarms = observe_all(drift, _shuffled(losses), self._limits)
        self._keep(_Watch(found.seen, drift, name, level))
        return Look(found.fresh, self.table.arrival_windows, tuple(alarms))

    def compare(self, serving: ModelVersion | None, candidate: ModelVersion) -> Comparison:
        """A new version beside the one in use, on the same windows.

        Raises:
            ConfigError: a version cannot be read, or the one in use has no finite loss.
        """
        held_out = self.trainer.held_out(candidate, self.table.held_out_windows)
        table, memory = self.table, self._memory(candidate)
        return Comparison(
            self._judged(serving, candidate, held_out, table.margin),
            self._judged(serving, candidate, memory, table.forget_margin),
        )

    def _judged(
        self, serving: ModelVersion | None, candidate: ModelVersion, windows: Windows, margin: float
    ) -> Judgement:
        known = with_truth(windows)
        before = self._losses(serving, windows, candidate)[known]
        after = self._losses(candidate, windows, candidate)[known]
        if not known.any():
            raise ConfigError(
                f"in none of {len(known)} windows is there a value to compare by: the newest "
                "values are missing; 'secagg tenant approve' decides"
            )
        return judge(before, after, NonInferiority(margin, self.table.confidence))

    def _level(self, serving: ModelVersion | None, like: ModelVersion) -> float:
        """Mean loss on the remembered windows; NaN where nothing in them can be measured by."""
        memory = self._memory(like)
        losses = self._losses(serving, memory, like)[with_truth(memory)]
        return float(losses.mean()) if len(losses) else math.nan

    def _losses(self, version: ModelVersion | None, windows: Windows, like: ModelVersion) -> Losses:
        precision = self.trainer.training_of(like).precision
        return window_losses(self.trainer.model_of(version), windows, precision)

    def _arrivals(self, like: ModelVersion, seen: Seen) -> Arrivals:
        limit, context = self.table.arrival_windows, self.trainer.training_of(like).context
        match self.trainer.private:
            case Corpus() as corpus:
                files = [file for part in SPLITS for file in corpus.part(part)]
                return text_arrivals(
                    files, seen, self.trainer.encoded, limit=limit, context=context
                )
            case Sequence() as series:
                horizon = self.trainer.horizon
                return series_arrivals(series, seen, limit=limit, context=context, horizon=horizon)

    def _memory(self, like: ModelVersion) -> Windows:
        path = self.folder / "memory.npz"
        kept = load_windows(path) if path.exists() else None
        if kept is not None and not self.trainer.takes(kept):
            raise ConfigError(
                f"{path} holds windows that this base does not take, such as another base's; "
                f"remove {self.folder} to begin anew"
            )
        count = 0 if kept is None else with_truth(kept).sum()
        if kept is not None and count >= LEAST_WINDOWS:
            return kept
        held_out = self.trainer.held_out(like, self.table.memory_windows)
        if kept is not None and with_truth(held_out).sum() <= count:
            return kept
        self._make_folder()
        save_windows(path, held_out)
        return held_out

    @cached_property
    def _limits(self) -> DriftLimits:
        return DriftLimits(self.table.windows_per_false_alarm)

    def _kept(self) -> _Watch | None:
        path = self.folder / "watch.json"
        try:
            return _Watch.from_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is unreadable: {error}; remove it to begin anew") from None

    def _keep(self, watch: _Watch) -> None:
        self._make_folder()
        passing = self.folder / "watch.json.new"
        descriptor = os.open(passing, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(watch.to_json(), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(passing, self.folder / "watch.json")

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _shuffled(losses: Losses) -> list[float]:
    """In an order of no meaning, the same at every call.

    Windows of one file are alike, and so are neighbours in time: in their own order they would
    alarm without any change (drift.py).
    """
    order = np.random.default_rng(len(losses)).permutation(len(losses))
    return [float(loss) for loss in losses[order]]
