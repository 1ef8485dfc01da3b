"""What a coordinator can tell of a tenant's data from everything that leaves the tenant.

Many tenants, half of them with many windows of a rare regime and half with none, train one round
each, by the same code as a tenant node does, and contribute to rounds of the real protocol
(masking, three tenants) in this process. The coordinator's view of a tenant: each message's kind,
order and size, the bytes of its masked upload, and how much work lay before it joined, counted as
forward passes, passes with a gradient, tokens and windows; the seconds that it took stand beside. A
ridge regression on that view is trained on half of the tenants and asked about the other half.

A classifier that finds nothing proves little by itself. So the same one is also shown what does not
leave: the delta before it is masked, and the number of windows that a threshold on the surprise
would have let through, which is what a selection without the constant envelope would send.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from secagg import (
    Aggregator,
    Dispatch,
    Identity,
    Layout,
    Member,
    MemoryLedger,
    MemorySpool,
    Participant,
    Policy,
    Quantiser,
    Roster,
    RoundPlan,
    Send,
)
from secagg_demo.experiments.frame import Report
from secagg_demo.experiments.surprise_worlds import PLANTED_CONTEXT, Chains, planted_start
from secagg_models import train, updates
from secagg_models.flatten import flatten
from secagg_models.lora import LoraShape
from secagg_models.selection.choice import SurpriseBand, Uniform
from secagg_models.selection.pool import TokenPool
from secagg_models.selection.score import window_losses
from secagg_models.text import TokenStream

POLICIES: Final = ("uniform", "band")
MANY: Final = 0.15
WINDOWS: Final = 300
_SHAPE = LoraShape(2, 2.0, ("q_proj", "down_proj"))
_TRAINING = train.TrainingConfig(
    steps=6, batch=8, context=PLANTED_CONTEXT, lr=0.02, schedule=train.Schedule(6), seed=1,
    precision="float32",
)  # fmt: skip
_OTHERS = ("noor", "otto")
_ME = "mira"
_BINS = 16
_THRESHOLD = 3.0  # nats: between what is common and what is rare before training

SEEN, SECONDS, DELTA, ADMITTED = "everything that leaves", "seconds", "delta", "admitted"
VIEWS: Final = (SEEN, SECONDS, DELTA, ADMITTED)


@dataclass(slots=True)
class Watched:
    """One tenant as its coordinator sees it: (label, bytes) of each message, in order."""

    messages: list[tuple[str, int]] = field(default_factory=list)
    upload: bytearray = field(default_factory=bytearray)

    def features(self) -> list[float]:
        """Counts, sizes and order of the messages, and statistics of the upload's bytes."""
        data = np.frombuffer(bytes(self.upload), np.uint8).astype(np.float64)
        histogram = np.bincount(data.astype(np.int64) // _BINS, minlength=256 // _BINS)
        bits = np.unpackbits(data.astype(np.uint8).reshape(-1, 1), axis=1).mean(0)
        lag = [float(np.corrcoef(data[:-k], data[k:])[0, 1]) for k in (1, 2, 3, 4)]
        sizes = [float(size) for _, size in self.messages]
        order = [float(sum(label.encode())) for label, _ in self.messages]
        return [
            float(len(self.messages)), *sizes, *order, float(len(data)), data.mean(), data.std(),
            *(histogram / len(data)), *bits, *lag, *data[-16:],
        ]  # fmt: skip


def transcript_job(arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """By policy: labels of `tenants` tenants, a classifier's scores by view, and what was counted.

    Both policies see the same tenants."""
    seed, count = int(arguments["seed"]), int(arguments["tenants"])
    chains = Chains.drawn(seed)
    model = planted_start(chains, seed, 80)
    start = updates.start(model, _SHAPE, seed)
    attached = updates.attach(model, start)
    labels = np.random.default_rng([seed, 4]).permutation(np.arange(count) % 2)
    views: dict[str, dict[str, list[list[float]]]] = {
        policy: {view: [] for view in VIEWS} for policy in POLICIES
    }
    for number, label in enumerate(labels):
        rows, _ = chains.windows(WINDOWS, MANY * float(label), 0.03)
        stream = TokenStream(f"tenant {number}", rows.ravel(), 1.0)
        for policy in POLICIES:
            for view, features in _observed(attached, start, stream, policy).items():
                views[policy][view].append(features)
        report(number + 1, count)
    return {
        policy: {
            "labels": labels.tolist(),
            "scores": {view: _scores(np.array(rows), labels) for view, rows in found.items()},
            "work": _work(np.array(found[SEEN])),
        }
        for policy, found in views.items()
    }


def _observed(
    model: Any, start: updates.Update, stream: TokenStream, policy: str
) -> dict[str, list[float]]:
    pool = TokenPool(stream, PLANTED_CONTEXT)
    source = SurpriseBand(pool) if policy == "band" else Uniform(pool)
    updates.install(model, start)
    losses = window_losses(model, pool, np.arange(len(pool))[::3], _TRAINING)
    passes: list[tuple[bool, int]] = []

    def count(_: object, __: object, given: Mapping[str, Any], ___: object) -> None:
        passes.append((torch.is_grad_enabled(), int(given["input_ids"].numel())))

    hook = model.register_forward_hook(count, with_kwargs=True)
    began, cpu = time.perf_counter(), time.process_time()
    train.train_update(model, start, [source], _TRAINING)
    seconds = [time.perf_counter() - began, time.process_time() - cpu]
    hook.remove()
    layout = updates.delta_layout(start)
    delta = flatten(updates.delta_of(updates.state(model, start), start), layout)
    watched = _round(delta)
    work = [len(passes), sum(g for g, _ in passes), sum(n for _, n in passes), len(source.drawn)]
    return {
        SEEN: [*map(float, work), *watched.features()],
        SECONDS: seconds,
        DELTA: [float(value) for value in delta],
        ADMITTED: [float((losses > _THRESHOLD).sum())],
    }


def _round(delta: NDArray[np.float32]) -> Watched:
    """One round with two others, who contribute the same whoever this tenant is."""
    identities = {name: Identity.generate(name, os.urandom) for name in (_ME, *_OTHERS)}
    roster = Roster.create(tuple(map(Member.create, identities.values())))
    plan = RoundPlan.create(
        roster, round_number=1, layout=Layout.flat(len(delta)), quantiser=Quantiser(0.5, 16),
        model_digest=bytes(32), max_weight=100,
    )  # fmt: skip
    policy = Policy(roster.digest, max_colluders=plan.max_colluders)
    aggregator = Aggregator(plan, roster, spool=MemorySpool())
    tenants = {
        name: Participant(
            plan, identity=identities[name], roster=roster, policy=policy, ledger=MemoryLedger()
        )
        for name in plan.cohort
    }
    watched, queue = Watched(), deque[tuple[str, bytes]]()

    def carry(name: str, outputs: list[Any]) -> None:
        for output in outputs:
            match output:
                case Send(message):
                    if name == _ME:
                        watched.messages.append((tenants[name].step.label, len(message)))
                    carry_down(aggregator.receive(name, message, 0.0))
                case _:
                    pass

    def carry_down(outputs: list[Any]) -> None:
        queue.extend((o.recipient, o.message) for o in outputs if isinstance(o, Dispatch))

    aggregator.start(0.0)
    for name, tenant in tenants.items():
        carry(name, tenant.start())
    while queue:
        name, message = queue.popleft()
        tenant = tenants[name]
        carry(name, tenant.receive(message))
        if tenant.ready:
            # The weight counts windows, chosen or not: it is the same for equally long data.
            carry(name, tenant.submit(delta if name == _ME else delta * 0, WINDOWS // 30))
            offset = 0
            for piece in tenant.upload():
                if name == _ME:
                    watched.upload += piece
                    watched.messages.append(("upload", len(piece)))
                offset = aggregator.absorb(name, offset, piece)
            carry(name, tenant.finish_upload())
    return watched


# ------------------------------------------------------------------------------- the attacker


def _scores(views: NDArray[np.float64], labels: NDArray[np.int64]) -> list[list[float]]:
    """Scores of each half of the tenants by a ridge regression on the other half."""
    half = len(labels) // 2
    halves = (np.arange(half), np.arange(half, len(labels)))
    return [
        _ridge(views[known], labels[known], views[asked]).tolist()
        for asked, known in (halves, halves[::-1])
    ]


def _ridge(
    known: NDArray[np.float64], labels: NDArray[np.int64], asked: NDArray[np.float64]
) -> NDArray[np.float64]:
    centre, spread = known.mean(0), known.std(0)
    live = spread > 1e-12
    features = (known[:, live] - centre[live]) / spread[live]
    gram = features @ features.T + len(features) * np.eye(len(features))
    weights = features.T @ np.linalg.solve(gram, labels - labels.mean())
    return np.asarray(((asked[:, live] - centre[live]) / spread[live]) @ weights)


def _work(views: NDArray[np.float64]) -> dict[str, list[float]]:
    """Least and most of what was counted, over all tenants."""
    names = ("forward passes", "with a gradient", "tokens", "windows", "messages")
    return {n: [float(views[:, i].min()), float(views[:, i].max())] for i, n in enumerate(names)}


def auc(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    """The probability that a tenant with rare windows scores above one without; ties count half."""
    ones, zeros = scores[labels == 1], scores[labels == 0]
    apart = ones[:, None] - zeros
    return float(((apart > 0) + 0.5 * (apart == 0)).mean())


def auc_interval(
    found: list[tuple[list[int], list[list[float]]]], seed: int = 1, draws: int = 400
) -> tuple[float, float, float]:
    """Mean AUC over jobs and halves, and the 95% bootstrap interval over tenants in each half."""
    generator = np.random.default_rng(seed)
    groups = [
        (np.array(part), np.array(scores))
        for labels, halves in found
        for part, scores in zip(np.array_split(labels, 2), halves, strict=True)
    ]
    mean = float(np.mean([auc(labels, scores) for labels, scores in groups]))
    again = [
        np.mean([_redrawn(labels, scores, generator) for labels, scores in groups])
        for _ in range(draws)
    ]
    low, high = np.quantile(again, [0.025, 0.975])
    return mean, float(low), float(high)


def _redrawn(
    labels: NDArray[np.int64], scores: NDArray[np.float64], generator: np.random.Generator
) -> float:
    """The AUC of tenants drawn anew with replacement, as many with each label."""
    rows = np.concatenate(
        [generator.choice(np.flatnonzero(labels == label), (labels == label).sum())
         for label in (0, 1)]
    )  # fmt: skip
    return auc(labels[rows], scores[rows])
