"""What the benchmark's jobs name: a model of zeros at the server, training that costs nothing.

The sites have these installed, so that the jobs bring no code (`class_allow_list`).
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
from nvflare.app_common.abstract.model import ModelLearnable, make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor

MARKS = "BENCHMARK_MARKS"
PAUSE_S = 1.0
STEP = np.float32(1.0 / 1024)


class Zeros(ModelPersistor):
    """`size` float32 zeros in `tensors` arrays; nothing is saved."""

    def __init__(self, size: int, tensors: int = 1) -> None:
        super().__init__()
        self.size = size
        self.tensors = tensors

    def load_model(self, fl_ctx: FLContext) -> ModelLearnable:
        """The round's first model."""
        parts = np.array_split(np.zeros(self.size, np.float32), self.tensors)
        return make_model_learnable({f"layer{i}": part for i, part in enumerate(parts)}, {})

    def save_model(self, model: ModelLearnable, fl_ctx: FLContext) -> None:
        """Nothing: what a model costs to write is no part of the comparison."""


class Step(Executor):
    """Adds noise (a tenant refuses to send one delta twice), and notes when it was asked.

    It takes a second, in which nobody sends anything: what was used is read off in its middle.
    """

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """The trained weights."""
        mark()
        time.sleep(PAUSE_S)
        draw = np.random.default_rng()
        weights = {
            name: np.asarray(value, np.float32) + draw.random(np.size(value), np.float32) * STEP
            for name, value in from_shareable(shareable).data.items()
        }
        meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: 1}
        return DXO(DataKind.WEIGHTS, weights, meta).to_shareable()


def mark() -> None:
    """One line for each call, in the site's own file."""
    with Path(os.environ[MARKS]).open("a", encoding="utf-8") as file:
        file.write(f"{time.time()!r}\n")
