"""On Ray the same user code gives the same sums; what dies there drops out, and is told."""

import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.errors import ConfigError, SecaggError, Step, TooFewSurvivors
from secagg_embed.simulation import (
    Answered,
    Cause,
    Event,
    InProcess,
    OnRay,
    RoundReport,
    Simulation,
    StepBegan,
    TenantInfo,
    TrainingFailed,
    WorkersFailed,
    quiet,
)
from secagg_embed.terms import Terms
from tests.stacks.ray import trainings

pytestmark = pytest.mark.usefixtures("running_ray")
TWO = OnRay(workers=2)


def simulate(train: Any = trainings.walk, executor: Any = TWO, **options: Any) -> Simulation:
    settled: dict[str, Any] = {
        "tenants": 6, "start": trainings.START, "terms": Terms(clip=0.5, max_weight=20),
        "check": True, "progress": quiet,
    }  # fmt: skip
    return Simulation(train=train, executor=executor, **{**settled, **options})


def outcomes(simulation: Simulation, count: int = 2, **how: Any) -> list[tuple[Any, ...]]:
    with simulation:
        return [_outcome(one) for one in simulation.rounds(count, keep_going=True, **how)]


def _outcome(report: RoundReport) -> tuple[Any, ...]:
    bytes_up = [step.bytes_up for step in report.steps]
    return report.digest, report.survivors, report.left, report.exact, bytes_up


@settings(max_examples=4)
@given(seed=st.integers(0, 1 << 32), dropouts=st.sampled_from((0.0, 0.2, 0.5)))
def test_one_seed_gives_one_sum_wherever_the_tenants_live(seed: int, dropouts: float) -> None:
    here = outcomes(simulate(executor=InProcess(), seed=seed), dropouts=dropouts)
    there = outcomes(simulate(seed=seed), dropouts=dropouts)
    assert here == there


def test_the_sum_is_that_of_plain_arithmetic() -> None:
    with simulate(seed=9) as simulation:
        (report,) = simulation.rounds(1, dropouts={"t003": Step.MASKED_INPUT})
        assert report.exact is True
        after, weights = [], []
        for name in report.survivors:
            info = TenantInfo(name, int(name[1:]), 6, 9)
            start = {key: array.copy() for key, array in trainings.START.items()}
            trained, weight = trainings.walk(info, start, 1)
            after.append(trained)
            weights.append(weight)
        for key, array in simulation.arrays.items():
            mean = np.average([one[key] for one in after], axis=0, weights=weights)
            level = report.plan.quantiser.scale * 20 * len(after) / sum(weights)
            assert np.abs(array - mean).max() <= level


def test_more_workers_than_tenants_and_one_alone_change_nothing() -> None:
    alone, many = simulate(executor=OnRay(workers=1)), simulate(executor=OnRay(9, cpus=0.1))
    assert outcomes(alone, 1) == outcomes(many, 1)


def test_functions_with_closures_travel() -> None:
    step = np.float32(0.05)

    def train(tenant: TenantInfo, arrays: dict[str, Any], number: int) -> trainings.Returned:
        return {name: array + step for name, array in arrays.items()}, 1

    with simulate(train) as simulation:
        (report,) = simulation.rounds(1)
    assert report.exact is True
    assert np.allclose(simulation.arrays["b"], 0.05, atol=1e-4)


def test_what_a_tenant_keeps_stays_in_its_worker() -> None:
    with simulate(trainings.counting) as simulation:
        assert [report.total_weight for report in simulation.rounds(3)] == [6, 12, 18]


def test_progress_is_told_while_answers_come() -> None:
    events: list[Event] = []
    with simulate(progress=events.append) as simulation:
        next(simulation.rounds(1))
    steps = [event.step for event in events if isinstance(event, StepBegan)]
    assert steps == list(Step)
    assert sum(isinstance(event, Answered) for event in events) == 36


# ---------------------------------------------------------------------- what goes wrong


def test_a_training_that_fails_comes_out_in_words() -> None:
    with simulate(trainings.raising_in_t002) as simulation:
        (report,) = simulation.rounds(1)
    (left,) = report.left
    assert (left.tenant, left.step, left.cause) == ("t002", Step.MASKED_INPUT, Cause.TRAINING)
    assert "train raised Unpicklable" in left.reason
    assert "trainings.py:" in left.reason
    assert report.exact is True


def refused(error: type[SecaggError], match: str, *train: Any, **options: Any) -> BaseException:
    """What the first round raises."""
    with simulate(*train, **options) as simulation, pytest.raises(error, match=match) as raised:
        next(simulation.rounds(1))
    return raised.value


def test_nobodys_training_succeeding_is_raised() -> None:
    refused(TrainingFailed, "the loader found no file", trainings.raising)


def test_a_worker_that_dies_takes_its_tenants_out_and_the_round_goes_on() -> None:
    terms = Terms(clip=0.5, max_weight=20, max_colluders=1)
    with simulate(trainings.dying_in_t001_once, OnRay(6, cpus=0.1), terms=terms) as simulation:
        died, whole = simulation.rounds(2)
    (left,) = died.left
    assert (left.tenant, left.step, left.cause) == ("t001", Step.MASKED_INPUT, Cause.WORKER)
    assert died.exact is True
    assert len(died.survivors) == 5
    assert len(whole.survivors) == 6, "it is started anew for the next round"


def test_a_worker_killed_between_exchanges_takes_all_its_tenants_out() -> None:
    killed: list[Any] = []
    workers = OnRay(workers=4, cpus=0.1)  # of 12 tenants three live in each

    def progress(event: Event) -> None:
        if isinstance(event, StepBegan) and event.step is Step.CONSISTENCY_CHECK and not killed:
            killed.append(simulation._workers._actors[1])
            ray.kill(killed[0])

    with simulate(tenants=12, executor=workers, progress=progress) as simulation:
        (report,) = simulation.rounds(1)
    assert [one.tenant for one in report.left] == ["t001", "t005", "t009"]
    assert {one.step for one in report.left} == {Step.CONSISTENCY_CHECK}
    assert len(report.survivors) == 12, "their uploads were in the sum already"
    assert report.exact is True


def test_too_many_dead_workers_end_the_round_in_words() -> None:
    def progress(event: Event) -> None:
        if isinstance(event, StepBegan) and event.step is Step.SHARE_KEYS:
            ray.kill(simulation._workers._actors[0])

    with simulate(progress=progress) as simulation, pytest.raises(TooFewSurvivors) as raised:
        next(simulation.rounds(1))
    assert "the Ray worker that it lived in is gone" in raised.value.__notes__[0]


def test_a_function_that_cannot_travel_is_refused_with_the_cure() -> None:
    lock = threading.Lock()

    def train(tenant: TenantInfo, arrays: dict[str, Any], number: int) -> trainings.Returned:
        with lock:
            return arrays, 1

    refused(ConfigError, "cannot pickle .* or keep them in tenant", train)


def test_a_module_that_workers_cannot_import_is_named() -> None:
    module = types.ModuleType("only_in_this_process")
    exec("def train(tenant, arrays, number):\n    return arrays, 1\n", module.__dict__)
    sys.modules[module.__name__] = module
    error = refused(ConfigError, "only_in_this_process", module.train)
    assert "PYTHONPATH" in str(error)


def test_cores_that_ray_does_not_have_are_not_waited_for_for_ever() -> None:
    refused(WorkersFailed, "64 cores", executor=OnRay(workers=2, cpus=64.0, start_s=1.0))


@pytest.mark.parametrize("wrong", [OnRay(workers=0), OnRay(cpus=0.0), OnRay(workers=-1)])
def test_workers_without_cores_are_refused(wrong: OnRay) -> None:
    refused(ConfigError, "at least one", executor=wrong)


# ---------------------------------------------------------------------- whose Ray it is


def test_a_ray_that_was_running_is_left_running() -> None:
    with simulate() as simulation:
        next(simulation.rounds(1))
    assert ray.is_initialized()


SCRIPT = """
import numpy as np
import ray
from secagg_embed.simulation import InProcess, OnRay, Simulation, quiet
from secagg_embed.terms import Terms

def train(tenant, arrays, number):
    return {"w": arrays["w"] + tenant.rng(number).uniform(0, 0.1, 9).astype(np.float32)}, 1

def run(executor):
    start = {"w": np.zeros(9, np.float32)}
    terms = Terms(clip=0.1)
    with Simulation(
        tenants=5, train=train, start=start, terms=terms, executor=executor, progress=quiet
    ) as simulation:
        return [report.digest for report in simulation.rounds(2)]

if __name__ == "__main__":
    there = run(OnRay(workers=2, init={"object_store_memory": 100 << 20}))
    assert not ray.is_initialized(), "it was ours to shut down"
    assert there == run(InProcess())
    print("the same")
"""


@pytest.mark.processes
def test_a_script_of_ones_own_starts_ray_and_ends_it(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.stdout.strip() == "the same", done.stderr
