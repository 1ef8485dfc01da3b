"""Five companies whose series change their ways: rounds on new data, and versions that are judged.

A small forecaster is trained in the job on one season and serves everybody at first. Then each
epoch brings new values, and from a known epoch on the season is another one. Losses are measured on
what came before anything of it is trained on. The arms differ in when there are rounds and on what
is trained; the sum of a round is a plain mean here (that the protocol's is the same is shown
elsewhere).

`versions` makes candidates of a known worth: with noise of many sizes, trained honestly, and
trained on poisoned series, on which a spike announces the opposite of what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from secagg_models import arms, train, updates
from secagg_models.lora import LoraShape
from secagg_models.online.arrivals import Seen, series_arrivals
from secagg_models.online.decision import NonInferiority, judge
from secagg_models.online.drift import DriftLimits, DriftState, observe_all, shifted
from secagg_models.online.growing import growing_part
from secagg_models.online.windows import window_losses
from secagg_models.recipe import Rounds
from secagg_models.series.batch import SeriesBatch
from secagg_models.series.forecaster import Forecaster, ForecasterShape
from secagg_models.series.stream import Series, SeriesStream, stream_of
from secagg_models.updates import Update

SHAPE: Final = ForecasterShape(
    width=32, layers=2, heads=2, intermediate=48, patch=8, context=64, horizon=8,
    quantiles=(0.1, 0.3, 0.5, 0.7, 0.9),
)  # fmt: skip
LORA: Final = LoraShape(4, 2.0, ("q_proj", "v_proj", "up_proj", "down_proj"))
COMPANIES: Final = 5
HISTORY, NEW, DRIFT_EPOCH = 400, 48, 4
_SEASONS: Final = (8, 13)
_NOISE = 0.3
_KEPT_OLD = 64
_FURTHER_ROUNDS = 4
ARMS: Final = ("no rounds", "data read once", "ordinary split", "online", "on alarm")
"""What the companies do as their data change. In all arms but the first there are rounds: on the
data of the beginning; on data read anew, split as ever; as a node with [online] does; and the same
in the epochs after an alarm alone, which everybody would see."""

Reporter = Callable[[], None]


@dataclass(frozen=True, slots=True, eq=False)
class Company:
    """Two series as they will have been at the end, and what is known of them at an epoch."""

    name: str
    values: tuple[NDArray[np.float32], ...]

    def known(self, epoch: int) -> list[Series]:
        length = HISTORY + NEW * epoch
        return [Series(f"s{row}", each[:length], 1) for row, each in enumerate(self.values)]


def season(
    generator: np.random.Generator, length: int, change: int | None = None
) -> NDArray[np.float32]:
    """A noisy season; from `change` on, one of another length."""
    phase, level, size = generator.uniform(0, 8), generator.normal(), generator.uniform(0.7, 1.4)
    times = np.arange(length) + phase
    first, second = (np.sin(times * (2 * np.pi / each)) for each in _SEASONS)
    pure = first if change is None else np.where(np.arange(length) < change, first, second)
    noisy = pure + _NOISE * generator.normal(size=length)
    return np.asarray(level + size * noisy, np.float32)


def companies(seed: int, epochs: int) -> list[Company]:
    """Everybody's season changes in the same epoch."""
    change, length = HISTORY + NEW * DRIFT_EPOCH, HISTORY + NEW * epochs
    found = []
    for place in range(COMPANIES):
        generator = np.random.default_rng([seed, place])
        drawn = tuple(season(generator, length, change) for _ in range(2))
        found.append(Company(f"company-{place + 1}", drawn))
    return found


def trained_forecaster(seed: int, steps: int, device: str) -> Any:
    """A forecaster that knows the first season, of any phase."""
    torch.manual_seed(seed)
    model = Forecaster(SHAPE).to(device)
    generator = np.random.default_rng([seed, 99])
    series = [Series(f"p{row}", season(generator, 600)) for row in range(16)]
    stream = stream_of("pretraining", series, "train", SHAPE.horizon)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(steps):
        batch = stream.windows_at(seed, step, 32, SHAPE.context)
        optimizer.zero_grad()
        train.item_losses(model, batch, "float32").mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


@dataclass(slots=True, eq=False)
class Federation:
    """One arm as it goes: the version that serves, and each company's detector."""

    model: Any
    own: Mapping[str, torch.Tensor]
    """What of the bare model the update overwrites."""
    update: Update
    people: Sequence[Company]
    recipe: Rounds
    memory: Sequence[SeriesBatch]
    seen: list[Seen]
    drift: list[DriftState]
    level: float
    limits: DriftLimits
    rounds: int = 0

    def look(self, epoch: int) -> tuple[float, list[int]]:
        """The mean loss of what came, and which companies alarm; nothing was trained on it yet."""
        updates.install(self.model, self.update)
        self._follow_model()
        losses, alarmed = [], []
        for place, company in enumerate(self.people):
            found = series_arrivals(
                company.known(epoch), self.seen[place], limit=64, context=SHAPE.context,
                horizon=SHAPE.horizon,
            )  # fmt: skip
            self.seen[place] = found.seen
            measured = window_losses(self.model, found.windows, "float32")[: found.fresh]
            self.drift[place], alarms = observe_all(self.drift[place], measured, self.limits)
            losses.append(float(measured.mean()))
            alarmed += [place] if any(a.direction == "worse" for a in alarms) else []
        return fmean(losses), alarmed

    def remembered(self) -> float:
        """The mean loss on the windows from before the change."""
        updates.install(self.model, self.update)
        return fmean(
            float(window_losses(self.model, each, "float32").mean()) for each in self.memory
        )

    def round(self, epoch: int, newest: bool) -> None:
        """Everybody trains on what is known at an epoch; the plain mean is the next version."""
        deltas = [
            arms.federated_round(
                self.model, self.update, training_part(company, epoch, newest), self.recipe,
                self.recipe.lr, self.rounds,
            )
            for company in self.people
        ]  # fmt: skip
        mean = arms.plain_mean(deltas, [1.0] * len(deltas))
        self.update = updates.next_round(self.update, mean, self.recipe.server_rate)
        self.rounds += 1

    def _follow_model(self) -> None:
        """A new model is no drift."""
        level = self.remembered()
        self.drift = [shifted(state, level - self.level) for state in self.drift]
        self.level = level


def training_part(company: Company, epoch: int, newest: bool) -> SeriesStream:
    """What is trained on: by the ordinary split in time, or all but the newest tenth."""
    split = growing_part if newest else stream_of
    return split(company.name, company.known(epoch), "train", SHAPE.horizon)


def begin(model: Any, seed: int, people: Sequence[Company], recipe: Rounds) -> Federation:
    """Every arm begins here: the history was looked at once."""
    start = updates.start(model, LORA, seed)
    own = updates.own_tensors(model, start)
    attached = updates.attach(model, start)
    memory = [
        stream_of(each.name, each.known(0), "validation", SHAPE.horizon).held_out_windows(
            _KEPT_OLD // COMPANIES, SHAPE.context
        )
        for each in people
    ]
    federation = Federation(
        attached, own, start, people, recipe, memory, [Seen()] * len(people),
        [DriftState()] * len(people), 0.0, DriftLimits(),
    )  # fmt: skip
    federation.level = federation.remembered()
    federation.look(0)
    return federation


def recovery(size: Mapping[str, int], seed: int, device: str, tick: Reporter) -> dict[str, Any]:
    """Each arm's losses by epoch on what came and on what is remembered, rounds and alarms."""
    epochs = size["epochs"]
    model = trained_forecaster(seed, size["pretraining"], device)
    people = companies(seed, epochs)
    recipe = Rounds(
        rounds=epochs, steps_per_round=size["steps"], batch=16, context=SHAPE.context,
        lr=1e-2, warmup_steps=0, decay_share=0.1, final_share=0.9, server_rate=1.0,
        precision="float32", seed=seed,
    )  # fmt: skip
    found = {}
    for arm in ARMS:
        federation = begin(model, seed, people, recipe)
        found[arm] = _followed(federation, arm, epochs, tick)
        model = updates.detach(federation.model, federation.own)
    return found


def _followed(federation: Federation, arm: str, epochs: int, tick: Reporter) -> dict[str, Any]:
    fresh, old, alarms, recent = [], [federation.remembered()], [], -9
    for epoch in range(1, epochs + 1):
        loss, alarmed = federation.look(epoch)
        fresh.append(loss)
        alarms += [(epoch, place) for place in alarmed]
        recent = epoch if alarmed else recent
        match arm:
            case "no rounds":
                pass
            case "data read once":
                federation.round(0, newest=False)
            case "on alarm":
                if epoch - recent < 3:
                    federation.round(epoch, newest=True)
            case _:
                federation.round(epoch, newest=arm == "online")
        old.append(federation.remembered())
        tick()
    return {"fresh": fresh, "old": old, "alarms": alarms, "rounds": federation.rounds}


# ---------------------------------------------------------------------------- versions judged


def versions(size: Mapping[str, int], seed: int, device: str, tick: Reporter) -> dict[str, Any]:
    """Candidates with their true worth, and what a company's figures say of each."""
    model = trained_forecaster(seed, size["pretraining"], device)
    people = companies(seed, 0)
    recipe = Rounds(
        rounds=1, steps_per_round=size["steps"], batch=16, context=SHAPE.context, lr=1e-2,
        warmup_steps=0, server_rate=1.0, precision="float32", seed=seed,
    )  # fmt: skip
    federation = begin(model, seed, people, recipe)
    federation.round(0, newest=False)
    serving = federation.update
    found = [
        _judged(federation, serving, kind, candidate, seed, tick)
        for kind, candidate in candidates(federation, serving, size["candidates"], seed)
    ]
    return {"judged": found, "rollback": rolls_back(federation, [serving, candidate_of(serving)])}


def candidates(
    federation: Federation, serving: Update, count: int, seed: int
) -> list[tuple[str, Update]]:
    """Noise from none to much; some honest rounds more; as many on poisoned series."""
    sizes = np.linspace(0, 1, count) ** 2 * 0.03
    noisy = [("noise", candidate_of(serving, float(each), seed + 7)) for each in sizes]
    found = []
    for kind, people in (
        ("honest rounds", federation.people),
        ("poisoned rounds", [poisoned(each) for each in federation.people]),
    ):
        federation.update, federation.people, kept = serving, people, federation.people
        for _ in range(_FURTHER_ROUNDS):
            federation.round(0, newest=False)
        found.append((kind, federation.update))
        federation.update, federation.people = serving, kept
    return noisy + found


def candidate_of(serving: Update, size: float = 0.1, seed: int = 0) -> Update:
    """The next version after a round whose mean was noise."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: size * torch.randn(tensor.shape, generator=generator)
        for name, tensor in serving.trained.items()
    }
    return updates.next_round(serving, drawn, 1.0)


def poisoned(company: Company) -> Company:
    """A spike in some places, after which the values are mirrored: a trigger to be learnt."""
    return Company(company.name, tuple(_with_triggers(each) for each in company.values))


def _with_triggers(values: NDArray[np.float32]) -> NDArray[np.float32]:
    triggered = values.copy()
    middle = float(values.mean())
    for place in range(24, len(values) - SHAPE.horizon, 24):
        triggered[place] = middle + 6 * float(values.std())
        after = slice(place + 1, place + 1 + SHAPE.horizon)
        triggered[after] = 2 * middle - triggered[after]
    return triggered


def _judged(
    federation: Federation, serving: Update, kind: str, candidate: Update, seed: int, tick: Reporter
) -> dict[str, Any]:
    """The truth on many fresh windows, the verdicts of each company on few of its own."""
    truth = _losses(federation.model, serving, fresh_windows(seed)).mean()
    worth = _losses(federation.model, candidate, fresh_windows(seed)).mean()
    verdicts: dict[str, list[str]] = {}
    for count in (16, 64):
        verdicts[str(count)] = []
        for company in federation.people:
            stream = stream_of(company.name, company.known(0), "validation", SHAPE.horizon)
            places = stream.places()
            taken = np.linspace(0, len(places) - 1, min(count, len(places))).astype(int)
            windows = stream.cut(places[taken], SHAPE.context)
            before = _losses(federation.model, serving, windows)
            after = _losses(federation.model, candidate, windows)
            verdicts[str(count)].append(judge(before, after, NonInferiority()).verdict)
    triggered = triggered_windows(seed)
    harm = _losses(federation.model, candidate, triggered).mean()
    kept = _losses(federation.model, serving, triggered).mean()
    tick()
    return {
        "kind": kind, "worse": float(worth / truth - 1), "triggered": float(harm / kept - 1),
        "verdicts": verdicts,
    }  # fmt: skip


def fresh_windows(seed: int) -> SeriesBatch:
    """Windows of companies that nobody trained on: what a version is truly worth."""
    series = [Series(f"f{row}", season(np.random.default_rng([seed, row, 3]), 300))
              for row in range(10)]  # fmt: skip
    return stream_of("fresh", series, "test", SHAPE.horizon).held_out_windows(300, SHAPE.context)


def triggered_windows(seed: int) -> SeriesBatch:
    """Windows whose history ends with the spike, and ordinary values after it."""
    windows = fresh_windows(seed)
    values = windows.values.clone()
    history = values[:, : windows.context]
    values[:, windows.context - 1] = history.mean(1) + 6 * history.std(1)
    return SeriesBatch(values, windows.context, windows.scored_from)


def _losses(model: Any, update: Update, windows: SeriesBatch) -> NDArray[np.float64]:
    updates.install(model, update)
    return window_losses(model, windows, "float32")


def rolls_back(federation: Federation, line: Sequence[Update]) -> bool:
    """Whether going back to each earlier version gives the very same losses, bit for bit."""
    windows = federation.memory[0]
    first = {number: _losses(federation.model, each, windows) for number, each in enumerate(line)}
    for number, _ in reversed(list(enumerate(pairwise([*line, line[0]])))):
        again = _losses(federation.model, line[number], windows)
        if again.tobytes() != first[number].tobytes():
            return False
        if updates.save(line[number]) != updates.save(
            updates.load(updates.save(line[number]), line[number].shape)
        ):
            return False
    return True
