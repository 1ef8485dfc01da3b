"""`secagg owner emulate`: make an emulator package out of a model.

The owner's model is cut and distilled; edges and embeddings stay the owner's bit for bit. Progress
is a bar on a terminal and JSON lines on stderr elsewhere. A run that was stopped goes on where it
was when the same command is given again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secagg.errors import ConfigError
from secagg.identity import Identity
from secagg_wire.event_log import EventLog
from secagg_wire.key_files import KeyFiles

if TYPE_CHECKING:
    from secagg_owner.emulating import Emulation

_CONTEXT = {"causal-lm": 256, "classification": 64}
_EPILOG = """\
MODEL is 'shipped', 'minilm', a local folder in transformers' format (safetensors), a classifier's
folder, or a hub id. Families: llama, mistral, qwen2, qwen3, gpt2, opt; bert and roberta as the
encoder of a classifier.

Run 'secagg owner audit DIR' before anything leaves: an emulator that is not distilled, keeps many
layers or was distilled too little protects nothing.
"""


def add_commands(
    commands: Any, common: argparse.ArgumentParser, configured: argparse.ArgumentParser
) -> None:
    """Register `emulate`; it needs no configuration file."""
    del configured
    parser = commands.add_parser(
        "emulate",
        parents=[common],
        help="cut and distil an emulator of a model, as a signed package",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="shipped, minilm, a folder or a hub id")
    parser.add_argument("--edge", type=int, default=2, help="layers at each end that leave whole")
    made = parser.add_mutually_exclusive_group(required=True)
    made.add_argument("--keep", type=int, help="middle layers that stay")
    made.add_argument(
        "--from", dest="distilled", type=Path, metavar="PACKAGE",
        help="take a package of this model that was distilled before, and sign it",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the package")
    signed = parser.add_mutually_exclusive_group(required=True)
    signed.add_argument("--keys", type=Path, metavar="DIR", help="the owner's keys, which sign it")
    signed.add_argument("--unsigned", action="store_true", help="for trials: nobody vouches for it")
    parser.add_argument("--layers", choices=("uniform", "importance"), default="uniform")
    parser.add_argument(
        "--text", type=Path, metavar="FOLDER", help="instead of the standard library"
    )
    parser.add_argument("--pattern", default="**/*.py", help="its files (default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="instead of torch's default")
    _add_distillation(parser)
    parser.set_defaults(action=_emulate)


def _add_distillation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("distillation", "loss = LM-WEIGHT * LM + KD-WEIGHT * KD")
    group.add_argument("--steps", type=int, default=1000, help="default: %(default)s; 0: none")
    group.add_argument("--batch", type=int, default=16, help="default: %(default)s windows a step")
    group.add_argument("--context", type=int, help="tokens of a window (256; classifiers: 64)")
    group.add_argument("--lr", type=float, help="of matrices (adamw: 0.001, muon: 0.01)")
    group.add_argument("--other-lr", type=float, help="of gains and biases (default: 0.001)")
    group.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    group.add_argument("--kd-weight", type=float, default=30.0, help="default: %(default)s")
    group.add_argument("--lm-weight", type=float, default=1.0, help="default: %(default)s")
    group.add_argument("--warmup-steps", type=int, default=20, help="default: %(default)s")
    group.add_argument("--seed", type=int, default=1, help="of windows; rules data alone")
    group.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    group.add_argument(
        "--checkpoint-every", type=int, default=100, metavar="STEPS", help="default: %(default)s"
    )


def _emulate(options: argparse.Namespace) -> list[dict[str, Any]]:
    identity = None if options.keys is None else _owner_identity(options.keys)
    import torch
    from transformers.utils import logging

    from secagg_owner.emulating import emulate, take_over

    if options.threads is not None:
        if options.threads < 1:
            raise ConfigError(f"--threads {options.threads}: at least 1")
        torch.set_num_threads(options.threads)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # stderr carries the log
    if options.distilled is not None:
        return [take_over(options.model, options.distilled, options.out, identity)]
    wanted = _wanted(options, identity)
    return [_reporting(options.format, lambda report: emulate(wanted, report))]


def _wanted(options: argparse.Namespace, identity: Identity | None) -> Emulation:
    from secagg_models.distill import DistillationConfig
    from secagg_models.minilm import MINILM
    from secagg_models.package import is_classifiers_folder
    from secagg_owner.emulating import Emulation

    classifies = options.model == MINILM or is_classifiers_folder(options.model)
    context = _CONTEXT["classification" if classifies else "causal-lm"]
    if options.checkpoint_every < 1:
        raise ConfigError(f"--checkpoint-every {options.checkpoint_every}: at least 1")
    config = DistillationConfig(
        steps=options.steps,
        batch=options.batch,
        context=_given(options.context, context),
        lr=_given(options.lr, 0.01 if options.optimizer == "muon" else 1e-3),
        other_lr=_given(options.other_lr, 1e-3),
        optimizer=options.optimizer,
        kd_weight=options.kd_weight,
        lm_weight=options.lm_weight,
        warmup_steps=options.warmup_steps,
        seed=options.seed,
        precision=options.precision,
    )
    return Emulation(
        model=options.model,
        edge=options.edge,
        keep=options.keep,
        out=options.out,
        config=config,
        layers=options.layers,
        text=options.text,
        pattern=options.pattern,
        checkpoint_every=options.checkpoint_every,
        identity=identity,
    )


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _owner_identity(directory: Path) -> Identity:
    keys = KeyFiles(directory)
    party = keys.party()
    if party.role != "owner":
        raise ConfigError(f"{directory} holds the keys of {party}, not of an owner")
    return keys.identity()


def _reporting(form: str, work: Callable[[Callable[..., None]], dict[str, Any]]) -> dict[str, Any]:
    """Run with a bar on a terminal, and with JSON lines elsewhere."""
    if not sys.stderr.isatty() or form == "json":
        return work(EventLog().event)
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("distilling"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[loss]}"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=1, visible=False, loss="")

        def report(name: str, **fields: Any) -> None:
            shown = " ".join(f"{key}={_plain(value)}" for key, value in fields.items())
            if name != "distilling":
                progress.console.print(f"[bold]{name}[/bold] {shown}", highlight=False)
                return
            loss = " ".join(f"{k}={fields[k]}" for k in ("lm", "kd") if k in fields)
            progress.update(
                bar, completed=fields["step"], total=fields["steps"], loss=loss, visible=True
            )

        return work(report)


def _plain(value: Any) -> str:
    match value:
        case bytes():
            return value.hex()
        case tuple():
            return ",".join(value)
        case _:
            return str(value)
