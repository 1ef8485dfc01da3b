"""A block, LoRA, every layer, or only the head: what each buys at the same budgets.

Arms are grouped by how many parameters they train and send, all take the same steps on the same
windows, and their losses are followed over the bytes that a tenant has sent. Three tenants, plain
means of their deltas (the protocol's sum adds nothing to a mean: experiment `tenants`), the shipped
base, losses of its ordinary pass.

    head                the language model's head, untied, on frozen features
    LoRA r              in every layer; B is trained and sent, A is everybody's
    layer, block        the last layer, the last third of the layers, whole, ordinary loss
    block, mixed        the same block under DiffusionBlocks' prefix objective with the ordinary
                        loss beside it (Shing, Koyama, Akiba 2025)
    block, pure         under its own objective, so that a tenant needs no other layer
    full                every weight

Not here: the blocks' own way to answer, by sampling through all of them (experiment `blocks`), and
LoRA inside a block.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Final

import torch

from secagg import Identity, Layout, Member, Quantiser, Roster, RoundPlan
from secagg.scheme import upload_bytes
from secagg_demo.experiments import page
from secagg_demo.experiments.frame import (
    Cell,
    Finding,
    Job,
    Report,
    Results,
    Summary,
    Table,
    above_zero,
    difference,
    interval,
)
from secagg_demo.experiments.tenants import texts
from secagg_models import arms, train, updates
from secagg_models.base import load_base
from secagg_models.block_weights import BlockShape
from secagg_models.blocks.memory import Held, held_in_a_step
from secagg_models.blocks.network import BlockNetwork
from secagg_models.blocks.objective import block_loss, noise_generator
from secagg_models.edges import EdgesShape
from secagg_models.flatten import layout_of
from secagg_models.lora import LoraShape
from secagg_models.recipe import Recipe
from secagg_models.text import TokenStream

NAME = "budgets"
TITLE = "A block, LoRA, every layer, or only the head"
QUESTION = (
    "At the same number of trained parameters, of bytes sent and of steps: what does a tenant gain "
    "by tuning one block, LoRA, every weight, or a head on frozen features?"
)
SIZES = ("quick", "default", "large")
SEEDS = 3
TENANTS: Final = ("graphs", "plots", "headers")
_BLOCKS: Final = 3

HEAD, FULL = "head", "full"
SHAPES: Final[Mapping[str, updates.UpdateShape]] = {
    "LoRA 2": LoraShape(2, 1.0, Recipe().targets),
    "LoRA 12": LoraShape(12, 1.0, Recipe().targets),
    "layer": EdgesShape((11,)),
    "LoRA 48": LoraShape(48, 1.0, Recipe().targets),
    "block": EdgesShape((8, 9, 10, 11)),
    "block, mixed": BlockShape(12, _BLOCKS, 2, "all", prefix=True, ordinary_weight=1.0),
    "block, pure": BlockShape(12, _BLOCKS, 2, "all"),
    FULL: EdgesShape(tuple(range(12)), embeddings=True),
}
ARMS: Final = (HEAD, *SHAPES)
RATES: Final[Mapping[str, float]] = {
    HEAD: 1.6e-2, "LoRA 2": 0.12, "LoRA 12": 4e-2, "layer": 1.5e-2, "LoRA 48": 1.2e-2,
    "block": 6e-3, "block, mixed": 6e-3, "block, pure": 2e-3, FULL: 2e-3,
}  # fmt: skip
"""Of each arm the best on validation text of a grid whose steps are factors of 2 to 4; rates on
both sides of each were worse, but for `block, pure`, where nothing lower was tried."""
GROUPS: Final = ((HEAD, "LoRA 2"), ("layer", "LoRA 12"), ("block", "block, mixed", "LoRA 48"))
"""Arms that train about as many parameters, the first of each against the others."""

_DEFAULT = Recipe(
    rounds=4, steps_per_round=6, batch=4, context=128, warmup_steps=2, server_rate=1.0,
    test_windows=16,
)  # fmt: skip
SCALES: Final[Mapping[str, Recipe]] = {
    "quick": replace(_DEFAULT, rounds=2, steps_per_round=1, batch=1, context=32, test_windows=2),
    "default": _DEFAULT,
    "large": replace(_DEFAULT, rounds=12, steps_per_round=12, context=256, test_windows=64),
}


def jobs(size: str, seeds: Sequence[int]) -> list[Job]:
    """Three processes a seed, each with some arms."""
    parts = {"full": (FULL, "layer"), "blocks": ("block", "block, mixed", "block, pure")}
    parts["adapters"] = tuple(arm for arm in ARMS if arm not in parts["full"] + parts["blocks"])
    return [
        Job(
            f"{part} {seed}", f"{__name__}:measure",
            {"size": size, "seed": seed, "arms": list(names)},
        )
        for part, names in parts.items()
        for seed in seeds
    ]  # fmt: skip


# ------------------------------------------------------------------------------- measuring


@dataclass(slots=True, eq=False)
class Setting:
    """The base, the tenants' text, and how far a job is."""

    model: Any
    recipe: Recipe
    tuning: Mapping[str, TokenStream]
    held_out: Mapping[str, TokenStream]
    tick: Callable[[], None]

    def loss(self, model: Any) -> float:
        """Held-out nats a byte of an ordinary pass, mean over tenants."""
        recipe = self.recipe
        return fmean(
            train.evaluate(
                model, stream, context=recipe.context, max_windows=recipe.test_windows,
                precision=recipe.precision,
            )
            for stream in self.held_out.values()
        )  # fmt: skip


def measure(arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """A job: some arms for one seed."""
    seed, names = int(arguments["seed"]), arguments["arms"]
    recipe = replace(SCALES[arguments["size"]], seed=seed)
    setting = setting_of(recipe, arguments["device"], report, len(names))
    rates = {**RATES, **arguments.get("rates", {})}
    return {name: measure_arm(setting, name, rates[name]) for name in names}


def setting_of(
    recipe: Recipe, device: str, report: Report, arms_: int, on: Any = "test"
) -> Setting:
    """Load the base and the text."""
    tuning, held_out = texts(recipe.seed, on)
    done, of = 0, arms_ * recipe.rounds * len(TENANTS)

    def tick() -> None:
        nonlocal done
        done += 1
        report(done, of)

    return Setting(
        load_base().model.to(device),
        recipe,
        {name: tuning[name] for name in TENANTS},
        {name: held_out[name] for name in TENANTS},
        tick,
    )


def measure_arm(setting: Setting, name: str, lr: float) -> dict[str, Any]:
    """Rounds of one arm: losses after each (the first: before any), sizes and costs."""
    if name == HEAD:
        return _measure_head(setting, lr)
    model = copy.deepcopy(setting.model)
    update = updates.start(model, SHAPES[name], setting.recipe.seed)
    attached = updates.attach(model, update)
    ordinary = attached.model if isinstance(attached, BlockNetwork) else attached
    losses, cpu = [setting.loss(ordinary)], 0.0
    layout = updates.delta_layout(update)
    for number in range(setting.recipe.rounds):
        began, deltas = time.process_time(), []
        for stream in setting.tuning.values():
            deltas.append(
                arms.federated_round(attached, update, stream, setting.recipe, lr, number)
            )
            setting.tick()
        cpu += time.process_time() - began
        mean = arms.plain_mean(deltas, [1.0] * len(deltas))
        update = updates.next_round(update, mean)
        updates.install(attached, update)
        losses.append(setting.loss(ordinary))
    held = _held(setting, attached, update)
    return _measured(setting, losses, layout, cpu, held)


def _measure_head(setting: Setting, lr: float) -> dict[str, Any]:
    """The same rounds for a head of its own on features that nobody changes."""
    model = copy.deepcopy(setting.model).requires_grad_(False)
    head = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.lm_head.weight = head
    losses, cpu = [setting.loss(model)], 0.0
    for number in range(setting.recipe.rounds):
        began, deltas, start = time.process_time(), [], head.detach().clone()
        for stream in setting.tuning.values():
            with torch.no_grad():
                head.copy_(start)
            _train_head(model, head, stream, setting.recipe, lr, number)
            deltas.append(head.detach() - start)
            setting.tick()
        cpu += time.process_time() - began
        with torch.no_grad():
            head.copy_(start + torch.stack(deltas).mean(0))
        losses.append(setting.loss(model))
    batch = _first_batch(setting)
    held = held_in_a_step([model], [head], lambda: train.item_losses(model, batch).mean())
    return _measured(setting, losses, layout_of({"head": head}), cpu, held)


def _train_head(
    model: Any,
    head: torch.nn.Parameter,
    stream: TokenStream,
    recipe: Recipe,
    lr: float,
    number: int,
) -> None:
    """`train.train_update` for one matrix that is no update of a version."""
    config = recipe.stretch(lr, number * recipe.steps_per_round, recipe.steps_per_round)
    optimizer = torch.optim.AdamW([head], lr=lr, betas=config.betas, weight_decay=0.0)
    for step in range(config.first_step, config.first_step + config.steps):
        optimizer.param_groups[0]["lr"] = lr * config.schedule.factor(step)
        windows = stream.windows_at(config.seed, step, config.batch, config.context)
        train.item_losses(model, windows, config.precision).mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([head], config.clip_norm)
        optimizer.step()
        optimizer.zero_grad()


def _held(setting: Setting, attached: Any, update: updates.Update) -> Held:
    """Parameters, gradients and optimiser state of a training step; the model is not used after."""
    trained, batch = updates.trained_parameters(attached, update), _first_batch(setting)
    if isinstance(attached, BlockNetwork):
        shape, network = update.shape, attached
        generator = noise_generator(1, 0, shape.block)  # type: ignore[union-attr]
        modules = [network.model, network.conditioning]

        def loss() -> torch.Tensor:
            return block_loss(network, shape.block, shape.objective, batch, generator).total  # type: ignore[union-attr]

        return held_in_a_step(modules, trained, loss)
    return held_in_a_step([attached], trained, lambda: train.item_losses(attached, batch).mean())


def _first_batch(setting: Setting) -> torch.Tensor:
    stream = next(iter(setting.tuning.values()))
    return stream.windows_at(1, 0, 1, setting.recipe.context)


def _measured(
    setting: Setting, losses: Sequence[float], layout: Layout, cpu: float, held: Held
) -> dict[str, Any]:
    recipe = setting.recipe
    return {
        "losses": list(losses),
        "parameters": layout.size,
        "round_bytes": bytes_up(layout),
        "step_cpu_s": cpu / (recipe.total_steps * len(TENANTS)),
        "trained_bytes": held.gradients + held.optimiser,
    }


def bytes_up(layout: Layout) -> int:
    """Of one tenant's upload in a round of the protocol, 16 bits a value."""
    names = [f"tenant-{number}" for number in range(len(TENANTS))]
    members = tuple(Member.create(Identity.generate(name, os.urandom)) for name in names)
    plan = RoundPlan.create(
        Roster.create(members), round_number=1, layout=layout, quantiser=Quantiser(0.5, 16),
        model_digest=bytes(32), max_weight=1,
    )  # fmt: skip
    return upload_bytes(plan)


# ------------------------------------------------------------------------------- summarising


@dataclass(frozen=True, slots=True)
class Seeds:
    """What was measured of every arm, in the order of seeds."""

    arms: Mapping[str, Sequence[Mapping[str, Any]]]

    def after(self, arm: str, round_: int = -1) -> list[float]:
        """Losses after so many rounds; -1 after all."""
        return [each["losses"][round_] for each in self.arms[arm]]

    @property
    def rounds(self) -> int:
        """How many every arm took."""
        return len(self.arms[FULL][0]["losses"]) - 1

    def fact(self, arm: str, name: str) -> float:
        """A figure of an arm, mean over seeds."""
        return fmean(each[name] for each in self.arms[arm])

    def rounds_within(self, arm: str, bytes_: float) -> int:
        """How many of its rounds fit into so many bytes up."""
        return min(self.rounds, int(bytes_ // self.fact(arm, "round_bytes")))


def summarise(size: str, results: Results) -> Summary:
    """Tables at equal steps, at equal parameters and at equal bytes."""
    found: dict[str, list[Mapping[str, Any]]] = {arm: [] for arm in ARMS}
    for result in results.values():
        for arm, measured in result.items():
            found[arm].append(measured)
    seeds, recipe = Seeds(found), SCALES[size]
    curves = {
        arm: [interval(seeds.after(arm, r)) for r in range(1, seeds.rounds + 1)] for arm in ARMS
    }
    bytes_up_ = {
        arm: [r * seeds.fact(arm, "round_bytes") for r in range(1, seeds.rounds + 1)]
        for arm in ARMS
    }
    return Summary(
        [_at_equal_steps(seeds), _at_equal_parameters(seeds), _at_equal_bytes(seeds)],
        [*_about_parameters(seeds), _about_bytes(seeds), _about_full(seeds), _about_pure(seeds)],
        {
            "bytes": page.curves_plot(
                bytes_up_, curves, ("bytes up, a tenant (log)", "held-out nats a byte"),
                "Loss over bytes sent", log_x=True,
            ),
            "steps": page.intervals_plot(
                {arm: interval(seeds.after(arm)) for arm in ARMS}, "held-out nats a byte",
                "After the same steps",
            ),
        },
        {"arms": found, "rates": dict(RATES)},
        _HOW.format(recipe=recipe),
    )  # fmt: skip


_HOW = (
    "The shipped base (12 layers of width 128, byte-level), three tenants (Python of two packages, "
    "C++ headers), {recipe.rounds} rounds of {recipe.steps_per_round} steps of {recipe.batch} "
    "windows of {recipe.context} bytes, each arm at its own rate, chosen on validation text. "
    "Losses are of the ordinary pass, mean over tenants, each on its own held-out files. Bytes are "
    "one tenant's uploads under the protocol at 16 bits a value. `block` is the last third of the "
    "layers, trained by the ordinary loss; `block, mixed` by DiffusionBlocks' prefix objective "
    "with the ordinary loss beside it; `block, pure` by the block's own loss alone, so that a "
    "tenant needs no other layer. A seed draws windows, noise, LoRA's A, and where held-out text "
    "begins."
)


def _at_equal_steps(seeds: Seeds) -> Table:
    rows: list[list[Cell]] = []
    for arm in ARMS:
        gain = difference(seeds.after(arm, 0), seeds.after(arm))
        share = fmean(
            (a - b) / (c - d)
            for a, b, c, d in zip(
                seeds.after(arm, 0), seeds.after(arm), seeds.after(FULL, 0), seeds.after(FULL),
                strict=True,
            )
        )  # fmt: skip
        rows.append([
            arm, round(seeds.fact(arm, "parameters")), interval(seeds.after(arm)), gain,
            f"{share:.0%}", seeds.fact(arm, "step_cpu_s"),
            seeds.fact(arm, "trained_bytes") / 1e6, seeds.fact(arm, "round_bytes") / 1e6,
        ])  # fmt: skip
    columns = ("arm", "parameters trained", "nats a byte", "gain", "of full's gain",
               "CPU s a step", "gradients and optimiser, MB", "a round up, MB")  # fmt: skip
    return Table("At equal steps", columns, rows)


def _pairs() -> list[tuple[str, str]]:
    return [(group[0], other) for group in GROUPS for other in group[1:]]


def _at_equal_parameters(seeds: Seeds) -> Table:
    rows: list[list[Cell]] = [
        [
            f"{one} less {other}",
            f"{seeds.fact(one, 'parameters'):,.0f} and {seeds.fact(other, 'parameters'):,.0f}",
            difference(seeds.after(one), seeds.after(other)),
        ]
        for one, other in _pairs()
    ]
    return Table(
        "At about equal parameters and equal steps", ("losses", "parameters", "difference"), rows
    )


def _at_equal_bytes(seeds: Seeds) -> Table:
    budget = seeds.fact(FULL, "round_bytes")
    rows: list[list[Cell]] = []
    for arm in ARMS:
        rounds = seeds.rounds_within(arm, budget)
        ran_out = "all" if rounds == seeds.rounds else str(rounds)
        rows.append([arm, ran_out, interval(seeds.after(arm, rounds)),
                     difference(seeds.after(arm, rounds), seeds.after(FULL, 1))])  # fmt: skip
    columns = ("arm", "rounds that fit", "nats a byte", "less full's")
    return Table(f"Within the bytes of one round of full ({budget / 1e6:.1f} MB up)", columns, rows)


def _about_parameters(seeds: Seeds) -> list[Finding]:
    claims = {
        (HEAD, "LoRA 2"): "LoRA beats a head on frozen features with as many parameters",
        ("layer", "LoRA 12"): "LoRA in every layer beats the last layer whole",
        ("block", "LoRA 48"): "LoRA in every layer beats the last block whole",
    }
    found = {pair: difference(seeds.after(pair[0]), seeds.after(pair[1])) for pair in claims}
    return [
        Finding(
            claim,
            above_zero(found[pair]),
            f"{pair[0]} less {pair[1]}: {page.in_words(found[pair])}.",
        )
        for pair, claim in claims.items()
    ]


def _about_bytes(seeds: Seeds) -> Finding:
    budget = seeds.fact(FULL, "round_bytes")
    best = min(
        (arm for arm in ARMS if arm != FULL),
        key=lambda arm: fmean(seeds.after(arm, seeds.rounds_within(arm, budget))),
    )
    found = difference(seeds.after(FULL, 1), seeds.after(best, seeds.rounds_within(best, budget)))
    return Finding(
        "For the bytes of one round of full there is something better than that round",
        above_zero(found),
        f"the best by its mean is {best}: full's one round less it is {page.in_words(found)}.",
    )


def _about_full(seeds: Seeds) -> Finding:
    others = {arm: difference(seeds.after(arm), seeds.after(FULL)) for arm in ARMS if arm != FULL}
    return Finding(
        "At equal steps every weight is best",
        all(found.low > 0 for found in others.values())
        or (False if any(found.high < 0 for found in others.values()) else None),
        "; ".join(f"{arm} less full {page.in_words(found)}" for arm, found in others.items()) + ".",
    )


def _about_pure(seeds: Seeds) -> Finding:
    kept = difference(seeds.after("block, pure", 0), seeds.after("block, pure"))
    mixed = difference(seeds.after("block, mixed"), seeds.after("block"))
    return Finding(
        "A block trained under its own loss alone improves the ordinary pass",
        above_zero(kept),
        f"what it takes off the untuned loss: {page.in_words(kept)}; with the ordinary loss beside "
        f"it (mixed) less the ordinary loss alone: {page.in_words(mixed)}.",
    )
