"""From a full model to an emulator package: choose layers, cut, distil, write, sign.

The text is the owner's own: a folder split by file, or the standard library's source (its
docstrings for a classifier). The training part distils; the validation part scores layers and
measures what came out. A classifier's text needs no labels: its layers are scored, and the emulator
is measured, against what the full model itself says.

Checkpoints lie in OUT.distilling until the package is written; a second call with the same
arguments goes on from there. Not here: whether the result protects anything (`secagg owner audit`).
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import torch

from secagg.errors import ConfigError
from secagg.identity import Identity
from secagg_models import families, text, train
from secagg_models.distill import Checkpoints, DistillationConfig, DistillationStep, distill
from secagg_models.emulator import build_emulator, importances
from secagg_models.labelled import LabelledStream, encode_labelled
from secagg_models.package import LoadedModel, load_full_model
from secagg_models.split import Split
from secagg_models.subjects import prose_of, public_passages
from secagg_models.text import SourceFile
from secagg_owner.emulator_package import (
    EmulatorPackage,
    read_emulator_package,
    write_emulator_package,
)

Layers = Literal["uniform", "importance"]
LAYERS: Final[tuple[Layers, ...]] = get_args(Layers)
Report = Callable[..., None]
_NAME = "owner"
_EVENTS = 200
_FEWEST_WORDS = 8
_WINDOWS = 48
_MOST_PASSAGES = 20_000


@dataclass(frozen=True, slots=True)
class Emulation:
    """What `secagg owner emulate` was asked for. `text` None is the standard library; `identity`
    None makes an unsigned package."""

    model: str
    edge: int
    keep: int
    out: Path
    config: DistillationConfig
    layers: Layers = "uniform"
    text: Path | None = None
    pattern: str = "**/*.py"
    checkpoint_every: int = 100
    identity: Identity | None = None

    @property
    def checkpoints(self) -> Path:
        """Where an unfinished run is kept."""
        return self.out.with_name(f"{self.out.name}.distilling")


@dataclass(frozen=True, slots=True, eq=False)
class _Texts:
    """The owner's streams, and the digest over both that a checkpoint remembers."""

    training: train.Stream
    validation: train.Stream
    digest: str


def emulate(wanted: Emulation, report: Report) -> dict[str, Any]:
    """Make the package; what was made, in plain values. `report(name, **fields)` hears of progress.

    Raises:
        ConfigError: model, layers, text or folder cannot work; says what would.
    """
    if wanted.out.exists():
        raise ConfigError(f"{wanted.out} exists already; choose another --out, or remove it")
    full = load_full_model(wanted.model)
    layers = len(families.layers_of(full.model))
    split = Split.uniform(layers, wanted.edge, wanted.keep)
    _check_context(full, wanted.config.context)
    report("loaded", model=wanted.model, task=full.task, layers=layers, digest=full.digest)
    texts = _texts(full, wanted)
    if wanted.layers == "importance":
        split = _by_importance(full, wanted, texts, report)
    report("split", layers=split.layers, edge=split.edge, kept=tuple(map(str, split.kept)))
    emulator = build_emulator(full.model, split)
    last = _distilled(full, emulator, split, wanted, texts, report)
    distillation = wanted.config.to_json() if last is not None else None
    package = write_emulator_package(
        wanted.out, full, emulator, split, distillation=distillation, identity=wanted.identity
    )
    shutil.rmtree(wanted.checkpoints, ignore_errors=True)
    figures = _figures(full, package, texts, wanted.config)
    report("written", package=str(wanted.out), manifest_sha256=package.digest)
    return _summary(wanted, package, last) | figures


def _distilled(
    full: LoadedModel, emulator: Any, split: Split, wanted: Emulation, texts: _Texts, report: Report
) -> DistillationStep | None:
    """Distil in place; the last step, or None where no step was asked for."""
    config = wanted.config
    if config.steps == 0:
        return None
    every = max(1, config.steps // _EVENTS)

    def say(done: DistillationStep) -> None:
        if done.step % every == 0 or done.step == config.steps:
            fields = {} if done.lm is None else {"lm": round(done.lm, 4)}
            report("distilling", step=done.step, steps=done.steps, **fields, kd=round(done.kd, 5))

    run = distill(
        full.model, emulator, split, texts.training, config,
        checkpoints=Checkpoints(
            wanted.checkpoints,
            {"full_digest": full.digest, "text": texts.digest},
            wanted.checkpoint_every,
        ),
        on_progress=say,
    )  # fmt: skip
    return run.curve[-1]


def _by_importance(full: LoadedModel, wanted: Emulation, texts: _Texts, report: Report) -> Split:
    config = wanted.config
    scores = importances(
        full.model, texts.validation, wanted.edge,
        context=config.context, max_windows=_WINDOWS, precision=config.precision,
    )  # fmt: skip
    for layer, score in enumerate(scores, wanted.edge):
        report("importance", layer=layer, loss_without=round(score, 5))
    return Split.by_importance(scores, wanted.edge, wanted.keep)


def _check_context(full: LoadedModel, context: int) -> None:
    config = full.model.config
    # RoBERTa numbers positions from its padding id on.
    reserved = 2 if config.model_type == "roberta" else 0
    longest = config.max_position_embeddings - reserved
    if context > longest:
        raise ConfigError(f"--context {context}: the model reads at most {longest} tokens")


def take_over(model: str, distilled: Path, out: Path, identity: Identity | None) -> dict[str, Any]:
    """Make the package from one that was distilled before, an unsigned one say; what was made.

    Raises:
        ConfigError: it was made from another full model, or `out` exists.
    """
    full, made = load_full_model(model), read_emulator_package(distilled)
    meta = made.emulator.meta
    if meta.full_digest != full.digest:
        raise ConfigError(
            f"the package {distilled} was made from the model {meta.full_digest}, and {model} is "
            f"{full.digest}; distil an emulator of this one"
        )
    package = write_emulator_package(
        out, full, made.emulator.model, meta.split, distillation=meta.distillation,
        identity=identity,
    )  # fmt: skip
    return _about(package)


def _summary(
    wanted: Emulation, package: EmulatorPackage, last: DistillationStep | None
) -> dict[str, Any]:
    trained = {} if last is None else {"kd": last.kd}
    if last is not None and last.lm is not None:
        trained["lm"] = last.lm
    return {**_about(package), "steps": wanted.config.steps, **trained}


def _about(package: EmulatorPackage) -> dict[str, Any]:
    meta, signature = package.emulator.meta, package.signed.signature
    signed = {} if signature is None else {"owner_key": signature.public_key.hex()}
    prefix = families.layer_prefix(package.emulator.model)
    middle = tuple(f"{prefix}{layer}." for layer in meta.split.middle_layers)
    sizes = {name: math.prod(item.shape) for name, item in meta.layout.items()}
    return {
        "package": str(package.signed.folder),
        "manifest_sha256": package.digest.hex(),
        "signed": meta.signed,
        **signed,
        "task": meta.task,
        "family": meta.family,
        **meta.split.to_json(),
        "full_digest": meta.full_digest,
        "emulator_digest": meta.emulator_digest,
        "bytes": package.signed.manifest.total_size,
        "values_outside_middle": sum(n for name, n in sizes.items() if not name.startswith(middle)),
    }


# ---------------------------------------------------------------------- text and figures


def _texts(full: LoadedModel, wanted: Emulation) -> _Texts:
    match full.task:
        case "causal-lm":
            corpus = (
                text.standard_library()
                if wanted.text is None
                else text.corpus_of_folder(wanted.text, pattern=wanted.pattern)
            )
            streams = [
                text.encode(_NAME, files, full.tokenizer)
                for files in (corpus.train, corpus.validation)
            ]
            return _Texts(streams[0], streams[1], _digest(*(stream.ids for stream in streams)))
        case "classification":
            parts = [
                encode_labelled(_NAME, part, [0] * len(part), full.tokenizer, wanted.config.context)
                for part in _passages(wanted)
            ]
            validation = _as_the_model_says(full, parts[1], wanted.config)
            return _Texts(parts[0], validation, _digest(*(part.ids for part in parts)))


def _passages(wanted: Emulation) -> tuple[Sequence[str], Sequence[str]]:
    """A classifier's text: paragraphs, for training and for measuring."""
    if wanted.text is None:
        found = public_passages()
        return [p for i, p in enumerate(found) if i % 10], found[::10]
    corpus = text.corpus_of_folder(wanted.text, pattern=wanted.pattern)
    parts = [
        [passage for file in files for passage in _paragraphs(file)][:_MOST_PASSAGES]
        for files in (corpus.train, corpus.validation)
    ]
    if not all(parts):
        raise ConfigError(
            f"text {wanted.text}: no paragraph of {_FEWEST_WORDS} words in one of its parts; "
            "--pattern names the files, such as '**/*.txt'"
        )
    return parts[0], parts[1]


def _paragraphs(file: SourceFile) -> list[str]:
    if file.path.endswith(".py"):
        return prose_of(file)
    blocks = file.content.decode(errors="replace").split("\n\n")
    found = (" ".join(block.split()) for block in blocks)
    return [block for block in found if len(block.split()) >= _FEWEST_WORDS]


@torch.no_grad()
def _as_the_model_says(
    full: LoadedModel, stream: LabelledStream, config: DistillationConfig
) -> LabelledStream:
    """Passages under the class that the full model gives them."""
    whole = stream.held_out_windows(len(stream), config.context)
    guesses = [
        train.class_logits(full.model, part, config.precision).argmax(1).cpu()
        for part in whole.split(_WINDOWS)
    ]
    return replace(stream, labels=torch.cat(guesses).numpy().astype(np.int64))


def _digest(*arrays: Any) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _figures(
    full: LoadedModel, package: EmulatorPackage, texts: _Texts, config: DistillationConfig
) -> dict[str, float]:
    """Held-out loss of both, or how often the emulator's class is the full model's."""
    emulator = package.emulator.model
    match texts.validation:
        case LabelledStream() as stream:
            agreement = train.accuracy(
                emulator, stream, context=config.context, max_windows=len(stream),
                precision=config.precision,
            )  # fmt: skip
            return {"agreement": agreement}
        case stream:
            losses = [
                train.evaluate(
                    model, stream, context=config.context, max_windows=_WINDOWS,
                    precision=config.precision,
                )
                for model in (full.model, emulator)
            ]  # fmt: skip
            return {"full_nats_per_byte": losses[0], "emulator_nats_per_byte": losses[1]}
