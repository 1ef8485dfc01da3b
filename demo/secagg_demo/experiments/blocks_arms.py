"""The arms of experiment `blocks`, and what each is measured on: one job is one model and one seed.

Every arm starts from the same model and takes the same number of updates in every layer, on the
same windows: end to end trains all layers at each, blocks train one block's layers at each, block
after block. Embeddings, last norm and head stay as they are everywhere. Scratch keeps them too and
draws the layers anew, so what it lacks is the layers' pretraining alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import nn

from secagg_demo.experiments.frame import Report
from secagg_models import lora, train
from secagg_models.base import SHIPPED_SERIES, load_base
from secagg_models.blocks import memory, sampler, tasks, training
from secagg_models.blocks.network import (
    BlockNetwork,
    block_parameters,
    divide,
    freeze_all_but,
    hold_one,
)
from secagg_models.blocks.objective import (
    MIXED,
    PREFIX,
    PURE,
    BlockObjective,
    block_loss,
    noise_generator,
)
from secagg_models.blocks.sampler import Sampling
from secagg_models.blocks.tasks import Batch, ClassVector, NextPatch, NextToken, Task
from secagg_models.families import layers_of, with_layers
from secagg_models.labelled import LabelledBatch, LabelledStream, encode_labelled
from secagg_models.minilm import load_minilm
from secagg_models.series.batch import SeriesBatch, scale_of
from secagg_models.series.forecaster import pinball
from secagg_models.series.real import COMPANIES, company_series
from secagg_models.series.stream import SeriesStream, real_as_series, stream_of
from secagg_models.subjects import SUBJECTS, part_of, passages_of
from secagg_models.text import byte_stream, corpus_of_package
from secagg_models.train import Schedule, Stream, TrainingConfig

BLOCKS: Final = 3
START, END_TO_END = "not tuned", "end to end"
BLOCK_ARMS: Final[Mapping[str, BlockObjective]] = {
    "pure, converted": PURE,
    "pure, from scratch": PURE,
    "prefix, converted": PREFIX,
    "mixed, converted": MIXED,
    "mixed, LoRA": MIXED,
}
SCRATCH, WHOLE_MIXED, LORA = "pure, from scratch", "mixed, converted", "mixed, LoRA"
ARMS: Final = (START, END_TO_END, *BLOCK_ARMS)
_SMOOTHING: Final = 0.01
_RANK: Final = 8
_LORA_RATE: Final = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A model with what it is tuned and measured on."""

    model: Any
    task: Task
    train: Stream
    held_out: Batch
    lora_targets: tuple[str, ...]


def measure(arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Every arm of one model and seed; JSON values."""
    torch.manual_seed(0)
    config = TrainingConfig(
        steps=arguments["steps"],
        batch=arguments["batch"],
        context=arguments["context"],
        lr=arguments["end_to_end_lr"],
        schedule=Schedule(arguments["steps"]),
        seed=arguments["seed"],
    )
    subject = _SUBJECTS[arguments["model"]](arguments)
    subject.model.to(arguments["device"])
    found: dict[str, Any] = {}
    for done, arm in enumerate(ARMS):
        report(done, len(ARMS))
        found[arm] = _measure_arm(subject, arm, config, arguments)
    report(len(ARMS), len(ARMS))
    return {"arms": found, "memory": _memory(subject, config)}


def _measure_arm(
    subject: Subject, arm: str, config: TrainingConfig, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    model = copy.deepcopy(subject.model)
    started = time.process_time()
    if arm in BLOCK_ARMS:
        config = replace(config, lr=arguments["mixed_lr" if arm == WHOLE_MIXED else "lr"])
        network = _train_blocks(subject, model, arm, config, arguments["conditioning_rate"])
        objective = BLOCK_ARMS[arm]
        taken = time.process_time() - started
        sampling = Sampling(arguments["sampling_steps"], arguments["draws"], objective.prefix)
        return {
            "ordinary": _ordinary(subject, network.model),
            "sampled": _sampled(subject, network, sampling, config.seed),
            "seconds": taken,
            "passes": layer_passes(network.layers, objective),
        }
    if arm == END_TO_END:
        _train_layers(subject, model, config)
    taken = time.process_time() - started
    return {
        "ordinary": _ordinary(subject, model),
        "seconds": taken,
        "passes": 3.0 * len(layers_of(model)) if arm == END_TO_END else 0.0,
    }


def _train_layers(subject: Subject, model: Any, config: TrainingConfig) -> None:
    """End to end, as `train.train_update` does, on the layers alone: what blocks train too."""
    model.requires_grad_(False)
    parameters = list(layers_of(model).requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(parameters, config.lr, config.betas, weight_decay=0.0)
    train.use_fast_attention(model)
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = config.lr * config.schedule.factor(step)
        windows = subject.train.windows_at(config.seed, step, config.batch, config.context)
        tasks.ordinary_losses(model, windows, config.precision).mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        optimizer.zero_grad()


def _train_blocks(
    subject: Subject, model: Any, arm: str, config: TrainingConfig, conditioning_rate: float
) -> BlockNetwork:
    if arm == SCRATCH:
        _draw_layers_anew(model, config.seed)
    network = divide(
        model,
        subject.task,
        BLOCKS,
        seed=config.seed,
        into_std=0.02 if arm == SCRATCH else 0.0,
    )
    if arm != LORA:
        training.train_in_turn(
            network, BLOCK_ARMS[arm], [subject.train], config, conditioning_rate=conditioning_rate
        )
        return network
    shape = lora.LoraShape(_RANK, 1.0, subject.lora_targets)
    attached = lora.attach(model, lora.draw_adapter(model, shape, config.seed))
    inside = BlockNetwork(
        attached, network.conditioning, network.layers, network.task, network.noise
    )
    config = replace(config, lr=_LORA_RATE * config.lr)
    for block in range(BLOCKS):
        chosen = training.lora_parameters(inside, block)
        training.train_block(
            inside,
            block,
            BLOCK_ARMS[arm],
            [subject.train],
            config,
            trained=chosen,
            conditioning_rate=conditioning_rate / _LORA_RATE,
        )
    return inside


def _draw_layers_anew(model: Any, seed: int) -> None:
    """Matrices normal with deviation 0.02 (Llama's and BERT's own start), norms 1, biases 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers_of(model):
            for name, parameter in layer.named_parameters():
                if parameter.ndim > 1:
                    drawn = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(0.02 * drawn)
                else:
                    parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def layer_passes(layers: Sequence[Sequence[int]], objective: BlockObjective) -> float:
    """Passes through one layer for one update of every block, without embeddings and heads.

    Forward is one; backward is one for the gradient of what came in, and one for the weights'.
    """
    total = 0.0
    depth = sum(map(len, layers))
    for block, own in enumerate(layers):
        before = sum(len(part) for part in layers[:block])
        total += 3 * len(own) + (before if objective.prefix else 0)
        if objective.ordinary_weight:
            after = depth - before - len(own)
            total += depth + after + 2 * len(own)
    return total


@torch.no_grad()
def _ordinary(subject: Subject, model: Any) -> dict[str, float]:
    """The ordinary pass on what is held out: the loss, and the share of right answers if any."""
    train.use_fast_attention(model)
    model.eval()
    match subject.held_out:
        case SeriesBatch() as batch:
            quantiles = model(_scaled(model, batch)[:, : batch.context])[:, -1]
            return {"loss": _pinball(model, batch, quantiles[:, : model.shape.patch].float())}
        case batch:
            raw = tasks.raw_of(subject.task, model, batch)
            return _scores(raw.log_softmax(-1), _answers(batch))


@torch.no_grad()
def _sampled(
    subject: Subject, network: BlockNetwork, sampling: Sampling, seed: int
) -> dict[str, float]:
    """All blocks together on what is held out."""
    match subject.held_out:
        case SeriesBatch() as batch:
            shape = network.model.shape
            history = _scaled(network.model, batch)[:, : batch.context]
            quantiles = sampler.sampled_quantiles(
                network, history, shape.patch, shape.quantiles, sampling, seed
            )
            return {"loss": _pinball(network.model, batch, quantiles)}
        case batch:
            found = sampler.probabilities(network, batch, sampling, seed)
            mixed = (1 - _SMOOTHING) * found + _SMOOTHING / found.shape[-1]
            return _scores(mixed.log(), _answers(batch))


def _answers(batch: torch.Tensor | LabelledBatch) -> torch.Tensor:
    """(N, P)."""
    return batch[:, 1:] if isinstance(batch, torch.Tensor) else batch.labels.unsqueeze(1)


def _scores(logs: torch.Tensor, answers: torch.Tensor) -> dict[str, float]:
    """Of log-probabilities (N, P, V): nats an answer, and the share of right answers."""
    answers = answers.to(logs.device)
    loss = -logs.gather(-1, answers.unsqueeze(-1)).mean()
    return {"loss": float(loss), "right": float((logs.argmax(-1) == answers).float().mean())}


def _scaled(model: Any, batch: SeriesBatch) -> torch.Tensor:
    """The values in units of each history's scale."""
    values = batch.values.to(next(model.parameters()).device)
    return scale_of(values[:, : batch.context]).normalised(values)


def _pinball(model: Any, batch: SeriesBatch, quantiles: torch.Tensor) -> float:
    """Mean over known values of quantiles (B, patch, Q) after the history."""
    truth = _scaled(model, batch)[:, batch.context :][:, : model.shape.patch]
    levels = torch.tensor(model.shape.quantiles, device=truth.device)
    return float(pinball(quantiles, truth, levels).nanmean())


def _memory(subject: Subject, config: TrainingConfig) -> dict[str, int]:
    """Bytes held by one update: the largest block alone, one inside the whole model, all layers
    trained with the rest frozen, and everything trained."""
    batch = _first(subject.train.windows_at(0, 0, 1, config.context))
    whole = divide(copy.deepcopy(subject.model), subject.task, BLOCKS)
    cut = copy.deepcopy(subject.model)
    with_layers(cut, [layers_of(cut)[i] for i in whole.layers[0]])
    alone = hold_one(cut, subject.task, 0, whole.layers)
    layers = {n: p for n, p in whole.model.named_parameters() if p is not None}
    inside = {id(p) for layer in layers_of(whole.model) for p in layer.parameters()}
    found = {
        "one block alone, pure": _block_bytes(alone, PURE, batch),
        "one block in the whole model, mixed": _block_bytes(whole, MIXED, batch),
    }
    for name, chosen in (
        ("all layers", [p for p in layers.values() if id(p) in inside]),
        ("every weight", list(layers.values())),
    ):
        for parameter in whole.model.parameters():
            parameter.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)
        found[name] = memory.held_in_a_step(
            [whole.model], chosen, lambda: tasks.ordinary_losses(whole.model, batch).mean()
        ).total
    return found


def _block_bytes(network: BlockNetwork, objective: BlockObjective, batch: Batch) -> int:
    own = block_parameters(network, 0)
    freeze_all_but(network, own)
    held = memory.held_in_a_step(
        [network.model, network.conditioning],
        list[nn.Parameter](own.values()),
        lambda: block_loss(network, 0, objective, batch, noise_generator(0, 0, 0)).total,
    )
    return held.total


def _first(batch: Batch) -> Batch:
    return batch[:1] if isinstance(batch, torch.Tensor) else batch.split(1)[0]


def _language(arguments: Mapping[str, Any]) -> Subject:
    corpus = corpus_of_package("networkx")
    held_out = byte_stream("networkx", corpus.test)
    model = load_base().model
    task = NextToken()
    return Subject(
        model,
        task,
        byte_stream("networkx", corpus.train),
        held_out.held_out_windows(arguments["windows"], arguments["context"]),
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    )


def _classes(arguments: Mapping[str, Any]) -> Subject:
    model, tokenizer = load_minilm()
    texts: dict[str, list[tuple[str, int]]] = {"train": [], "validation": [], "test": []}
    for label, subject in enumerate(SUBJECTS):
        for file, passages in passages_of(subject, limit=arguments["passages"]):
            texts[part_of(file.path)] += [(passage, label) for passage in passages]
    streams: dict[str, LabelledStream] = {
        part: encode_labelled(
            "subjects", [t for t, _ in rows], [n for _, n in rows], tokenizer, arguments["context"]
        )
        for part, rows in texts.items()
    }
    task = ClassVector()
    held_out = streams[arguments.get("on", "test")].held_out_windows(
        arguments["windows"], arguments["context"]
    )
    targets = ("query", "key", "value", "dense")
    return Subject(model, task, streams["train"], held_out, targets)


def _series(arguments: Mapping[str, Any]) -> Subject:
    model = load_base(arguments.get("forecaster", SHIPPED_SERIES)).model
    companies = arguments.get("companies", list(COMPANIES))
    series = [one for company in companies for one in real_as_series(company_series(company))]
    horizon = model.shape.patch
    held_out = stream_of("held out", series, arguments.get("on", "test"), horizon)
    return Subject(
        model,
        NextPatch(),
        _many_positions(stream_of("series", series, "train", horizon)),
        held_out.held_out_windows(arguments["windows"], arguments["context"]),
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _ManyPositions(SeriesStream):
    """Windows that are scored from their middle, normalised by what is before it; those that have
    less than two patches' worth of values there are left out."""

    def windows_at(self, seed: int, step: int, batch: int, context: int) -> SeriesBatch:
        drawn = SeriesStream.windows_at(self, seed, step, batch, context)
        first = context // 2
        known = (~drawn.values[:, :first].isnan()).sum(1) >= 2 * self.horizon
        if not bool(known.any()):
            return drawn
        return replace(drawn, values=drawn.values[known], scored_from=first)


def _many_positions(stream: SeriesStream) -> SeriesStream:
    return _ManyPositions(stream.name, stream.series, stream.first, stream.end, stream.horizon)


_SUBJECTS: Final[Mapping[str, Callable[[Mapping[str, Any]], Subject]]] = {
    "language": _language,
    "classes": _classes,
    "series": _series,
}
