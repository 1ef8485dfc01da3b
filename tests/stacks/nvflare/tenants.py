"""Real tenants of a job's sites: their folders, and training whose outcome can be foretold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants

from secagg_embed.folder import make_tenants
from secagg_embed.nvflare.site import FOLDER
from secagg_embed.terms import Terms

CLIP = 1.0
STEP = 2 * CLIP / (2**16 - 1)  # of the quantiser at 16 bits


def first_model() -> dict[str, np.ndarray]:
    """Two tensors that are averaged, and one that stays."""
    rng = np.random.default_rng(5)
    return {
        "dense.weight": rng.normal(size=(7, 3)).astype(np.float32),
        "dense.bias": rng.normal(size=3).astype(np.float32),
        "batches": np.array(12, np.int64),
    }


def change(site: str, round_number: int = 0) -> dict[str, np.ndarray]:
    """What a site's training adds; within the clip."""
    rng = np.random.default_rng([round_number, *site.encode()])
    return {
        name: rng.uniform(-0.9, 0.9, tensor.shape).astype(np.float32)
        for name, tensor in first_model().items()
        if name != "batches"
    }


def steps_of(site: str) -> int:
    """Tenants weigh differently."""
    return 10 + sum(site.encode()) % 40


def trained(site: str, before: Mapping[str, Any], round_number: int = 0) -> dict[str, Any]:
    """The model after a site's training."""
    drawn = change(site, round_number)
    return {name: value + drawn[name] if name in drawn else value for name, value in before.items()}


def mean_change(sites: list[str], round_number: int = 0, weighted: bool = True) -> dict[str, Any]:
    """The mean that federated averaging has to find."""
    weights = [steps_of(site) if weighted else 1 for site in sites]
    return {
        name: np.average([change(s, round_number)[name] for s in sites], axis=0, weights=weights)
        for name in change(sites[0])
    }


def require_mean(
    after: Mapping[str, Any], before: Mapping[str, Any], sites: list[str], number: int = 0
) -> None:
    """`after` is `before` and the mean change of these sites, up to the quantiser's steps."""
    for name, expected in mean_change(sites, number).items():
        assert np.abs(after[name] - before[name] - expected).max() < 6 * STEP, name
        assert after[name].dtype == np.float32
    assert np.array_equal(after["batches"], before["batches"])


class Trainer(Executor):
    """A site's own executor, as it would be without us; remembers what it was given.

    `returns` decides what it gives back, of the model after training and the one before.
    """

    def __init__(self, returns: Any = None) -> None:
        super().__init__()
        self.given: list[Shareable] = []
        self.events: list[str] = []
        self._returns = returns or weights

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        self.events.append(event_type)

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        self.given.append(shareable)
        site, number = fl_ctx.get_identity_name(), shareable.get_header(AppConstants.CURRENT_ROUND)
        before = from_shareable(shareable).data
        result: Shareable = self._returns(trained(site, before, number), before, steps_of(site))
        return result


def weights(after: Mapping[str, Any], before: Mapping[str, Any], steps: int) -> Shareable:
    """What most training code returns, with metrics and more besides."""
    meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: steps, MetaKey.INITIAL_METRICS: {"accuracy": 0.5}}
    return DXO(DataKind.WEIGHTS, dict(after), meta).to_shareable()


def weight_diff(after: Mapping[str, Any], before: Mapping[str, Any], steps: int) -> Shareable:
    """The other kind."""
    diff = {name: after[name] - before[name] for name in after}
    return DXO(DataKind.WEIGHT_DIFF, diff, {MetaKey.NUM_STEPS_CURRENT_ROUND: steps}).to_shareable()


@dataclass
class Federation:
    """Sites with tenants' folders under one root, named to the sites by their environment."""

    root: Path
    names: tuple[str, ...] = tuple(f"site-{n}" for n in range(1, 6))
    terms: Terms = field(default_factory=lambda: Terms(CLIP, max_weight=100))

    @property
    def roster(self) -> str:
        """The server's copy."""
        return str(self.root / "tenants" / self.names[0] / "roster.bin")

    def enrol(self, monkeypatch: Any) -> Federation:
        """Make the tenants, and say at the sites where they are."""
        make_tenants(self.root / "tenants", self.names)
        monkeypatch.setenv(FOLDER, str(self.root / "tenants" / "{site}"))
        return self
