"""A process that measures one part of the five rows for one seed; the job is its argument, JSON.

    {"model": "minilm", "part": "emulator", "seed": 1, "quick": false,
     "emulator": null, "passages": "out/passages.json", "on": "test", "instead": {"lr": 0.004}}

`part` is `emulator` (the federation against it, plug-in, local-only, centralised) or `full` (the
full model, untuned and tuned). Progress and the result are lines of JSON on standard output.

Training is `secagg_models.arms`, what tenants run. A tenant's delta is rounded as in a round
(`secagg.encoding`, 16 bits, without error feedback) and the levels are summed in plain text: the
protocol itself adds nothing to a sum, and `secagg demo` runs it. This process sees the full model
and every tenant's text, which no party of a federation does.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secagg.encoding import Quantiser
from secagg.errors import ConfigError
from secagg_models import arms, minilm, train, updates
from secagg_models.audit.verbatim import audit_verbatim
from secagg_models.base import SHIPPED, SHIPPED_EMULATOR
from secagg_models.distill import DistillationConfig, DistillationStep, distill
from secagg_models.edges import EdgesShape
from secagg_models.emulator import build_emulator
from secagg_models.families import layers_of
from secagg_models.flatten import flatten, unflatten
from secagg_models.labelled import LabelledStream
from secagg_models.lora import LoraShape
from secagg_models.package import load_full_model, read_package
from secagg_models.plug_in import plugged_in
from secagg_models.recipe import Recipe
from secagg_models.split import Split
from secagg_models.subjects import passages_from_json
from secagg_models.text import TokenStream, corpus_of_package, encode
from secagg_models.updates import Update
from secagg_wire.signed_manifest import read_signed_folder

_PIECE = 50
QUANTISER = Quantiser(clip=0.5, value_bits=16)
Say = Callable[[str, int, int], None]
Figures = dict[str, dict[str, float]]
TextStream = TokenStream | LabelledStream


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """The owner's model and the tenants' text, as one seed has them."""

    full: Any
    tokenizer: Any
    recipe: Recipe
    tuning: Mapping[str, TextStream]
    held_out: Mapping[str, TextStream]


@dataclass(slots=True, eq=False)
class Measured:
    """Held-out figures by row and tenant, and what else was seen."""

    setting: Setting
    say: Say
    losses: Figures = field(default_factory=dict)
    accuracies: Figures = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def row(self, row: str, model: Any, tenants: Sequence[str] = ()) -> None:
        """Measure a model on the tenants' text (all of them, if none is named)."""
        recipe, tenants = self.setting.recipe, tenants or list(self.setting.held_out)
        for place, tenant in enumerate(tenants):
            self.say(f"measuring {row}", place, len(tenants))
            stream = self.setting.held_out[tenant]
            match stream:
                case TokenStream():
                    loss = train.evaluate(
                        model, stream, context=recipe.context, max_windows=recipe.test_windows,
                        precision=recipe.precision,
                    )  # fmt: skip
                case LabelledStream():
                    loss, right = classified(model, stream, recipe)
                    self.accuracies.setdefault(row, {})[tenant] = right
            self.losses.setdefault(row, {})[tenant] = loss


@torch.no_grad()
def classified(model: Any, stream: LabelledStream, recipe: Recipe) -> tuple[float, float]:
    """`train.evaluate` and `train.accuracy` in one pass."""
    held_out = stream.held_out_windows(recipe.test_windows, recipe.context)
    pieces = [train.class_logits(model, p, recipe.precision) for p in held_out.split(_PIECE)]
    logits = torch.cat(pieces).cpu()
    loss = torch.nn.functional.cross_entropy(logits, held_out.labels)
    return float(loss), float((logits.argmax(1) == held_out.labels).double().mean())


def run(job: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """Do one job; what `five_rows.joined` reads."""
    started = time.process_time()
    setting = prepare(job, say)
    measured = Measured(setting, say)
    match job["part"]:
        case "emulator":
            emulator, split = find_emulator(job, setting, measured)
            measure_emulator(measured, emulator, split)
        case "full":
            measure_full(measured)
        case other:
            raise ConfigError(f"five rows: there is no part {other!r}")
    measured.facts |= {"recipe": asdict(setting.recipe), "on": job["on"]}
    measured.facts[f"cpu_s_{job['part']}"] = round(time.process_time() - started, 1)
    return {
        "losses": measured.losses,
        "accuracies": measured.accuracies,
        "facts": measured.facts,
    }


def prepare(job: Mapping[str, Any], say: Say) -> Setting:
    """Load model and text; the seed draws windows and what is measured."""
    seed = int(job["seed"])
    say("loading", 0, 1)
    if job["model"] == minilm.MINILM:
        passages = passages_from_json(json.loads(Path(job["passages"]).read_text()))
        task = minilm.subject_task(passages=passages)
        full, tokenizer, recipe = task.model, task.tokenizer, minilm.RECIPE
        tuning: dict[str, TextStream] = {t: parts["train"] for t, parts in task.streams.items()}
        test: dict[str, TextStream] = {t: parts[job["on"]] for t, parts in task.streams.items()}
    else:
        loaded, recipe = load_full_model(SHIPPED), Recipe()
        full, tokenizer = loaded.model, loaded.tokenizer
        corpora = {package: corpus_of_package(package) for package in recipe.packages}
        tuning = {name: encode(name, corpus.train, tokenizer) for name, corpus in corpora.items()}
        test = {n: encode(n, corpus.part(job["on"]), tokenizer) for n, corpus in corpora.items()}
    if job["quick"]:
        recipe = replace(recipe, rounds=1, steps_per_round=3, batch=2, test_windows=8)
    recipe = replace(recipe, seed=seed, **job["instead"])
    held_out = {tenant: drawn(stream, seed, recipe) for tenant, stream in test.items()}
    return Setting(full, tokenizer, recipe, tuning, held_out)


def drawn(stream: TextStream, seed: int, recipe: Recipe) -> TextStream:
    """The held-out text as a seed sees it: windows from another offset, or other passages."""
    generator = np.random.default_rng([seed, len(stream.ids)])
    match stream:
        case TokenStream():
            return replace(
                stream, ids=np.roll(stream.ids, -int(generator.integers(len(stream.ids))))
            )
        case LabelledStream():
            count = min(recipe.test_windows, len(stream))
            return stream.subset(np.sort(generator.permutation(len(stream))[:count]))


def find_emulator(
    job: Mapping[str, Any], setting: Setting, measured: Measured
) -> tuple[Any, Split]:
    """The shipped one, the one in a folder, or (MiniLM) one that this seed distils."""
    if job["model"] == minilm.MINILM and job["emulator"] is None:
        split = Split.uniform(len(layers_of(setting.full)), minilm.EDGE, minilm.KEEP)
        emulator = build_emulator(setting.full, split)
        config = replace(minilm.DISTILLATION, seed=setting.recipe.seed)
        if job["quick"]:
            config = replace(config, steps=3, batch=2)
        distil_minilm(setting, emulator, split, config, measured.say)
        measured.facts["distillation"] = config.to_json()
    else:
        package = read_signed_folder(Path(job["emulator"] or SHIPPED_EMULATOR), None, None)
        loaded = read_package(package.folder, package.names, package.manifest.meta)
        emulator, split = loaded.model, loaded.meta.split
        measured.facts["distillation"] = loaded.meta.distillation
    measured.say("comparing weights", 0, 1)
    verbatim = audit_verbatim(setting.full, emulator, split)
    measured.facts |= {
        "split": split.to_json(),
        "verbatim_middle_share": verbatim.middle_share,
        "verbatim_layers_share": verbatim.layers_share,
        "largest_middle_cosine": max(match.cosine for match in verbatim.matches),
    }
    return emulator, split


def distil_minilm(
    setting: Setting, emulator: Any, split: Split, config: DistillationConfig, say: Say
) -> None:
    """Distil on the owner's public text; tenants' text is not touched."""

    def progress(done: DistillationStep) -> None:
        say("distilling", done.step, done.steps)

    public = minilm.public_stream(setting.tokenizer)
    distill(setting.full, emulator, split, public, config, on_progress=progress)


def measure_emulator(measured: Measured, emulator: Any, split: Split) -> None:
    """All rows that are tuned against the emulator."""
    setting = measured.setting
    recipe, full = setting.recipe, setting.full
    measured.row("emulator_zero_shot", emulator)
    start = updates.start(emulator, recipe.shape(split), recipe.seed)
    model = updates.attach(emulator, start)
    update = federate(measured, model, start, recipe.lr, "federated")
    updates.install(model, update)
    measured.row("emulator_fine_tuned", model)
    with plugged_in(full, update, split) as plugged:
        measured.row("plug_in", plugged)
    for tenant, stream in setting.tuning.items():
        progress = _progress(measured.say, f"local only, {tenant}")
        own = arms.local_only(model, start, stream, recipe, recipe.lr, on_progress=progress)
        with plugged_in(full, own, split) as plugged:
            measured.row("local_only", plugged, [tenant])
    progress = _progress(measured.say, "centralised")
    streams = list(setting.tuning.values())
    joint = arms.centralised(model, start, streams, recipe, recipe.lr, on_progress=progress)
    with plugged_in(full, joint, split) as plugged:
        measured.row("centralised", plugged)


def measure_full(measured: Measured) -> None:
    """The full model, untuned, and with every layer tuned in the same rounds."""
    recipe, full = measured.setting.recipe, measured.setting.full
    measured.row("full_zero_shot", full)
    start = updates.start(full, everything(recipe, full), recipe.seed)
    with _attached(full, start) as model:
        update = federate(measured, model, start, recipe.full_lr, "full, federated")
        updates.install(model, update)
        measured.row("full_fine_tuned", model)


def everything(recipe: Recipe, full: Any) -> updates.UpdateShape:
    """The recipe's kind of update in all layers of the full model."""
    layers = tuple(range(len(layers_of(full))))
    if recipe.update == "lora":
        return LoraShape(recipe.rank, recipe.scaling, recipe.targets, layers)
    return EdgesShape(layers, recipe.embeddings)


def federate(measured: Measured, model: Any, start: Update, lr: float, name: str) -> Update:
    """The recipe's rounds: every tenant trains, deltas are rounded and summed, the owner steps."""
    setting, update = measured.setting, start
    for number in range(setting.recipe.rounds):
        deltas = []
        for tenant, stream in setting.tuning.items():
            progress = _progress(measured.say, f"{name}, round {number + 1}, {tenant}")
            deltas.append(
                arms.federated_round(model, update, stream, setting.recipe, lr, number, progress)
            )
        mean, saturated = quantised_mean(deltas, update, [setting.recipe.seed, number])
        key = f"saturated_{name.replace(', ', '_')}"
        measured.facts[key] = measured.facts.get(key, 0) + saturated
        update = updates.next_round(update, mean, setting.recipe.server_rate)
    return update


def quantised_mean(
    deltas: Sequence[Mapping[str, torch.Tensor]], update: Update, seed: Sequence[int]
) -> tuple[dict[str, torch.Tensor], int]:
    """The mean as a round opens it, and how many coordinates were clipped.

    The rounding's randomness hides nothing here and comes from a seed, so that a run repeats.
    """
    layout, generator = updates.delta_layout(update), np.random.default_rng(seed)
    total, saturated = np.zeros(layout.size, np.int64), 0
    for delta in deltas:
        values = flatten(delta, layout)
        words = generator.integers(0, 1 << 32, size=len(values), dtype=np.uint32)
        total += QUANTISER.levels(values, 1.0, words)
        saturated += QUANTISER.saturated(values, 1.0)
    return unflatten(QUANTISER.decode(total) / len(deltas), layout), saturated


@contextmanager
def _attached(model: Any, update: Update) -> Iterator[Any]:
    """A copy of the model with the update in it: the full model itself stays as it is."""
    yield updates.attach(copy.deepcopy(model), update)


def _progress(say: Say, text: str) -> train.ProgressCallback:
    return lambda done, of, loss: say(text, done, of)


def _say(text: str, done: int, of: int) -> None:
    print(json.dumps({"event": "progress", "text": text, "done": done, "of": of}), flush=True)


def main() -> None:
    """Read the job, do it, print the result."""
    torch.set_num_threads(1)
    job = json.loads(sys.argv[1])
    result = run(job, _say)
    print(json.dumps({"event": "done", **result}), flush=True)


if __name__ == "__main__":
    main()
