"""Training that the sites have installed: it draws whole levels, and keeps what it drew.

Each site keeps what it contributed in its own folder (`DRIFT_FOLDER`), and takes its orders from
its own environment: none of it passes through NVFLARE.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.np.constants import NPConstants

FOLDER = "DRIFT_FOLDER"
HANGS = "DRIFT_HANGS_IN_ROUND"
LAYERS = {NPConstants.NUMPY_KEY: (40, 50)}
VALUE_BITS = 16
SCALE = 2.0**-20
CLIP = (2 ** (VALUE_BITS - 1) - 1) * SCALE
MAX_WEIGHT = 4
_HANGING_S = 600


def first_model() -> list[list[float]]:
    """What the persistor starts with, as a job's JSON can hold it."""
    (shape,) = LAYERS.values()
    values: list[list[float]] = np.random.default_rng(7).normal(0, 0.1, shape).tolist()
    return values


class Drift(Executor):
    """Returns drawn changes: whole levels at the site's weight, so no rounding is left to chance.

    `kind` is what it returns: WEIGHT_DIFF, or WEIGHTS as most training code does.
    """

    def __init__(self, kind: str = DataKind.WEIGHT_DIFF) -> None:
        super().__init__()
        self.kind = kind

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """Draw, keep, and return."""
        number = int(shareable.get_header(AppConstants.CURRENT_ROUND))
        before = from_shareable(shareable).data
        own = Path(os.environ[FOLDER])
        (own / f"training-{number}").touch()
        if os.environ.get(HANGS) == str(number):
            _hang(abort_signal)
        weight = weight_of(fl_ctx.get_identity_name())
        drawn = {n: np.random.default_rng().integers(-2000, 2001, LAYERS[n]) for n in LAYERS}
        np.savez(own / f"levels-{number}.npz", weight=weight, **drawn)
        np.savez(own / f"before-{number}.npz", **before)
        delta = {n: (drawn[n] * (MAX_WEIGHT * SCALE / weight)).astype("f4") for n in LAYERS}
        if self.kind == DataKind.WEIGHTS:
            delta = {name: np.asarray(before[name], "f4") + delta[name] for name in LAYERS}
        meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: weight}
        return DXO(self.kind, delta, meta).to_shareable()


class Leaks(Executor):
    """Returns weights whatever it is asked, as code of an untrusted job might."""

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """The weights, in the clear."""
        (Path(os.environ[FOLDER]) / "leaks").touch()
        weights = {name: np.ones(shape, np.float32) for name, shape in LAYERS.items()}
        return DXO(DataKind.WEIGHTS, weights).to_shareable()


def weight_of(site: str) -> int:
    """1 to 4: the sites count differently."""
    return 1 << (int(site.rpartition("-")[2]) % 3)


def _hang(abort_signal: Signal) -> None:
    until = time.monotonic() + _HANGING_S
    while not abort_signal.triggered and time.monotonic() < until:
        time.sleep(0.1)
