"""Block by block against end to end: what converting a pretrained model into blocks costs.

DiffusionBlocks (Shing, Koyama, Akiba 2025) on three pretrained models, each cut into three blocks:
the shipped base on a package's source, MiniLM on subjects of passages, the shipped forecaster on
real series. The arms are `blocks_arms`; beside the blocks' own way to answer, by sampling through
all of them, stands the model's ordinary pass with the trained layers in it.

Not here: one block against other updates at equal bytes (experiment `budgets`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from secagg_demo.experiments import page
from secagg_demo.experiments.blocks_arms import (
    ARMS,
    BLOCK_ARMS,
    BLOCKS,
    END_TO_END,
    LORA,
    SCRATCH,
    START,
)
from secagg_demo.experiments.frame import (
    Cell,
    Finding,
    Interval,
    Job,
    Plot,
    Results,
    Summary,
    Table,
    above_zero,
    difference,
    interval,
)

NAME = "blocks"
TITLE = "Block by block against end to end"
QUESTION = (
    "When a pretrained model is cut into blocks that each learn to remove noise alone: does that "
    "beat training the blocks from scratch, what does it cost against end-to-end training and in "
    "the ordinary forward pass, and what memory does it save?"
)
SIZES = ("quick", "default", "large")
SEEDS = 3

PURE, PREFIX, MIXED = "pure, converted", "prefix, converted", "mixed, converted"
_TOLERANCE: Final = 0.02
_SHARE: Final = 0.15
UNITS: Final = {
    "language": "nats a byte",
    "classes": "nats a passage",
    "series": "pinball, in units of the history's scale",
}
_DEFAULT: Final[Mapping[str, Mapping[str, Any]]] = {
    "language": {
        "steps": 24, "batch": 8, "context": 96, "end_to_end_lr": 2e-3, "lr": 2e-3,
        "mixed_lr": 2e-3,
        "conditioning_rate": 1.0, "windows": 20, "sampling_steps": 6, "draws": 4,
    },
    "classes": {
        "steps": 24, "batch": 16, "context": 24, "end_to_end_lr": 1e-4, "lr": 2e-4,
        "mixed_lr": 5e-5,
        "conditioning_rate": 10.0, "windows": 120, "sampling_steps": 6, "draws": 2,
        "passages": 200,
    },
    "series": {
        "steps": 48, "batch": 16, "context": 64, "end_to_end_lr": 5e-4, "lr": 5e-4,
        "mixed_lr": 5e-4,
        "conditioning_rate": 10.0, "windows": 60, "sampling_steps": 6, "draws": 20,
        "companies": ["climate", "energy", "retail", "weather", "astronomy"],
    },
}  # fmt: skip
_INSTEAD: Final[Mapping[str, Mapping[str, Any]]] = {
    "quick": {"steps": 2, "batch": 2, "windows": 4, "draws": 2, "passages": 20},
    "default": {},
    "large": {"steps": 400, "windows": 150},
}


def jobs(size: str, seeds: Sequence[int]) -> list[Job]:
    """One process for each model and seed."""
    return [
        Job(
            f"{model} {seed}",
            "secagg_demo.experiments.blocks_arms:measure",
            {**numbers, **_INSTEAD[size], "model": model, "seed": seed},
        )
        for seed in seeds
        for model, numbers in _DEFAULT.items()
    ]


def summarise(size: str, results: Results) -> Summary:
    """A table for each model, one about memory, and what the issue asks."""
    by_model = {
        model: [found for name, found in results.items() if name.split()[0] == model]
        for model in UNITS
    }
    by_model = {model: found for model, found in by_model.items() if found}
    tables = [_table(model, found) for model, found in by_model.items()]
    findings = [
        finding
        for model, found in by_model.items()
        for finding in (
            _conversion(model, found),
            _prefix(model, found),
            _kept(model, found),
            *_kept_right(model, found),
            _lost(model, found),
            _share_of_memory(model, found),
        )
    ]
    return Summary(
        [*tables, _memory(by_model)],
        findings,
        _plots(by_model),
        {"arms": list(ARMS), "blocks": BLOCKS, "settings": {**_DEFAULT}, "instead": _INSTEAD[size]},
        _HOW,
    )


_HOW: Final = (
    f"Each model is cut into {BLOCKS} blocks of as many layers. Every layer gets the same number "
    "of updates in every arm, on the same windows; embeddings, last norm and head are frozen "
    "everywhere. End to end trains all layers together by the model's ordinary loss. Pure: a block "
    "between embeddings and head, alone. Prefix: after the blocks before it, which are trained "
    "already. Mixed: prefix, plus the ordinary loss, whose gradient reaches the active block "
    "alone. LoRA: mixed, with rank 8 inside the active block and three times the rate. From "
    "scratch: pure, with layers drawn anew and pretrained embeddings and head. Sampled: all "
    "blocks together from pure noise, the mean probability (or the quantiles) over draws; 1% of "
    "probability is spread over all answers, since a draw is sure of itself. Layer passes: forward "
    "1, backward 1 for what came in and 1 for weights, in all layers end to end = 1. CPU seconds "
    "are of training, on a machine with other work. Rates of MiniLM and the forecaster are of a "
    "few that were tried on validation data, the base's is one for all arms. MiniLM's mixed blocks "
    "have one of their own: every block's turn lowers the ordinary loss on the same passages once "
    "more, and at end to end's rate that ends in learning them by heart. A seed draws windows "
    "and noise; model and held-out windows are the same for all seeds."
)


def _values(found: Sequence[Any], arm: str, way: str, figure: str) -> list[float]:
    return [float(one["arms"][arm][way][figure]) for one in found]


def _cell(found: Sequence[Any], arm: str, way: str, figure: str) -> Cell:
    one = found[0]["arms"][arm]
    if way not in one or figure not in one[way]:
        return "-"
    values = _values(found, arm, way, figure)
    return values[0] if arm == START else interval(values)


def _table(model: str, found: Sequence[Any]) -> Table:
    right = "right" in found[0]["arms"][START]["ordinary"]
    columns = ["arm", f"sampled ({UNITS[model]})", f"ordinary ({UNITS[model]})"]
    columns += ["sampled, right", "ordinary, right"] if right else []
    columns += ["layer passes", "CPU s"]
    rows: list[list[Cell]] = []
    whole = found[0]["arms"][END_TO_END]["passes"]
    for arm in ARMS:
        row: list[Cell] = [arm, *(_cell(found, arm, way, "loss") for way in _WAYS)]
        row += [_cell(found, arm, way, "right") for way in _WAYS] if right else []
        seconds = [one["arms"][arm]["seconds"] for one in found]
        row += [round(found[0]["arms"][arm]["passes"] / whole, 2)]
        row += ["-" if arm == START else round(sum(seconds) / len(seconds), 1)]
        rows.append(row)
    return Table(_TITLES[model], columns, rows)


_WAYS: Final = ("sampled", "ordinary")
_TITLES: Final = {
    "language": "The shipped base (12 layers) on networkx",
    "classes": "MiniLM (6 layers) on 13 subjects",
    "series": "The shipped forecaster (6 layers) on real series, the next patch",
}


def _better(found: Sequence[Any], one: str, other: str, way: str) -> Interval:
    """How much lower `one`'s loss is than `other`'s."""
    return difference(_values(found, other, way, "loss"), _values(found, one, way, "loss"))


def _conversion(model: str, found: Sequence[Any]) -> Finding:
    gained = _better(found, PURE, SCRATCH, "sampled")
    return Finding(
        f"{model}: converting pretrained layers beats training the blocks from scratch",
        above_zero(gained),
        f"sampled loss lower by {page.in_words(gained)}",
    )


def _prefix(model: str, found: Sequence[Any]) -> Finding:
    gained = _better(found, PREFIX, PURE, "sampled")
    return Finding(
        f"{model}: a block that follows the blocks before it is better than one that is alone",
        above_zero(gained),
        f"sampled loss lower by {page.in_words(gained)}",
    )


def _worse(found: Sequence[Any], arm: str) -> Interval:
    """How much higher than end to end an arm's ordinary loss is, as a share."""
    whole = _values(found, END_TO_END, "ordinary", "loss")
    own = _values(found, arm, "ordinary", "loss")
    return interval([one / other - 1 for one, other in zip(own, whole, strict=True)])


def _kept(model: str, found: Sequence[Any]) -> Finding:
    worse = _worse(found, MIXED)
    holds = True if worse.high <= _TOLERANCE else False if worse.low > _TOLERANCE else None
    return Finding(
        f"{model}: mixed blocks keep the ordinary pass within 2% of end-to-end fine-tuning's loss",
        holds,
        f"loss against end to end: {_percent(worse)}; with LoRA in the blocks "
        f"{_percent(_worse(found, LORA))}",
    )


def _kept_right(model: str, found: Sequence[Any]) -> list[Finding]:
    """The same of right answers, where there are any: 98% of end to end's."""
    if "right" not in found[0]["arms"][START]["ordinary"]:
        return []
    whole = _values(found, END_TO_END, "ordinary", "right")
    own = _values(found, MIXED, "ordinary", "right")
    share = interval([one / other - 1 for one, other in zip(own, whole, strict=True)])
    holds = True if share.low >= -_TOLERANCE else False if share.high < -_TOLERANCE else None
    return [
        Finding(
            f"{model}: mixed blocks keep the ordinary pass's right answers within 2%",
            holds,
            f"right answers against end to end: {_percent(share)}",
        )
    ]


def _lost(model: str, found: Sequence[Any]) -> Finding:
    worse = _worse(found, PURE)
    return Finding(
        f"{model}: pure blocks cost the ordinary pass more than 2%",
        None if worse.low <= _TOLERANCE <= worse.high else worse.low > _TOLERANCE,
        f"loss against end to end: {_percent(worse)}",
    )


def _percent(share: Interval) -> str:
    return f"{share.mean:+.1%} [{share.low:+.1%}, {share.high:+.1%}]"


_BYTES: Final = (
    "one block alone, pure", "one block in the whole model, mixed", "all layers", "every weight",
)  # fmt: skip


def _memory(by_model: Mapping[str, Sequence[Any]]) -> Table:
    rows: list[list[Cell]] = []
    for model, found in by_model.items():
        held = found[0]["memory"]
        whole = held["every weight"]
        rows += [
            [model, name, round(held[name] / 2**20, 2), round(held[name] / whole, 3)]
            for name in _BYTES
        ]
    return Table(
        "Parameters, gradients and optimiser state (AdamW, float32) in one update",
        ["model", "what is trained", "MiB", "of training every weight"],
        rows,
    )


def _share_of_memory(model: str, found: Sequence[Any]) -> Finding:
    held = found[0]["memory"]
    alone = held["one block alone, pure"]
    share, of_layers = alone / held["every weight"], alone / held["all layers"]
    return Finding(
        f"{model}: one of {BLOCKS} blocks alone takes at most 1/{BLOCKS} + 15% of the memory",
        share <= 1 / BLOCKS + _SHARE,
        f"{share:.1%} of training every weight, {of_layers:.1%} of training all layers",
    )


def _plots(by_model: Mapping[str, Sequence[Any]]) -> dict[str, Plot]:
    return {
        f"{model} {way}": _plot(model, found, way)
        for model, found in by_model.items()
        for way in _WAYS
    }


def _plot(model: str, found: Sequence[Any], way: str) -> Plot:
    rows = {
        arm: interval(_values(found, arm, way, "loss"))
        for arm in (ARMS if way == "ordinary" else BLOCK_ARMS)
        if arm != START or way == "ordinary"
    }
    title = "The ordinary pass" if way == "ordinary" else "Sampling through all blocks"
    return page.intervals_plot(rows, f"held-out {UNITS[model]}", f"{title}: {model}")
