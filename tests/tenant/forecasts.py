"""A tiny forecaster, series that may change their ways, and versions of it, for online use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from secagg_models import lora, train, updates
from secagg_models.base import Base, load_base
from secagg_models.series.folder import export_series
from secagg_models.series.forecaster import Forecaster, ForecasterShape, save_forecaster
from secagg_models.series.stream import Series, stream_of
from secagg_models.version import UpdateMeta
from secagg_tenant.config import Model, OnlineTable, PolicyTable, SeriesTraining
from secagg_tenant.measuring import Measuring
from secagg_tenant.trainer import ModelVersion
from secagg_tenant.update_trainer import UpdateTrainer
from secagg_wire.manifest import Manifest

SHAPE = ForecasterShape(
    width=16, layers=2, heads=2, intermediate=24, patch=4, context=32, horizon=4,
    quantiles=(0.1, 0.5, 0.9),
)  # fmt: skip
TRAINING = train.TrainingConfig(
    steps=2, batch=4, context=32, lr=0.02, schedule=train.Schedule(400), seed=1,
    precision="float32",
)  # fmt: skip
LORA = lora.LoraShape(2, 2.0, ("q_proj", "down_proj"))
QUIET = 400
"""Values before anything changes."""


def values(seed: int, length: int, drift_from: int | None = None) -> NDArray[np.float32]:
    """A noisy season of 8 values; from `drift_from` on, noise alone, three times as strong."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=length).astype(np.float32)
    drawn: NDArray[np.float32] = 0.3 * noise
    drawn += np.sin(np.arange(length) * (2 * np.pi / 8)).astype(np.float32)
    if drift_from is not None:
        drawn[drift_from:] = 2 * noise[drift_from:]
    return drawn


def write(folder: Path, length: int, drift_from: int | None = None) -> None:
    """Two series of one company."""
    drawn = (values(seed, length, drift_from) for seed in (1, 2))
    export_series([Series(f"s{row}", each) for row, each in enumerate(drawn)], folder)


def trained_base(folder: Path) -> Base:
    """A forecaster that knows the season, saved and loaded again."""
    torch.manual_seed(5)
    model = Forecaster(SHAPE)
    stream = stream_of("ada", [Series("s", values(9, QUIET))], "train", SHAPE.horizon)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(60):
        batch = stream.windows_at(0, step, 16, SHAPE.context)
        optimizer.zero_grad()
        train.item_losses(model, batch, "float32").mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    save_forecaster(model, folder)
    return load_base(str(folder))


@dataclass
class Company:
    """A tenant's trainer and what it measures, without a coordinator."""

    base: Base
    folder: Path
    trainer: UpdateTrainer
    measuring: Measuring

    @classmethod
    def open(cls, base: Base, folder: Path, **online: int) -> Company:
        """`folder` holds `series/`; what was measured before is there again."""
        config = SeriesTraining(trainer="series", series=folder / "series")
        model = Model(base=base.source, base_digest=base.digest)
        policy = PolicyTable(roster_digest="00" * 32)
        trainer = UpdateTrainer(config, model, policy, "ada", growing=True)
        table = OnlineTable.model_validate(
            {"held_out_windows": 24, "memory_windows": 16, "arrival_windows": 64, **online}
        )
        return cls(base, folder, trainer, Measuring(trainer, table, folder / "online"))

    def version(self, update: updates.Update, number: int) -> ModelVersion:
        manifest, files = signed_over(self.base, update)
        folder = self.folder / "versions" / manifest.digest.hex()
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        (folder / "manifest.json").write_bytes(manifest.encode())
        return ModelVersion(number, manifest, folder)


def signed_over(base: Base, update: updates.Update) -> tuple[Manifest, dict[str, bytes]]:
    """A version's manifest and files."""
    meta = UpdateMeta(base.digest, update.shape, TRAINING)
    files = {meta.file: updates.save(update)}
    return Manifest.of(files, meta.to_json()), files


def start(base: Base) -> updates.Update:
    return updates.start(base.model, LORA, 1)


def disturbed(update: updates.Update, size: float, seed: int = 2) -> updates.Update:
    """The update after a round whose mean is noise of this size."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: size * torch.randn(tensor.shape, generator=generator)
        for name, tensor in update.trained.items()
    }
    return updates.next_round(update, drawn, 0.02)
