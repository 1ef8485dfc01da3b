"""Pretrains the base model: a byte-level Llama on the Python standard library's source.

Run it as `python -m secagg_models.pretrain`. It reads the running interpreter's own standard
library with its tests (no site-packages, no vendored packages), splits it by file, and trains
transformers' `LlamaForCausalLM` on it with Muon for the matrices and AdamW for the rest, in bf16
autocast where the processor has it. The run is resumable: state goes to build/pretrain/ every few
minutes, and a second start goes on from there. Given the same interpreter, seed and number of
steps it visits the same windows in the same order.

The schedule is warmup, constant, then linear decay to zero, so the end can be chosen late:
  --steps N         fixes the number of optimiser steps
  --finish-by HH:MM starts the decay when what is left of the time is what the decay takes
  touch build/pretrain/decay    starts it now; if that file holds a number, that is the last step
The chosen end is stored in the checkpoint and the curve.

A later stage goes on from finished weights (--start FOLDER), with fewer or more layers if --layers
says so (middle ones are left out, or doubled), over windows that no earlier stage read
(--skip-steps).
With --layer-drop P each layer but the first and last two is skipped with probability P at each step
(LayerDrop, Fan, Grave, Joulin 2019): then no middle layer is indispensable to its neighbours, and
what edge layers learn beside some of them is of use beside all of them.

Nothing here is secret, and nothing here touches tenants' data. It writes the base's files to
build/pretrain/export; shipping them is a decision of the maintainer (copy to secagg_models/base/).
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

from secagg_models import attention, text
from secagg_models.train import Precision, has_bf16, token_loss

_VALIDATION_WINDOWS = 128
_EDGE = 2


@dataclass(frozen=True, slots=True)
class PretrainingConfig:
    """What decides the weights, given the interpreter whose library is read."""

    width: int = 128
    layers: int = 12
    heads: int = 4
    intermediate: int = 344
    context: int = 256
    batch: int = 16
    matrix_lr: float = 0.015
    other_lr: float = 4e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    decay_share: float = 0.25
    seed: int = 20
    layer_drop: float = 0.0
    skip_steps: int = 0

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.context


@dataclass(slots=True)
class Progress:
    """Where the run stands; all of it is in the checkpoint. `last_step` is None until chosen."""

    step: int = 0
    decay_from: int | None = None
    last_step: int | None = None
    seconds: float = 0.0


def build_model(config: PretrainingConfig) -> LlamaForCausalLM:
    """A freshly initialised model; 259 byte tokens of ByT5's numbering, padded to 264 rows."""
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=264,
            hidden_size=config.width,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=1,
        )
    )


def build_optimizers(
    model: torch.nn.Module, config: PretrainingConfig
) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the hidden matrices, AdamW for embeddings and gains."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    outer = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(inner, lr=config.matrix_lr, weight_decay=config.weight_decay),
        torch.optim.AdamW(outer, lr=config.other_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(step: int, config: PretrainingConfig, progress: Progress) -> float:
    """The learning rate's multiplier: warmup, constant, linear decay to zero."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if progress.decay_from is None or progress.last_step is None or step < progress.decay_from:
        return 1.0
    return max(0.0, (progress.last_step - step) / (progress.last_step - progress.decay_from))


def layers_at(step: int, config: PretrainingConfig) -> list[int]:
    """The layers of one step: the edges, and each middle layer with probability 1 - layer_drop."""
    draws = np.random.default_rng([config.seed, 7, step]).random(config.layers)
    middle = range(_EDGE, config.layers - _EDGE)
    return [i for i in range(config.layers) if i not in middle or draws[i] >= config.layer_drop]


def batch_at(stream: NDArray[np.int32], step: int, config: PretrainingConfig) -> torch.Tensor:
    """The step's windows, a pure function of the step: each epoch is one permutation of a grid."""
    span = config.context
    per_epoch = (len(stream) - 2 * span - 1) // span
    rows = []
    for index in range(step * config.batch, (step + 1) * config.batch):
        epoch, place = divmod(index, per_epoch)
        order, offset = _epoch(config.seed, epoch, per_epoch, span)
        start = offset + int(order[place]) * span
        rows.append(stream[start : start + span + 1])
    return torch.from_numpy(np.stack(rows).astype(np.int64))  # (batch, context + 1)


_EPOCHS: dict[tuple[int, int], tuple[NDArray[np.int64], int]] = {}


def _epoch(seed: int, epoch: int, windows: int, span: int) -> tuple[NDArray[np.int64], int]:
    if (seed, epoch) not in _EPOCHS:
        generator = np.random.default_rng([seed, epoch])
        _EPOCHS[seed, epoch] = (generator.permutation(windows), int(generator.integers(span)))
    return _EPOCHS[seed, epoch]


def validation_loss(model: torch.nn.Module, windows: torch.Tensor, precision: Precision) -> float:
    """Mean nats a byte over the held-out windows."""
    with torch.no_grad():
        parts = [token_loss(model, part, precision).mean() for part in torch.split(windows, 32)]
    return float(torch.stack(parts).mean())


@dataclass(slots=True)
class Run:
    """One pretraining process: the model, its optimisers, the data and the control files."""

    config: PretrainingConfig
    folder: Path
    model: LlamaForCausalLM
    optimizers: list[torch.optim.Optimizer]
    stream: NDArray[np.int32]
    held_out: torch.Tensor
    precision: Precision
    progress: Progress

    def train_step(self) -> float:
        factor = rate(self.progress.step, self.config, self.progress)
        for optimizer, lr in zip(
            self.optimizers, (self.config.matrix_lr, self.config.other_lr), strict=True
        ):
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
        windows = batch_at(self.stream, self.config.skip_steps + self.progress.step, self.config)
        with self.some_layers():
            loss = token_loss(self.model, windows, self.precision).mean()
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.progress.step += 1
        return float(loss.detach())

    @contextmanager
    def some_layers(self) -> Iterator[None]:
        """The model with this step's layers only."""
        whole = self.model.model.layers
        chosen = layers_at(self.progress.step, self.config)
        self.model.model.layers = torch.nn.ModuleList(whole[i] for i in chosen)
        try:
            yield
        finally:
            self.model.model.layers = whole

    def choose_end(self, step_s: float, deadline: datetime | None) -> None:
        """Start the decay when a file, a deadline or --steps asks for it."""
        control = self.folder / "decay"
        share, step = self.config.decay_share, self.progress.step
        if control.exists():
            wanted = control.read_text().strip()
            last = int(wanted) if wanted else round(step / (1 - share))
            control.unlink()
            self.progress.decay_from = self.progress.decay_from or step
            self.progress.last_step = last
        elif deadline is not None and self.progress.last_step is None:
            left = int((deadline - _now()).total_seconds() / step_s)
            if left <= step * share / (1 - share):
                self.progress.decay_from, self.progress.last_step = step, step + max(left, 1)
        elif self.progress.last_step is not None and self.progress.decay_from is None:
            self.progress.decay_from = round(self.progress.last_step * (1 - share))

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": torch.get_rng_state(),
            "progress": asdict(self.progress),
            "config": asdict(self.config),
        }
        temporary = self.folder / "checkpoint.tmp"
        torch.save(state, temporary)
        temporary.replace(self.folder / "checkpoint.pt")
        export(self.model, self.folder / "export")

    def resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state["config"] != asdict(self.config):
            raise SystemExit(f"{path} belongs to another configuration; move it away to start anew")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["rng"])
        self.progress = Progress(**state["progress"])

    def log(self, record: dict[str, Any]) -> None:
        with (self.folder / "curve.jsonl").open("a") as curve:
            curve.write(json.dumps(record) + "\n")
        print(" ".join(f"{k}={v}" for k, v in record.items()), file=sys.stderr, flush=True)


def export(model: LlamaForCausalLM, folder: Path) -> None:
    """Write config.json, model.safetensors in bf16, and the tokeniser, all by transformers."""
    clone = LlamaForCausalLM(LlamaConfig.from_dict(model.config.to_dict()))
    clone.load_state_dict(model.state_dict())
    clone.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)


def train(run: Run, deadline: datetime | None, every: int = 100, save_s: float = 240.0) -> None:
    """Train to the chosen last step, logging, saving and validating on the way."""
    began, saved, recent = time.monotonic() - run.progress.seconds, time.monotonic(), []
    mark = time.monotonic()
    while run.progress.last_step is None or run.progress.step < run.progress.last_step:
        recent.append(run.train_step())
        run.progress.seconds = time.monotonic() - began
        if run.progress.step % every == 0 or run.progress.step == run.progress.last_step:
            step_s = (time.monotonic() - mark) / len(recent)
            run.log(_record(run, recent, step_s))
            recent, mark = [], time.monotonic()
            run.choose_end(step_s, deadline)
        if time.monotonic() - saved > save_s:
            run.save()
            saved = time.monotonic()
    run.save()


def _record(run: Run, recent: list[float], step_s: float) -> dict[str, Any]:
    return {
        "step": run.progress.step,
        "tokens": run.progress.step * run.config.tokens_per_step,
        "train": round(sum(recent) / len(recent), 4),
        "validation": round(validation_loss(run.model, run.held_out, run.precision), 4),
        "rate": round(rate(run.progress.step, run.config, run.progress), 4),
        "tokens_per_s": round(run.config.tokens_per_step / step_s),
        "seconds": round(run.progress.seconds),
        "last_step": run.progress.last_step,
    }


def start_from(model: LlamaForCausalLM, folder: str) -> None:
    """Take finished weights. Where they have more layers, middle ones are left out uniformly; where
    they have fewer, middle ones are doubled uniformly, and the doubles add nothing at first."""
    given = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    middle, wanted = (m.config.num_hidden_layers - 2 * _EDGE for m in (given, model))
    sources = [round(i * (middle - 1) / (wanted - 1)) for i in range(wanted)]
    layers = list(given.model.layers[:_EDGE])
    for place, source in enumerate(sources):
        layer = copy.deepcopy(given.model.layers[_EDGE + source])
        if source in sources[:place]:
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
            torch.nn.init.zeros_(layer.mlp.down_proj.weight)
        layers.append(layer)
    given.model.layers = torch.nn.ModuleList([*layers, *given.model.layers[-_EDGE:]])
    model.load_state_dict(given.state_dict())


def prepare(
    config: PretrainingConfig, folder: Path, last_step: int | None, start: str | None = None
) -> Run:
    """Read the library, build the model, and go on from a checkpoint if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = text.standard_library()
    stream = text.byte_stream("train", corpus.train).ids
    held_out = text.byte_stream("validation", corpus.validation).ids
    count = min(_VALIDATION_WINDOWS, (len(held_out) - 1) // config.context)
    stride = (len(held_out) - 1) // count
    rows = [held_out[i * stride : i * stride + config.context + 1] for i in range(count)]
    fresh = build_model(config)
    if start is not None:
        start_from(fresh, start)
    model = fresh.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    model.set_attn_implementation(attention.NAME)
    print(
        f"{sum(p.numel() for p in model.parameters())} parameters, {len(stream)} training tokens, "
        f"{count} validation windows, bf16={has_bf16()}",
        file=sys.stderr,
    )
    run = Run(
        config,
        folder,
        model,
        build_optimizers(model, config),
        stream,
        torch.from_numpy(np.stack(rows).astype(np.int64)),
        "auto",
        Progress(last_step=last_step),
    )
    run.resume()
    return run


def _now() -> datetime:
    return datetime.now(UTC).astimezone()


def _deadline(clock: str) -> datetime:
    hour, minute = map(int, clock.split(":"))
    today = _now().replace(hour=hour, minute=minute, second=0)
    return today if today > _now() else today + timedelta(days=1)


def main() -> None:
    """Parse the arguments, go on from a checkpoint if there is one, train to the end."""
    parser = argparse.ArgumentParser(
        prog="secagg_models.pretrain", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("build/pretrain"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--finish-by", type=_deadline, help="HH:MM, local time")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--layer-drop", type=float, default=0.0)
    parser.add_argument("--start", metavar="FOLDER", help="go on from these weights")
    parser.add_argument("--skip-steps", type=int, default=0)
    parser.add_argument("--decay-share", type=float, default=0.25)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--matrix-lr", type=float, default=0.015)
    parser.add_argument("--other-lr", type=float, default=4e-3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = PretrainingConfig(
        width=arguments.width,
        intermediate=8 * round(arguments.width * 8 / 3 / 8),
        layers=arguments.layers,
        batch=arguments.batch,
        matrix_lr=arguments.matrix_lr,
        other_lr=arguments.other_lr,
        layer_drop=arguments.layer_drop,
        skip_steps=arguments.skip_steps,
        decay_share=arguments.decay_share,
    )
    run = prepare(config, arguments.out, arguments.steps, arguments.start)
    train(run, arguments.finish_by)


if __name__ == "__main__":
    main()
