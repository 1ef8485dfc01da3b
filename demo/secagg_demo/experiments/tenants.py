"""Tenants whose text differs and who drop out: what that costs, and whom.

The real protocol sums (tenants_rounds.py). Against it stand a plaintext oracle (every tenant's
exact delta in every round, in float64, nobody lost), each tenant alone, and everybody's text in one
place. Training is what tenants run (`secagg_models.arms`): LoRA in every layer of the shipped base.

Seven tenants: four with Python of different subjects, one with C++ headers, one with tables, one
with font metrics. The same text is dealt out in two ways: each tenant has its own kind
("different"), or every tenant an equal piece of every kind ("alike"). So the two differ in nothing
but who holds what.

Not here: tenants that lie, weights by amount of text, and a network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path, PurePath
from statistics import fmean
from typing import Any, Final

import numpy as np
import torch

from secagg_demo.experiments import page
from secagg_demo.experiments.frame import (
    Cell,
    Finding,
    Interval,
    Job,
    Report,
    Results,
    Summary,
    Table,
    above_zero,
    difference,
    interval,
)
from secagg_demo.experiments.tenants_rounds import Federation, Leaves
from secagg_models import arms, updates
from secagg_models.base import load_base
from secagg_models.flatten import flatten, unflatten
from secagg_models.lora import LoraShape
from secagg_models.recipe import Recipe
from secagg_models.text import SourceFile, Split, TokenStream, byte_stream, split_by_file
from secagg_models.updates import Update

NAME = "tenants"
TITLE = "Tenants of different distributions that drop out"
QUESTION = (
    "What do differing distributions and dropouts cost, all tenants together and the worst one, "
    "against a plaintext oracle, each tenant alone, and everybody's text in one place?"
)
SIZES = ("quick", "default", "large")
SEEDS = 3

# Kinds of text: an installed package, and which of its files.
KINDS: Final[Mapping[str, tuple[str, str]]] = {
    "graphs": ("networkx", ".py"),
    "algebra": ("sympy", ".py"),
    "science": ("scipy", ".py"),
    "plots": ("matplotlib", ".py"),
    "headers": ("torch", ".h"),
    "tables": ("statsmodels", ".csv"),
    "fonts": ("matplotlib", ".afm"),
}
RARE: Final = ("headers", "fonts")
"""Who is lost in every round where the same tenants always are."""
_LOST_EACH_ROUND = 2
_TRAIN_BYTES, _TEST_BYTES, _READ_BYTES, _FILE_BYTES = 420_000, 60_000, 1_600_000, 60_000
SCENARIOS: Final = ("nobody lost", "two drawn are lost", "the same two are lost")
ORACLE, LOCAL, CENTRAL, BASE = "oracle", "each alone", "all text in one place", "before training"

Losses = Mapping[str, float]
"""Held-out nats a byte by kind of text."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What a size means. Every kind of arm has a rate, the best of those tried on validation text
    with one seed and one round more: rounds (the recipe's) 0.012, 0.024, 0.048, 0.096; alone 0.006
    to 0.048 by factors of 2, the last on three of the seven kinds; all in one place 0.003, 0.008,
    0.016, 0.04. Each is the largest that was tried. The rates of `large`, for longer training, are
    guesses."""

    recipe: Recipe
    rank: int
    alone_lr: float = 4.8e-2
    joint_lr: float = 4e-2


_DEFAULT = Recipe(
    rounds=3, steps_per_round=4, batch=4, context=128, warmup_steps=2, server_rate=1.0,
    test_windows=16, lr=9.6e-2,
)  # fmt: skip
SCALES: Final[Mapping[str, Scale]] = {
    "quick": Scale(
        replace(_DEFAULT, rounds=2, steps_per_round=1, batch=1, context=32, test_windows=2), 2
    ),
    "default": Scale(_DEFAULT, 4),
    "large": Scale(
        replace(_DEFAULT, rounds=8, steps_per_round=12, context=256, test_windows=64, lr=2.4e-2),
        8,
        1.2e-2,
        1.2e-2,
    ),
}


def jobs(size: str, seeds: Sequence[int]) -> list[Job]:
    """Three processes a seed: both ways of dealing text out, and what stands beside."""
    return [
        Job(f"{part} {seed}", f"{__name__}:measure", {"size": size, "seed": seed, "part": part})
        for part in ("different", "alike", "beside")
        for seed in seeds
    ]


# ------------------------------------------------------------------------------- measuring


@dataclass(slots=True, eq=False)
class Setting:
    """The model with LoRA in it, every kind's text, and where a job stands."""

    model: Any
    start: Update
    scale: Scale
    seed: int
    tuning: Mapping[str, TokenStream]
    held_out: Mapping[str, TokenStream]
    report: Report
    steps: int
    done: int = 0
    first_deltas: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    def tick(self) -> None:
        """One tenant's round, or as much work, is done."""
        self.done += 1
        self.report(min(self.done, self.steps), self.steps)

    def losses(self, update: Update, kinds: Sequence[str] = ()) -> dict[str, float]:
        """Held-out loss on these kinds of text (all)."""
        recipe = self.scale.recipe
        return {
            kind: arms.loss_with(
                self.model, update, self.held_out[kind], recipe, recipe.test_windows
            )
            for kind in kinds or self.held_out
        }


def measure(arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """A job: one part for one seed."""
    scale = SCALES[arguments["size"]]
    seed, part = int(arguments["seed"]), arguments["part"]
    tuning, held_out = texts(seed)
    setting = _setting(scale, seed, tuning, held_out, report, arguments["device"])
    match part:
        case "beside":
            return beside(setting)
        case "alike":
            setting.tuning = dealt_alike(tuning)
            return {"arms": scenarios(setting)}
        case _:
            return {"arms": {**scenarios(setting), ORACLE: oracle(setting)}}


def _setting(
    scale: Scale,
    seed: int,
    tuning: Mapping[str, TokenStream],
    held_out: Mapping[str, TokenStream],
    report: Report,
    device: str,
) -> Setting:
    model = load_base().model.to(device)
    recipe = replace(scale.recipe, seed=seed)
    start = updates.start(model, LoraShape(scale.rank, recipe.scaling, recipe.targets), seed)
    steps = (len(SCENARIOS) + 1) * recipe.rounds * len(KINDS)
    return Setting(
        updates.attach(model, start), start, replace(scale, recipe=recipe), seed, tuning, held_out,
        report, steps,
    )  # fmt: skip


def texts(seed: int, on: Split = "test") -> tuple[dict[str, TokenStream], dict[str, TokenStream]]:
    """Every kind's tuning text, and its held-out text from an offset that the seed draws."""
    tuning, held_out = {}, {}
    for number, (kind, (package, suffix)) in enumerate(KINDS.items()):
        corpus = split_by_file(kind, _files(package, suffix), validation_share=0.15, test_share=0.2)
        train_part, other = byte_stream(kind, corpus.train), byte_stream(kind, corpus.part(on))
        offset = int(np.random.default_rng([seed, number]).integers(len(other.ids)))
        rolled = np.roll(other.ids, -offset)[:_TEST_BYTES]
        tuning[kind] = replace(train_part, ids=train_part.ids[:_TRAIN_BYTES])
        held_out[kind] = replace(other, ids=rolled)
    return tuning, held_out


def _files(package: str, suffix: str) -> Iterator[SourceFile]:
    """Some of a distribution's files, drawn by the hash of their names, and of long ones the
    beginning: enough to tune on."""
    listed = [p for p in metadata.files(package) or [] if p.suffix == suffix]
    read = 0
    for path in sorted(listed, key=_draw):
        content = Path(str(path.locate())).read_bytes()[:_FILE_BYTES]
        yield SourceFile(PurePath(path).as_posix(), content)
        read += len(content)
        if read > _READ_BYTES:
            return


def _draw(path: PurePath) -> bytes:
    # Salted: parts are assigned by the bare hash, and the first files would all be of one part.
    return hashlib.sha256(b"draw " + path.as_posix().encode()).digest()


def dealt_alike(tuning: Mapping[str, TokenStream]) -> dict[str, TokenStream]:
    """The same text in equal pieces: every tenant has one of every kind."""
    pieces = {kind: np.array_split(stream.ids, len(tuning)) for kind, stream in tuning.items()}
    return {
        tenant: replace(stream, ids=np.concatenate([pieces[kind][place] for kind in tuning]))
        for place, (tenant, stream) in enumerate(tuning.items())
    }


def scenarios(setting: Setting) -> dict[str, Any]:
    """The federation under each schedule of losses."""
    return {scenario: federated(setting, scenario) for scenario in SCENARIOS}


def federated(setting: Setting, scenario: str) -> dict[str, Any]:
    """Rounds of the protocol: losses by kind, and what was checked of every opened sum."""
    tenants, update = Federation(tuple(setting.tuning)), setting.start
    layout = updates.delta_layout(update)
    opened = []
    for number in range(setting.scale.recipe.rounds):
        lost = lost_in(scenario, setting.seed, number, tuple(setting.tuning))
        deltas = {
            name: flatten(_delta(setting, update, name, number), layout)
            for name in setting.tuning
            if lost.get(name) is not Leaves.NEVER_CAME
        }
        found = tenants.mean_of(deltas, layout, bytes(32), lost)
        opened.append({"exact": found.exact, "error": found.error, "of": len(found.survivors)})
        mean = unflatten(found.mean.astype(np.float32), layout)
        update = updates.next_round(update, mean, setting.scale.recipe.server_rate)
    return {"losses": setting.losses(update), "opened": opened}


def lost_in(scenario: str, seed: int, number: int, names: tuple[str, ...]) -> dict[str, Leaves]:
    """Who is lost in a round, and when: the moments take turns."""
    if scenario == SCENARIOS[0]:
        return {}
    generator = np.random.default_rng([seed, number, 11])
    drawn = generator.choice(len(names), _LOST_EACH_ROUND, replace=False)
    who = RARE if scenario == SCENARIOS[2] else [names[place] for place in drawn]
    moments = tuple(Leaves)
    return {name: moments[(number + place) % len(moments)] for place, name in enumerate(who)}


def oracle(setting: Setting) -> dict[str, Any]:
    """Plain float64 means of everybody's delta in every round."""
    update = setting.start
    for number in range(setting.scale.recipe.rounds):
        deltas = [_delta(setting, update, name, number) for name in setting.tuning]
        mean = arms.plain_mean(deltas, [1.0] * len(deltas))
        update = updates.next_round(update, mean, setting.scale.recipe.server_rate)
    return {"losses": setting.losses(update)}


def _delta(setting: Setting, update: Update, name: str, number: int) -> dict[str, torch.Tensor]:
    """A tenant's delta; those of the first round are the same in every arm of a job."""
    if number == 0 and name in setting.first_deltas:
        setting.tick()
        return setting.first_deltas[name]
    recipe = setting.scale.recipe
    delta = arms.federated_round(
        setting.model, update, setting.tuning[name], recipe, recipe.lr, number
    )
    if number == 0:
        setting.first_deltas[name] = delta
    setting.tick()
    return delta


def beside(setting: Setting) -> dict[str, Any]:
    """Before training; each tenant alone on its own text; all text in one place."""
    recipe, streams = setting.scale.recipe, setting.tuning
    found: dict[str, Any] = {BASE: {"losses": setting.losses(setting.start)}}
    setting.steps = 2 * len(streams)
    alone: dict[str, float] = {}
    for kind, stream in streams.items():
        own = arms.local_only(setting.model, setting.start, stream, recipe, setting.scale.alone_lr)
        alone |= setting.losses(own, [kind])
        setting.tick()

    def step(done: int, of: int, loss: float) -> None:
        setting.report(len(streams) + len(streams) * done // of, setting.steps)

    joint = arms.centralised(
        setting.model, setting.start, list(streams.values()), recipe, setting.scale.joint_lr,
        on_progress=step,
    )  # fmt: skip
    return {"arms": {**found, LOCAL: {"losses": alone}, CENTRAL: {"losses": setting.losses(joint)}}}


# ------------------------------------------------------------------------------- summarising


@dataclass(frozen=True, slots=True)
class Seeds:
    """Every arm's losses by seed, in the order of seeds."""

    losses: Mapping[str, Sequence[Losses]]

    def mean(self, arm: str) -> list[float]:
        """Over kinds of text."""
        return [fmean(each.values()) for each in self.losses[arm]]

    def of(self, arm: str, kinds: Sequence[str]) -> list[float]:
        """Over some kinds."""
        return [fmean(each[kind] for kind in kinds) for each in self.losses[arm]]

    def gains(self, arm: str) -> list[dict[str, float]]:
        """What an arm took off each kind's loss before training."""
        pairs = zip(self.losses[BASE], self.losses[arm], strict=True)
        return [{kind: before[kind] - after[kind] for kind in before} for before, after in pairs]

    def worst(self, arm: str) -> list[float]:
        """The highest loss of a kind."""
        return [max(each.values()) for each in self.losses[arm]]

    def least_gain(self, arm: str) -> list[float]:
        """Of the tenant that gained least."""
        return [min(each.values()) for each in self.gains(arm)]


def summarise(size: str, results: Results) -> Summary:
    """Tables by arm and by kind, what dropouts cost, and whom."""
    seeds = Seeds(collected(results))
    opened = [each for result in results.values() for arm in result["arms"].values()
              for each in arm.get("opened", ())]  # fmt: skip
    findings = [
        _about_sums(opened), *_about_costs(seeds), _about_who(seeds), *_about_alone(seeds),
    ]  # fmt: skip
    shown = [arm for arm in _ORDER if arm in seeds.losses]
    means = {arm: interval(seeds.mean(arm)) for arm in shown}
    gains = {arm: interval(seeds.least_gain(arm)) for arm in shown if arm != BASE}
    return Summary(
        [_by_arm(seeds, shown), _by_kind(seeds, shown)],
        findings,
        {
            "mean": page.intervals_plot(means, "nats a byte, mean over tenants", "Held-out loss"),
            "least gain": page.intervals_plot(
                gains, "nats a byte that the tenant gained who gained least", "The worst off"
            ),
        },
        {"losses": seeds.losses, "rounds_opened": len(opened)},
        _HOW.format(scale=SCALES[size], recipe=SCALES[size].recipe),
    )


def collected(results: Results) -> dict[str, list[Losses]]:
    """By arm, in the order of seeds; `alike` and `different` are in the arm's name."""
    found: dict[str, list[Losses]] = {}
    for name, result in results.items():
        part = name.split()[0]
        for arm, measured in result["arms"].items():
            label = f"{part}, {arm}" if arm in SCENARIOS else arm
            found.setdefault(label, []).append(measured["losses"])
    return found


_NONE, _DRAWN, _SAME = (f"different, {scenario}" for scenario in SCENARIOS)
_ALIKE_NONE, _ALIKE_DRAWN, _ALIKE_SAME = (f"alike, {scenario}" for scenario in SCENARIOS)
_ORDER: Final = (
    BASE, LOCAL, ORACLE, _NONE, _DRAWN, _SAME, _ALIKE_NONE, _ALIKE_DRAWN, _ALIKE_SAME, CENTRAL,
)  # fmt: skip
_NEGLIGIBLE = 0.01
_HOW = (
    "Seven tenants: four with Python of different subjects, one with C++ headers, one with tables, "
    "one with font metrics. `different`: each holds its own kind; `alike`: the same text, each "
    "holds a piece of every kind. Losses are always measured on every kind's held-out files. "
    "LoRA of rank {scale.rank} in every layer of the shipped base, {recipe.rounds} rounds of "
    "{recipe.steps_per_round} steps of {recipe.batch} windows of {recipe.context} bytes; rates, "
    "chosen on validation text: {recipe.lr:g} in rounds, {scale.alone_lr:g} alone, "
    "{scale.joint_lr:g} in one place. Every round is the protocol's own (masking, two losses "
    "allowed); lost tenants never come, vanish before their upload, or in the middle of it, by "
    "turns. `oracle` is the plain float64 mean of everybody's delta, nobody lost; each tenant "
    "alone and all text in one place take as many steps. A seed draws tuning windows, LoRA's A, "
    "where held-out text begins, and who is lost."
)


def _about_sums(opened: Sequence[Mapping[str, Any]]) -> Finding:
    exact = sum(each["exact"] for each in opened)
    error = max(each["error"] for each in opened)
    return Finding(
        "Every opened sum is the survivors' to the last level",
        exact == len(opened),
        f"{exact} of {len(opened)} rounds; the mean is within {error:.2f} quantisation steps of "
        "the plain one.",
    )


def _about_costs(seeds: Seeds) -> list[Finding]:
    oracle_, none = seeds.mean(ORACLE), seeds.mean(_NONE)
    summed, drawn = difference(none, oracle_), difference(seeds.mean(_DRAWN), none)
    alike = difference(seeds.mean(_ALIKE_DRAWN), seeds.mean(_ALIKE_NONE))
    split = difference(none, seeds.mean(_ALIKE_NONE))
    return [
        Finding(
            f"The protocol's sum costs less than {_NEGLIGIBLE} nats a byte against the oracle",
            _below(summed, _NEGLIGIBLE),
            f"federated less oracle: {page.in_words(summed)}.",
        ),
        Finding(
            f"Losing two drawn tenants of seven each round costs less than {_NEGLIGIBLE}",
            _below(drawn, _NEGLIGIBLE),
            f"different: {page.in_words(drawn)}; alike: {page.in_words(alike)}.",
        ),
        Finding(
            "Differing distributions cost something",
            above_zero(split),
            f"different less alike, nobody lost: {page.in_words(split)}.",
        ),
    ]


def _about_who(seeds: Seeds) -> Finding:
    paid = difference(seeds.of(_SAME, RARE), seeds.of(_NONE, RARE))
    alike = difference(seeds.of(_ALIKE_SAME, RARE), seeds.of(_ALIKE_NONE, RARE))
    return Finding(
        "Who is lost in every round pays where its text is like nobody else's",
        above_zero(paid),
        f"their loss rises by {page.in_words(paid)}; where all hold the same mixture, the same two "
        f"absent, that text's by {page.in_words(alike)}.",
    )


def _about_alone(seeds: Seeds) -> list[Finding]:
    alone = difference(seeds.mean(LOCAL), seeds.mean(_NONE))
    joint = difference(seeds.mean(_NONE), seeds.mean(CENTRAL))
    better = {kind: difference(seeds.of(LOCAL, [kind]), seeds.of(_NONE, [kind])) for kind in KINDS}
    worse = [kind for kind, found in better.items() if found.high < 0]
    ahead = [kind for kind, found in better.items() if found.low > 0]
    return [
        Finding(
            "The federation beats each tenant alone, mean over tenants",
            above_zero(alone),
            f"alone less federated: {page.in_words(alone)}.",
        ),
        Finding(
            "No tenant would be better off alone",
            False if worse else None if len(ahead) < len(better) else True,
            f"better alone: {', '.join(worse) or 'nobody'}; better in the federation: "
            f"{', '.join(ahead) or 'nobody'}; the others are not decided.",
        ),
        Finding(
            "All text in one place is better still",
            above_zero(joint),
            f"federated less centralised: {page.in_words(joint)} (it takes seven times the "
            "windows in each step).",
        ),
    ]


def _below(found: Interval, bound: float) -> bool | None:
    if found.high < bound:
        return True
    return False if found.low > bound else None


def _by_arm(seeds: Seeds, shown: Sequence[str]) -> Table:
    rows = []
    for arm in shown:
        less = "" if arm == ORACLE else difference(seeds.mean(arm), seeds.mean(ORACLE))
        rows.append(
            (arm, interval(seeds.mean(arm)), interval(seeds.worst(arm)),
             interval(seeds.least_gain(arm)), less)
        )  # fmt: skip
    columns = ("arm", "mean over tenants", "worst tenant", "least gain", "mean less the oracle's")
    return Table("Held-out nats a byte by arm", columns, rows)


def _by_kind(seeds: Seeds, shown: Sequence[str]) -> Table:
    rows: list[list[Cell]] = [
        [kind, *[fmean(each[kind] for each in seeds.losses[arm]) for arm in shown]]
        for kind in KINDS
    ]
    return Table("Held-out nats a byte by kind of text, mean over seeds", ("text", *shown), rows)
