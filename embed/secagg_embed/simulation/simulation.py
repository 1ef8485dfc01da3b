"""A training under secure aggregation with hundreds of tenants, before anything is deployed.

    simulation = Simulation(tenants=300, train=train, start=arrays, terms=Terms(clip=0.1))
    for report in simulation.rounds(5, dropouts=0.1):
        print(report, accuracy(simulation.arrays))

The rounds are those of the protocol, with every key, signature, share and check. Not simulated:
networks, clocks and disks; a tenant is slow or lost only where `dropouts` says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from secagg.errors import ConfigError, SecaggError
from secagg.plan import RoundPlan
from secagg.policy import Policy
from secagg.result import Result
from secagg_embed.exchange import CoordinatedRound
from secagg_embed.simulation.conduct import PassingSpool, Watch, conduct
from secagg_embed.simulation.dropouts import Dropouts, Silent, dropouts_of
from secagg_embed.simulation.executor import Executor, InProcess, Workers
from secagg_embed.simulation.progress import Progress, RoundBegan, RoundEnded, shown
from secagg_embed.simulation.report import Cause, RoundReport, some
from secagg_embed.simulation.seats import Given, Job, Train, TrainingFailed
from secagg_embed.simulation.tenants import Population
from secagg_embed.tensors import (
    Tensors,
    added,
    layout_of,
    model_digest,
    require_finite_model,
    unflatten,
)
from secagg_embed.terms import Terms, require_terms, whole

Apply = Callable[[Tensors, dict[str, NDArray[np.floating[Any]]], int], Mapping[str, Any]]
"""`apply(arrays, mean, round) -> arrays`: the server's step. `mean` has the weighted mean change of
each array that is averaged, (shape of the array) float64."""


class Simulation:
    """Tenants, a model and terms; see the module's docstring.

    `tenants` is their number, or their names. `start` maps names to NumPy arrays or PyTorch
    tensors. From `seed` follow every key, every rounding and every dropout, so that the same seed
    gives the same sums in whatever executor, as long as `train` gives the same bits.

    `check` compares every opened sum with the plaintext sum, at one more vector a reply. `apply` is
    the server's optimiser (default: the mean change is added). `policy` is everybody's, beyond what
    the terms ask for. With `remember`, a signature that one tenant of a process has verified is
    not verified again for the next one there; without, tenants take the CPU that they take apart.

    Raises:
        ConfigError: it cannot work; says why.
    """

    def __init__(
        self,
        *,
        tenants: int | Sequence[str],
        train: Train,
        start: Tensors,
        terms: Terms,
        seed: int = 0,
        executor: Executor | None = None,
        check: bool = False,
        progress: Progress | None = None,
        apply: Apply | None = None,
        policy: Callable[[bytes], Policy] | None = None,
        remember: bool = True,
    ) -> None:
        require_terms(terms)
        _require_functions(train=train, apply=apply, policy=policy, progress=progress)
        _require_executor(executor)
        self._layout = layout_of(start)
        self.arrays: Mapping[str, Any] = dict(start)
        self.terms = terms
        self.result: Result | None = None
        self._population = Population.of(tenants, seed)
        self._roster = self._population.roster(committee=terms.scheme != "masking")
        self._executor = executor or InProcess()
        self._progress = progress or shown()
        self._apply = apply
        self._job = Job(
            self._population,
            self._roster.encode(),
            (policy or _default_policy(terms))(self._roster.digest),
            train,
            check,
            remember,
        )
        self._workers: Workers | None = None
        self._round = 0

    @property
    def tenants(self) -> tuple[str, ...]:
        """Everybody's id, sorted."""
        return self._population.names

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the tenants go; what they keep in `TenantInfo.memory` is lost."""
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.close()

    def rounds(
        self,
        count: int,
        *,
        dropouts: float | Silent | Dropouts = 0.0,
        sample: int | None = None,
        keep_going: bool = False,
    ) -> Iterator[RoundReport]:
        """Run so many rounds; each is run when its report is asked for.

        `dropouts`: a fraction of each round's tenants, at steps drawn by the seed; or who is silent
        from which step on; or `Dropouts`. `sample`: so many tenants, drawn by the seed, make up
        each round. With `keep_going` a round that opened nothing is a report with its error, and
        the arrays stay; without, it is raised.

        Raises:
            ConfigError: dropouts or a sample that cannot be; or terms that no tenant accepts.
            TrainingFailed: nobody's training succeeded.
            RoundAborted, ProtocolError: nothing was opened; says why, and who left and why.
        """
        count = whole("count", count)
        gone = dropouts_of(dropouts)
        gone.require_known(self.tenants)
        return self._rounds(count, gone, self._names_in(sample), keep_going)

    # ------------------------------------------------------------------ one round

    def _rounds(
        self,
        count: int,
        gone: Dropouts,
        names: Callable[[int], tuple[str, ...]],
        keep_going: bool,
    ) -> Iterator[RoundReport]:
        for _ in range(count):
            self._round += 1
            report = self._one(names(self._round), gone)
            if report.error is not None and not keep_going:
                raise report.error
            yield report

    def _one(self, cohort: tuple[str, ...], dropouts: Dropouts) -> RoundReport:
        number, workers = self._round, self._open_workers()
        begun = time.perf_counter()
        plan = self._plan(cohort)
        coordinated = CoordinatedRound(plan, self._roster, spool=PassingSpool())
        silent = dropouts.silent(plan.cohort, self._population.seed, number)
        self._progress(RoundBegan(number, plan.n))
        workers.begin(Given(number, self.arrays))
        watch = Watch(plan, self._progress)
        conduct(coordinated, workers, watch, silent)
        error = _outcome(coordinated, watch)
        self.result = coordinated.result
        if self.result is not None:
            self.arrays = self._applied(self.result, number)
        report = _report(number, coordinated, watch, error, time.perf_counter() - begun)
        self._progress(RoundEnded(report))
        return report

    def _plan(self, cohort: tuple[str, ...]) -> RoundPlan:
        require_finite_model(self.arrays, self._layout)
        return self.terms.plan(
            self._roster, self._layout, model_digest(self.arrays),
            round_number=self._round, cohort=cohort,
        )  # fmt: skip

    def _open_workers(self) -> Workers:
        if self._workers is None:
            self._workers = self._executor.open(self._job, self._population.names)
        return self._workers

    def _applied(self, result: Result, number: int) -> Mapping[str, Any]:
        mean = result.mean()
        if self._apply is None:
            return added(self.arrays, mean, self._layout)
        return _kept(self.arrays, self._apply(self.arrays, unflatten(mean, self._layout), number))

    def _names_in(self, sample: int | None) -> Callable[[int], tuple[str, ...]]:
        everybody, seed = self._population.names, self._population.seed
        if sample is None:
            return lambda number: everybody
        size = whole("sample", sample)
        if not 3 <= size <= len(everybody):
            raise ConfigError(f"a sample of {sample} of {len(everybody)} tenants; give 3 or more")

        def drawn(number: int) -> tuple[str, ...]:
            draw = np.random.default_rng((seed, number, _SAMPLE))
            return tuple(everybody[i] for i in draw.choice(len(everybody), size, replace=False))

        return drawn


_SAMPLE = 0x5A


def _require_functions(*, train: object, **optional: object) -> None:
    given = {name: value for name, value in optional.items() if value is not None}
    for name, value in {"train": train, **given}.items():
        if not callable(value):
            raise ConfigError(f"simulation: {name} is a {type(value).__name__}; give a function")


def _require_executor(given: object) -> None:
    if given is not None and (isinstance(given, type) or not hasattr(given, "open")):
        raise ConfigError(f"simulation: executor is {given!r}; give OnRay(), for instance, or none")


def _kept(before: Tensors, after: Tensors) -> dict[str, Any]:
    """What `apply` returned, in the dtypes that the model has.

    Raises:
        ConfigError: other names or shapes.
    """
    _require_arrays(after)
    wrong = [
        name
        for name in sorted(before.keys() | after.keys())
        if name not in before
        or name not in after
        or tuple(np.shape(after[name])) != tuple(np.shape(before[name]))
    ]
    if wrong:
        raise ConfigError(f"apply: {wrong[:5]} are not what it was given; keep names and shapes")
    return {
        name: after[name].to(array)
        if hasattr(array, "detach")
        else np.asarray(after[name], array.dtype)
        for name, array in before.items()
    }


def _require_arrays(returned: object) -> None:
    if not isinstance(returned, Mapping):
        raise ConfigError(f"apply returned a {type(returned).__name__}; it returns the new arrays")


def _default_policy(terms: Terms) -> Callable[[bytes], Policy]:
    """The defaults of `Policy`, as strict as the terms are; a plan outside them is refused."""
    colluders = 1 if terms.max_colluders is None else min(1, terms.max_colluders)
    return lambda digest: Policy(digest, max_colluders=colluders, suites=(terms.suite,))


def _outcome(coordinated: CoordinatedRound, watch: Watch) -> SecaggError | None:
    """Why nothing was opened, with what the tenants' side knows about it."""
    if coordinated.result is not None:
        return None
    failed = [one for one in watch.left.values() if one.cause is Cause.TRAINING]
    if failed and not watch.arrived:
        return TrainingFailed(f"nobody's training succeeded: {some(failed)}")
    error = coordinated.error
    if error is None:
        raise RuntimeError("a round ended with neither a sum nor an error")
    error.add_note(f"left the round: {some(tuple(watch.left.values()))}")
    return error


def _report(
    number: int,
    coordinated: CoordinatedRound,
    watch: Watch,
    error: SecaggError | None,
    wall_s: float,
) -> RoundReport:
    result = coordinated.result
    return RoundReport(
        number=number,
        plan=coordinated.plan,
        survivors=() if result is None else result.survivors,
        left=tuple(watch.left.values()),
        steps=tuple(tally.report() for tally in watch.steps),
        training=watch.training(),
        total_weight=0 if result is None else result.total_weight,
        exact=_is_exact(result, watch),
        digest="" if result is None else _digest(result),
        wall_s=wall_s,
        error=error,
    )


def _is_exact(result: Result | None, watch: Watch) -> bool | None:
    if result is None or watch.levels is None:
        return None
    weights = sum(watch.arrived[name].weight for name in result.survivors)
    return (
        set(result.survivors) == watch.arrived.keys()
        and weights == result.total_weight
        and np.array_equal(result.level_sum, watch.levels)
    )


def _digest(result: Result) -> str:
    weight = result.total_weight.to_bytes(8, "little")
    return sha256(result.level_sum.astype("<i8").tobytes() + weight).hexdigest()
