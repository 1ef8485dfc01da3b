"""A process that trains and measures comparison arms: jobs in on stdin, results out on stdout.

One JSON object a line each way. A job says where its adapter comes from (the start, a file, the
owner's step over files, or training), whether to keep it, and on whose held-out text to measure it:

    {"job": "local:sympy", "from": {"train": ["sympy"], "rate": 0.01, "steps": 48},
     "save": "arms/local-sympy.safetensors", "split": "test", "on": ["sympy", "networkx"]}

The arms themselves are `secagg_models.arms`, the same functions whose federated part the tenants
run. This process sees every tenant's text, which no party of the federation does: it exists for
the comparison alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from secagg_models import arms, updates
from secagg_models.base import Base, load_base
from secagg_models.recipe import Recipe
from secagg_models.text import Corpus, Split, TokenStream, corpus_of_folder, encode
from secagg_models.updates import Update

_NICENESS = 5


class Worker:
    """A loaded base with one attached adapter, and everybody's text, encoded when first needed."""

    def __init__(self, setting: dict[str, Any]) -> None:
        self._recipe = read_recipe(setting["recipe"])
        self._texts = {name: Path(folder) for name, folder in setting["texts"].items()}
        self._corpora: dict[str, Corpus] = {}
        self._streams: dict[tuple[str, Split], TokenStream] = {}
        self._base: Base = load_base(setting["base"])
        self._start = updates.start(
            self._base.model, self._recipe.shape, int(setting["adapter_seed"])
        )
        self._model = updates.attach(self._base.model, self._start)

    @property
    def base_digest(self) -> str:
        """What tenants pin."""
        return self._base.digest

    def run(self, job: dict[str, Any]) -> dict[str, float]:
        """Do one job; the loss on each tenant's text, nats per byte."""
        adapter = self._adapter(job)
        if path := job.get("save"):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(updates.save(adapter))
        losses = {}
        for place, tenant in enumerate(job["on"]):
            say("measuring", job=job["job"], done=place, of=len(job["on"]))
            losses[tenant] = self._loss(adapter, tenant, job["split"])
        return losses

    def _adapter(self, job: dict[str, Any]) -> Update:
        match job["from"]:
            case "start":
                return self._start
            case {"file": path}:
                return self._load(path)
            case {"mean": paths}:
                return self._owners_step([self._load(path) for path in paths])
            case {"train": tenants, "rate": rate, "steps": steps}:
                return self._train(job["job"], tenants, rate, steps)
            case other:
                raise ValueError(f"a job cannot begin from {other!r}")

    def _owners_step(self, adapters: Sequence[Update]) -> Update:
        """What the owner makes of one round in which tenants learnt these adapters."""
        deltas = [updates.delta_of(adapter.trained, self._start) for adapter in adapters]
        mean = arms.plain_mean(deltas, [1.0] * len(deltas))
        return updates.next_round(self._start, mean, self._recipe.server_rate)

    def _train(self, job: str, tenants: Sequence[str], rate: float, steps: int) -> Update:
        streams = [self._stream(tenant, "train") for tenant in tenants]
        return arms.centralised(
            self._model, self._start, streams, self._recipe, rate, steps,
            lambda done, of, loss: say("training", job=job, done=done, of=of),
        )  # fmt: skip

    def _loss(self, adapter: Update, tenant: str, split: Split) -> float:
        recipe = self._recipe
        windows = recipe.test_windows if split == "test" else recipe.validation_windows
        return arms.loss_with(self._model, adapter, self._stream(tenant, split), recipe, windows)

    def _load(self, path: str) -> Update:
        return updates.load(Path(path).read_bytes(), self._recipe.shape)

    def _stream(self, tenant: str, split: Split) -> TokenStream:
        if tenant not in self._corpora:
            self._corpora[tenant] = corpus_of_folder(self._texts[tenant], name=tenant)
        if (tenant, split) not in self._streams:
            files = self._corpora[tenant].part(split)
            self._streams[tenant, split] = encode(tenant, files, self._base.tokenizer)
        return self._streams[tenant, split]


def read_recipe(fields: dict[str, Any]) -> Recipe:
    """A recipe from the JSON that `dataclasses.asdict` of one gives."""
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in fields.items()}
    return Recipe(**values)


def say(event: str, **fields: object) -> None:
    """One line out."""
    print(json.dumps({"event": event, **fields}), flush=True)


def serve(lines: Iterable[str]) -> None:
    """First line: the setting. Every further line: a job."""
    source = iter(lines)
    worker = Worker(json.loads(next(source)))
    say("ready", base_digest=worker.base_digest)
    for line in source:
        job = json.loads(line)
        say("job done", job=job["job"], losses=worker.run(job))


if __name__ == "__main__":
    os.nice(_NICENESS)  # tenants come first: they stand in a round with deadlines
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch

    torch.set_num_threads(1)
    serve(sys.stdin)
