"""A process that trains and measures comparison arms: jobs in on stdin, results out on stdout.

One JSON object a line each way. A job says which model is tuned, where its update comes from (the
start, a file, the owner's step over files, or training), whether to keep it, and how to measure it
on whose held-out data:

    {"job": "local sympy", "tunes": "emulator", "keep": "arms/local-sympy.safetensors",
     "from": {"train": ["sympy"], "first_step": 0, "steps": 72, "start": null},
     "measure": ["plug_in", "emulator"], "on": ["sympy", "networkx"]}

What can be tuned and measured is the task's: of text, "emulator" (its edge layers) and "full" (all
layers of the full model) are tuned, and an update of the emulator is measured in the full model
("plug_in") or in the emulator; of time series, "forecaster" (what tenants train of it) and "full"
(all of its weights), measured as they are, and "seasonal_naive" needs no model.

Training is `secagg_models.arms`, the same functions whose federated part the tenants run. This
process sees the full model and every tenant's data, which no party of the federation does: it
exists for the comparison alone.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from secagg_demo.rolling import forecaster_loss, seasonal_naive_loss
from secagg_models import arms, train, updates
from secagg_models.base import load_base
from secagg_models.edges import EdgesShape
from secagg_models.families import layers_of
from secagg_models.package import load_full_model, read_package
from secagg_models.plug_in import plugged_in
from secagg_models.recipe import Recipe, Rounds, SeriesRecipe
from secagg_models.series.folder import series_of_folder
from secagg_models.series.stream import Series, SeriesStream, stream_of
from secagg_models.text import Corpus, Split, TokenStream, corpus_of_folder, encode
from secagg_models.updates import Update
from secagg_wire.signed_manifest import read_signed_folder

_NICENESS = 5
RecipeKind = TypeVar("RecipeKind", bound=Rounds)
LossOf = Callable[[str], float]
"""A tenant's held-out loss."""


class Tuned:
    """A model with an update attached, and the update from which all arms of it start."""

    def __init__(self, model: Any, shape: updates.UpdateShape, seed: int, lr: float) -> None:
        self.start: Update = updates.start(model, shape, seed)
        self.lr = lr
        self.model = updates.attach(model, self.start)

    def load(self, path: str) -> Update:
        """An update of this shape, from a file."""
        return updates.load(Path(path).read_bytes(), self.start.shape)


def _everything(model: Any) -> EdgesShape:
    """All of a model, whole."""
    return EdgesShape(tuple(range(len(layers_of(model)))), embeddings=True)


class Material(Protocol):
    """What jobs are about: models that can be tuned, by name, and everybody's data."""

    @property
    def recipe(self) -> Rounds:
        """What is trained, and how."""

    @property
    def tuned(self) -> Mapping[str, Tuned]:
        """The models that can be tuned, by name."""

    def train_stream(self, tenant: str) -> train.Stream:
        """What a tenant trains on."""

    def measured(self, what: str, update: Update) -> AbstractContextManager[LossOf]:
        """Within a `with`: the loss of a tenant's test data under this update (`LossOf`)."""


class TextMaterial:
    """The full model, the emulator, and everybody's text, encoded when first needed."""

    def __init__(self, setting: Mapping[str, Any]) -> None:
        self.recipe = recipe = read_recipe(Recipe, setting["recipe"])
        self._texts = {name: Path(folder) for name, folder in setting["data"].items()}
        self._corpora: dict[str, Corpus] = {}
        self._streams: dict[tuple[str, Split], TokenStream] = {}
        full = load_full_model(setting["full"])
        package = read_signed_folder(Path(setting["emulator"]), None, None, beside={"audit.json"})
        emulator = read_package(package.folder, package.names, package.manifest.meta)
        self._split = emulator.meta.split
        self._tokenizer = full.tokenizer
        self._full = full.model
        seed = int(setting["update_seed"])
        whole = copy.deepcopy(full.model)
        self.tuned = {
            "emulator": Tuned(emulator.model, recipe.shape(self._split), seed, recipe.lr),
            "full": Tuned(whole, _everything(whole), seed, recipe.full_lr),
        }

    def train_stream(self, tenant: str) -> train.Stream:
        """See `Material`."""
        return self._stream(tenant, "train")

    @contextmanager
    def measured(self, what: str, update: Update) -> Iterator[LossOf]:
        """See `Material`."""
        if what == "plug_in":
            with plugged_in(self._full, update, self._split) as model:
                yield lambda tenant: self._loss(model, tenant)
        else:
            tuned = self.tuned[what]
            updates.install(tuned.model, update)
            yield lambda tenant: self._loss(tuned.model, tenant)

    def _loss(self, model: Any, tenant: str) -> float:
        recipe = self.recipe
        return train.evaluate(
            model, self._stream(tenant, "test"), context=recipe.context,
            max_windows=recipe.test_windows, precision=recipe.precision,
        )  # fmt: skip

    def _stream(self, tenant: str, split: Split) -> TokenStream:
        if tenant not in self._corpora:
            self._corpora[tenant] = corpus_of_folder(self._texts[tenant], name=tenant)
        if (tenant, split) not in self._streams:
            files = self._corpora[tenant].part(split)
            self._streams[tenant, split] = encode(tenant, files, self._tokenizer)
        return self._streams[tenant, split]


class SeriesMaterial:
    """The forecaster, and everybody's series."""

    def __init__(self, setting: Mapping[str, Any]) -> None:
        self.recipe = recipe = read_recipe(SeriesRecipe, setting["recipe"])
        self._series: dict[str, list[Series]] = {
            name: series_of_folder(Path(folder)) for name, folder in setting["data"].items()
        }
        model = load_base(recipe.base).model
        self._shape = model.shape
        seed = int(setting["update_seed"])
        whole = copy.deepcopy(model)
        self.tuned = {
            "forecaster": Tuned(model, recipe.shape_in(model), seed, recipe.lr),
            "full": Tuned(whole, _everything(whole), seed, recipe.full_lr),
        }

    def train_stream(self, tenant: str) -> train.Stream:
        """See `Material`."""
        return self._stream(tenant, "train")

    @contextmanager
    def measured(self, what: str, update: Update) -> Iterator[LossOf]:
        """See `Material`."""
        recipe = self.recipe
        if what == "seasonal_naive":
            levels = self._shape.quantiles
            yield lambda tenant: seasonal_naive_loss(
                self._stream(tenant, "test"), levels, recipe.context, recipe.test_windows
            )
        else:
            model = self.tuned[what].model
            updates.install(model, update)
            yield lambda tenant: forecaster_loss(
                model, self._stream(tenant, "test"), recipe.context, recipe.test_windows,
                recipe.precision,
            )  # fmt: skip

    def _stream(self, tenant: str, split: Split) -> SeriesStream:
        return stream_of(tenant, self._series[tenant], split, self._shape.horizon)


class Worker:
    """Does jobs about a material."""

    def __init__(self, material: Material) -> None:
        self._material = material

    def run(self, job: dict[str, Any]) -> dict[str, dict[str, float]]:
        """Do one job; by what was measured, the loss on each tenant's data."""
        tuned = self._material.tuned[job["tunes"]]
        update = self._update(job, tuned)
        if path := job.get("keep"):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(updates.save(update))
        return {what: self._losses(job, what, update) for what in job["measure"]}

    def _update(self, job: dict[str, Any], tuned: Tuned) -> Update:
        match job["from"]:
            case "start":
                return tuned.start
            case {"file": path}:
                return tuned.load(path)
            case {"mean": paths, "start": start}:
                return self._owners_step(tuned, start, paths)
            case {"train": tenants, "first_step": first, "steps": steps, "start": start}:
                return self._train(job["job"], tuned, tenants, start, first, steps)
            case other:
                raise ValueError(f"a job cannot begin from {other!r}")

    def _owners_step(self, tuned: Tuned, start: str | None, paths: Sequence[str]) -> Update:
        """What the owner makes of one round in which tenants learnt these updates."""
        began = tuned.start if start is None else tuned.load(start)
        deltas = [updates.delta_of(tuned.load(path).trained, began) for path in paths]
        mean = arms.plain_mean(deltas, [1.0] * len(deltas))
        return updates.next_round(began, mean, self._material.recipe.server_rate)

    def _train(
        self, job: str, tuned: Tuned, tenants: Sequence[str], start: str | None, first: int,
        steps: int,
    ) -> Update:  # fmt: skip
        began = tuned.start if start is None else tuned.load(start)
        streams = [self._material.train_stream(tenant) for tenant in tenants]
        config = self._material.recipe.stretch(tuned.lr, first, steps)
        train.train_update(
            tuned.model, began, streams, config,
            lambda done, of, loss: say("training", job=job, done=done, of=of),
        )  # fmt: skip
        return updates.add_delta(began, updates.delta_of(updates.state(tuned.model, began), began))

    def _losses(self, job: dict[str, Any], what: str, update: Update) -> dict[str, float]:
        losses = {}
        with self._material.measured(what, update) as loss_of:
            for place, tenant in enumerate(job["on"]):
                say("measuring", job=job["job"], done=place, of=len(job["on"]))
                losses[tenant] = loss_of(tenant)
        return losses


def material_of(setting: Mapping[str, Any]) -> Material:
    """What the setting's task needs."""
    match setting["task"]:
        case "text":
            return TextMaterial(setting)
        case "timeseries":
            return SeriesMaterial(setting)
        case other:
            raise ValueError(f"there is no task {other!r}")


def read_recipe(kind: type[RecipeKind], fields: Mapping[str, Any]) -> RecipeKind:
    """A recipe from the JSON that `dataclasses.asdict` of one gives."""
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in fields.items()}
    return kind(**values)


def say(event: str, **fields: object) -> None:
    """One line out."""
    print(json.dumps({"event": event, **fields}), flush=True)


def serve(lines: Iterable[str]) -> None:
    """First line: the setting. Every further line: a job."""
    source = iter(lines)
    worker = Worker(material_of(json.loads(next(source))))
    say("ready")
    for line in source:
        job = json.loads(line)
        say("job done", job=job["job"], losses=worker.run(job))


if __name__ == "__main__":
    os.nice(_NICENESS)  # tenants come first: they stand in a round with deadlines
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch

    torch.set_num_threads(1)
    serve(sys.stdin)
