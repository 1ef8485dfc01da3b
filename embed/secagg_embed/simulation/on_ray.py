"""The same tenants in Ray's workers: shards of them in actors, on one machine or on a cluster.

Each actor hosts some of the tenants (`seats.Shard`, which is what `InProcess` uses too) from the
first round to the last, so their state stays where it is; requests and replies cross, and the
round's arrays once for each machine. An actor that dies takes its tenants out of the round: they
are dropouts. In the next round it is started anew, with tenants that remember nothing.

Ray is needed only when such workers are opened: `pip install 'secagg[ray]'`. What travels to the
workers is the user's function, by cloudpickle, and public values; keys are made there.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from secagg.errors import ConfigError, SecaggError
from secagg_embed.exchange import Requests
from secagg_embed.simulation.executor import Workers
from secagg_embed.simulation.report import Cause
from secagg_embed.simulation.seats import Answer, Given, MakeSeats, Shard
from secagg_embed.wire import Reply

_BATCH_BYTES = 1 << 24
_MOST_IN_A_BATCH = 16


class WorkersFailed(SecaggError):
    """Ray's workers could not be started, or no longer answer; says what Ray said."""


@dataclass(frozen=True, slots=True)
class OnRay:
    """`workers` actors (default: one for each core) of `cpus` cores each.

    A Ray that runs in this program already is used and left running. Otherwise one is started, or,
    with `address`, joined, and shut down with the simulation; `init` goes to `ray.init`. A `train`
    that PyTorch gives several threads wants `cpus` above 1. Workers that Ray has not started after
    `start_s` are an error: it waits for cores for ever.
    """

    workers: int | None = None
    cpus: float = 1.0
    address: str | None = None
    init: Mapping[str, Any] = field(default_factory=dict)
    start_s: float = 120.0

    def open(self, make: MakeSeats, names: Sequence[str]) -> Workers:
        """See `Executor`.

        Raises:
            ConfigError: Ray is not installed, or the workers cannot import what `train` needs.
            WorkersFailed: the workers did not start.
        """
        ray = _ray()
        wanted = (os.cpu_count() or 1) if self.workers is None else self.workers
        count = min(wanted, len(names))
        if count < 1 or self.cpus <= 0:
            raise ConfigError(f"ray: {count} workers of {self.cpus} cores; give at least one core")
        ours = not ray.is_initialized()
        if ours:
            with warnings.catch_warnings(action="ignore", category=FutureWarning):
                ray.init(**self._options(count))
        shards = tuple(tuple(names[start::count]) for start in range(count))
        workers = _OnRay(ray, self, shards, ours)
        try:
            workers.start(make)
        except BaseException:
            workers.close()
            raise
        return workers

    def _options(self, count: int) -> dict[str, Any]:
        quiet = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
        if self.address is not None:
            return {"log_to_driver": False, "address": self.address, **self.init}
        return {**quiet, "num_cpus": math.ceil(count * self.cpus), **self.init}


class _OnRay:
    """Actors with their shards of tenants."""

    def __init__(
        self, ray: Any, settings: OnRay, shards: tuple[tuple[str, ...], ...], ours: bool
    ) -> None:
        self._ray, self._settings, self._shards, self._ours = ray, settings, shards, ours
        self._kind = ray.remote(num_cpus=settings.cpus, max_restarts=0)(RemoteShard)
        self._home = {name: place for place, names in enumerate(shards) for name in names}
        self._actors: list[Any] = [None] * len(shards)
        self._job: Any = None

    def start(self, make: MakeSeats) -> None:
        """Start every actor, with what makes its tenants."""
        self._job = self._ray.put(_packed(self._ray, make))
        self._start(range(len(self._shards)))

    def begin(self, given: Given) -> None:
        """See `Workers`."""
        self._start([place for place, actor in enumerate(self._actors) if actor is None])
        arrays = self._ray.put(dict(given.arrays))
        told = [actor.begin.remote(given.round, arrays) for actor in self._actors]
        for place, answer in enumerate(told):
            try:
                self._ray.get(answer)
            except self._ray.exceptions.RayError:
                self._give_up(place)  # its tenants do not answer the first request

    def ask(self, requests: Requests, reply_bytes: int) -> Iterator[tuple[str, Answer]]:
        """See `Workers`."""
        size = max(1, min(_MOST_IN_A_BATCH, _BATCH_BYTES // reply_bytes))
        waiting = self._batches(requests, size)
        running: dict[Any, tuple[int, list[str]]] = {}
        while waiting or running:
            yield from self._hand_out(waiting, running, requests)
            if running:
                (done,), _ = self._ray.wait(list(running), num_returns=1)
                place, names = running.pop(done)
                yield from self._received(place, names, done)

    def close(self) -> None:
        """See `Workers`."""
        for actor in self._actors:
            if actor is not None:
                self._ray.kill(actor)
        self._actors = []
        if self._ours:
            self._ray.shutdown()

    # ------------------------------------------------------------------ inside

    def _start(self, places: Sequence[int]) -> None:
        for place in places:
            self._actors[place] = self._kind.remote(self._job, self._shards[place])
        ready = [self._actors[place].prepare.remote() for place in places]
        errors = self._ray.exceptions
        try:
            self._ray.get(ready, timeout=self._settings.start_s)
        except errors.GetTimeoutError:
            raise WorkersFailed(
                f"{len(ready)} workers of {self._settings.cpus:g} cores have not started in "
                f"{self._settings.start_s:g} s, and Ray has {self._cores():g} cores in all; ask "
                "for fewer workers, or for less of each"
            ) from None
        except errors.RayTaskError as error:
            raise _not_prepared(error) from None
        except errors.RayError as error:
            raise WorkersFailed(f"a worker did not start: {_first_line(error)}") from None

    def _cores(self) -> float:
        return float(self._ray.cluster_resources().get("CPU", 0.0))

    def _give_up(self, place: int) -> None:
        actor, self._actors[place] = self._actors[place], None
        if actor is not None:
            self._ray.kill(actor)  # it may still be there, and only out of reach

    def _batches(self, requests: Requests, size: int) -> dict[int, list[list[str]]]:
        """What each actor is to be asked, a few tenants at a time, the first batch last."""
        of: dict[int, list[str]] = {}
        for name in requests:
            of.setdefault(self._home[name], []).append(name)
        return {
            place: [names[start : start + size] for start in range(0, len(names), size)][::-1]
            for place, names in of.items()
        }

    def _hand_out(
        self,
        waiting: dict[int, list[list[str]]],
        running: dict[Any, tuple[int, list[str]]],
        requests: Requests,
    ) -> Iterator[tuple[str, Answer]]:
        """One batch to each idle actor; whose actor is gone does not answer."""
        busy = {place for place, _ in running.values()}
        for place in [place for place in waiting if place not in busy]:
            actor = self._actors[place]
            if actor is None:
                yield from _lost([name for batch in waiting.pop(place) for name in batch])
                continue
            names = waiting[place].pop()
            if not waiting[place]:
                del waiting[place]
            batch = [(name, requests[name]) for name in names]
            running[actor.answers.remote(batch)] = place, names

    def _received(self, place: int, names: list[str], done: Any) -> Iterator[tuple[str, Answer]]:
        errors = self._ray.exceptions
        try:
            answers = self._ray.get(done)
        except errors.RayTaskError as error:
            raise WorkersFailed(f"worker {place} failed: {_first_line(error.cause)}") from error
        except errors.RayError:
            self._give_up(place)
            yield from _lost(names)
        else:
            for name, answer in answers:
                yield name, _unpacked(answer)


class RemoteShard:
    """What an actor runs: a shard, and what it takes for values to travel."""

    def __init__(self, make: bytes, names: Sequence[str]) -> None:
        self._packed, self._names = make, names
        self._shard: Shard | None = None

    def prepare(self) -> None:
        """Load the user's function and make the tenants: errors of either come out here."""
        self._shard = Shard(_loaded(self._packed), self._names)

    def begin(self, number: int, arrays: Mapping[str, Any]) -> None:
        """See `Shard`. `arrays` are this machine's one copy, which nobody may change."""
        self._ready.begin(Given(number, arrays))

    def answers(self, requests: list[tuple[str, bytes]]) -> list[tuple[str, Any]]:
        """See `Shard`."""
        return [(name, _carried(self._ready.answer(name, request))) for name, request in requests]

    @property
    def _ready(self) -> Shard:
        if self._shard is None:
            raise RuntimeError("prepare() comes first")
        return self._shard


def _carried(answer: Answer) -> tuple[Any, ...]:
    """An answer as what crosses between processes without a copy of the upload."""
    if answer.reply is None:
        return (None, None, answer.cpu_s, None, answer.problem, answer.cause.name)
    upload = np.frombuffer(answer.reply.upload, np.uint8)
    return (answer.reply.head, upload, answer.cpu_s, answer.training, "", answer.cause.name)


def _unpacked(carried: tuple[Any, ...]) -> Answer:
    head, upload, cpu_s, training, problem, cause = carried
    reply = None if head is None else Reply(head, memoryview(upload))
    return Answer(reply, cpu_s, training, problem, Cause[cause])


def _lost(names: Sequence[str]) -> Iterator[tuple[str, Answer]]:
    for name in names:
        yield (
            name,
            Answer(None, problem="the Ray worker that it lived in is gone", cause=Cause.WORKER),
        )


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise ConfigError("Ray is not installed: pip install 'secagg[ray]'") from None
    return ray


def _packed(ray: Any, make: MakeSeats) -> bytes:
    """The job with the user's function in it.

    Raises:
        ConfigError: something that the function refers to cannot travel.
    """
    try:
        packed: bytes = ray.cloudpickle.dumps(make)
    except Exception as error:
        raise ConfigError(
            f"ray: train cannot be sent to the workers ({_first_line(error)}); open files, locks, "
            "connections and generators inside train, or keep them in tenant.memory"
        ) from error
    return packed


def _loaded(packed: bytes) -> MakeSeats:
    import ray

    make: MakeSeats = ray.cloudpickle.loads(packed)
    return make


def _not_prepared(error: Any) -> SecaggError:
    cause = getattr(error, "cause", error)
    if isinstance(cause, ImportError):
        return ConfigError(
            f"ray: a worker cannot import what train needs ({_first_line(cause)}); install it "
            "there, or put its folder into the workers' path by "
            "OnRay(init={'runtime_env': {'env_vars': {'PYTHONPATH': ...}}})"
        )
    return WorkersFailed(f"a worker could not make its tenants: {_first_line(cause)}")


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"
