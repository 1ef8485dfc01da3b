"""What a simulated round opens is the survivors' plaintext sum, whoever falls silent and when."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.errors import ConfigError, PolicyRefused, Step, TooFewSurvivors
from secagg.policy import Policy
from secagg_embed.simulation import (
    Cause,
    ChosenDropouts,
    OnRay,
    RandomDropouts,
    RoundReport,
    Simulation,
    TenantInfo,
    quiet,
)
from secagg_embed.terms import Terms

START: Mapping[str, Any] = {
    "head": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "steps": np.array(7),
    "tail": np.zeros(5, np.float64),
}
TERMS = Terms(clip=0.5, max_weight=20)


def train(tenant: TenantInfo, arrays: dict[str, Any], number: int) -> tuple[dict[str, Any], int]:
    """A walk within the clip; the same for the same tenant and round."""
    draw = tenant.rng(number)
    for name in ("head", "tail"):
        step = draw.uniform(-0.4, 0.4, arrays[name].shape)
        arrays[name] += step.astype(arrays[name].dtype)
    arrays["steps"] += 1
    return arrays, 1 + tenant.index


def simulate(tenants: int = 6, **options: Any) -> Simulation:
    settled = {"train": train, "start": START, "terms": TERMS, "check": True, "progress": quiet}
    return Simulation(tenants=tenants, **{**settled, **options})


def plain_mean(
    before: Mapping[str, Any], report: RoundReport, seed: int, of: int
) -> dict[str, np.ndarray[Any, Any]]:
    """The survivors' weighted mean, by floating-point arithmetic alone."""
    trained = []
    for name in report.survivors:
        info = TenantInfo(name, int(name[1:]), of, seed)
        trained.append(train(info, {k: np.array(v) for k, v in before.items()}, report.number))
    weights = [weight for _, weight in trained]
    return {
        key: np.average([after[key] for after, _ in trained], axis=0, weights=weights)
        for key in ("head", "tail")
    }


def one_level(report: RoundReport) -> float:
    plan = report.plan
    return plan.quantiser.scale * plan.max_weight * len(report.survivors) / report.total_weight


@pytest.mark.parametrize("scheme", ["masking", "ckks"])
def test_the_model_moves_by_the_survivors_mean_in_either_scheme(scheme: str) -> None:
    simulation = simulate(7, seed=3, terms=Terms(clip=0.5, max_weight=20, scheme=scheme))  # type: ignore[arg-type]
    for _ in range(2):
        before = simulation.arrays
        (report,) = simulation.rounds(1, dropouts={"t002": Step.MASKED_INPUT})
        assert report.survivors == ("t000", "t001", "t003", "t004", "t005", "t006")
        assert report.exact is True
        mean = plain_mean(before, report, seed=3, of=7)
        for name, expected in mean.items():
            assert np.abs(simulation.arrays[name] - expected).max() <= one_level(report)
        assert simulation.arrays["steps"] == 7, "integers are not averaged"


@settings(max_examples=20)
@given(
    seed=st.integers(0, 1 << 32),
    n=st.integers(4, 9),
    silent=st.dictionaries(st.integers(0, 8), st.sampled_from(Step), max_size=3),
)
def test_whoever_is_silent_the_sum_is_the_survivors_or_none(
    seed: int, n: int, silent: dict[int, Step]
) -> None:
    gone = {f"t{index:03}": step for index, step in silent.items() if index < n}
    simulation = simulate(n, seed=seed)
    (report,) = simulation.rounds(1, dropouts=gone, keep_going=True)
    if report.error is None:
        late = {name for name, step in gone.items() if step > Step.MASKED_INPUT}
        assert set(report.survivors) == (set(simulation.tenants) - gone.keys()) | late
        assert report.exact is True
        assert report.count(Cause.SILENT) == len(gone)
    else:
        assert isinstance(report.error, TooFewSurvivors)
        assert n - len(gone) < report.plan.least
        assert simulation.arrays == dict(START)


@pytest.mark.parametrize("step", list(Step))
def test_a_tenant_may_fall_silent_in_any_step(step: Step) -> None:
    (report,) = simulate(6).rounds(1, dropouts={"t004": step})
    assert report.exact is True
    assert ("t004" in report.survivors) == (step > Step.MASKED_INPUT)
    assert [(one.tenant, one.step, one.cause) for one in report.left] == [
        ("t004", step, Cause.SILENT)
    ]


def test_one_seed_is_one_run_and_another_is_another() -> None:
    def run(seed: int) -> list[tuple[str, tuple[str, ...]]]:
        reports = simulate(8, seed=seed).rounds(3, dropouts=0.2)
        return [(report.digest, report.survivors) for report in reports]

    assert run(5) == run(5)
    assert run(5) != run(6)


@pytest.mark.slow
def test_a_sparse_graph_above_256_tenants_opens_exactly() -> None:
    terms = Terms(clip=0.5, max_weight=300, max_colluders=26, dropout=0.02, suite="x25519")
    simulation = simulate(260, terms=terms)
    (report,) = simulation.rounds(1, dropouts=RandomDropouts(0.02, (Step.MASKED_INPUT,)))
    assert not report.plan.complete
    assert report.exact is True
    assert len(report.survivors) == 260 - 5


def test_a_sample_makes_up_each_round_and_the_seed_draws_it() -> None:
    simulation = simulate(12, seed=2)
    cohorts = [report.plan.cohort for report in simulation.rounds(3, sample=5)]
    assert [len(cohort) for cohort in cohorts] == [5, 5, 5]
    assert len(set(cohorts)) > 1
    assert cohorts == [r.plan.cohort for r in simulate(12, seed=2).rounds(3, sample=5)]
    with pytest.raises(ConfigError, match="a sample of 13 of 12"):
        simulation.rounds(1, sample=13)


def test_a_round_that_opens_nothing_is_raised_or_reported() -> None:
    half = ChosenDropouts({f"t{index:03}": Step.MASKED_INPUT for index in range(3)})
    simulation = simulate(6)
    with pytest.raises(TooFewSurvivors) as raised:
        next(simulation.rounds(1, dropouts=half))
    assert "t000 in masked_input: silent from masked_input on" in raised.value.__notes__[0]
    failed, opened = (
        next(simulation.rounds(1, dropouts=gone, keep_going=True)) for gone in (half, 0.0)
    )
    assert "NOTHING OPENED" in str(failed)
    assert isinstance(failed.error, TooFewSurvivors)
    assert opened.exact is True, "the next round runs as if nothing had been"


def test_what_a_tenant_keeps_is_there_in_its_next_round() -> None:
    seen: dict[str, list[int]] = {}

    def remembering(
        tenant: TenantInfo, arrays: dict[str, Any], number: int
    ) -> tuple[dict[str, Any], int]:
        tenant.memory.setdefault("rounds", []).append(number)
        seen[tenant.name] = tenant.memory["rounds"]
        return train(tenant, arrays, number)

    list(simulate(4, train=remembering).rounds(3))
    assert set(map(tuple, seen.values())) == {(1, 2, 3)}


def test_the_servers_step_is_yours() -> None:
    means: list[dict[str, Any]] = []

    def twice(before: Mapping[str, Any], mean: dict[str, Any], number: int) -> dict[str, Any]:
        means.append(mean)
        return {name: array + 2 * mean.get(name, 0) for name, array in before.items()}

    ours, theirs = simulate(5, apply=twice), simulate(5)
    next(ours.rounds(1))
    next(theirs.rounds(1))
    assert set(means[0]) == {"head", "tail"}
    moved = theirs.arrays["tail"] - START["tail"]
    assert np.allclose(ours.arrays["tail"] - START["tail"], 2 * moved, atol=1e-6)

    def smaller(before: Mapping[str, Any], mean: dict[str, Any], number: int) -> dict[str, Any]:
        return {"head": before["head"]}

    with pytest.raises(ConfigError, match="are not what it was given"):
        next(simulate(5, apply=smaller).rounds(1))


def test_everybodys_policy_has_the_last_word() -> None:
    def strict(digest: bytes) -> Policy:
        return Policy(digest, max_colluders=1, max_clip=0.1)

    simulation = simulate(5, policy=strict)
    (report,) = simulation.rounds(1, keep_going=True)
    assert isinstance(report.error, TooFewSurvivors)
    assert "max_clip" in report.left[0].reason
    assert PolicyRefused("max_clip", "").clause in str(report.left[-1])


def test_signatures_verified_by_each_alone_change_nothing_but_the_time() -> None:
    (once,) = simulate(8).rounds(1)
    (each,) = simulate(8, remember=False).rounds(1)
    assert once.digest == each.digest


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tenants": 2}, "at least 3"),
        ({"tenants": ["a", "b", "b"]}, "2 of them distinct"),
        ({"seed": -1}, "a seed is 0 or above"),
        ({"start": {"steps": np.array(1)}}, "no floating-point tensor"),
        ({"start": None}, "NoneType is no dict"),
        ({"tenants": "abc"}, "tenants is 'abc'"),
        ({"tenants": None}, "tenants is None"),
        ({"seed": "1"}, "give a whole number"),
        ({"terms": {"clip": 1.0}}, "terms is a dict; give Terms"),
        ({"train": None}, "train is a NoneType; give a function"),
        ({"apply": 5}, "apply is a int"),
        ({"executor": "ray"}, "executor is 'ray'"),
        ({"executor": OnRay}, "OnRay"),
    ],
)
def test_what_cannot_work_is_refused_at_once(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        simulate(**options)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dropouts": "0.1"}, "dropouts are '0.1'"),
        ({"dropouts": None}, "dropouts are None"),
        ({"dropouts": {"t000": "MASKED_INPUT"}}, "'MASKED_INPUT' is no step"),
        ({"sample": 4.0}, "sample is 4.0"),
        ({"count": "2"}, "count is '2'"),
    ],
)
def test_rounds_that_cannot_be_are_refused_before_the_first(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        simulate().rounds(**{"count": 1, **given})


def test_a_servers_step_that_diverges_is_named() -> None:
    def apply(arrays: Any, mean: Any, number: int) -> dict[str, Any]:
        return {**arrays, "head": arrays["head"] * np.nan}

    with pytest.raises(ConfigError, match="the model has NaN"):
        list(simulate(apply=apply).rounds(2))


def test_a_servers_step_that_returns_nothing_is_told_what_to_return() -> None:
    with pytest.raises(ConfigError, match="apply returned a NoneType"):
        list(simulate(apply=lambda arrays, mean, number: None).rounds(1))


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_a_fraction_of_dropouts_is_one(fraction: float) -> None:
    with pytest.raises(ConfigError, match="from 0 to 1"):
        simulate().rounds(1, dropouts=fraction)


def test_pytorch_tensors_are_taken_and_given_back() -> None:
    torch = pytest.importorskip("torch")

    def train_tensors(
        tenant: TenantInfo, tensors: dict[str, Any], number: int
    ) -> tuple[dict[str, Any], int]:
        tensors["w"] += 0.1
        return tensors, 2

    def halved(before: Mapping[str, Any], mean: dict[str, Any], number: int) -> dict[str, Any]:
        return {"w": before["w"] + torch.from_numpy(mean["w"]) / 2, "steps": before["steps"]}

    start = {"w": torch.zeros(4, dtype=torch.bfloat16), "steps": torch.tensor(3)}
    for apply, expected in ((None, 0.1), (halved, 0.05)):
        simulation = simulate(4, train=train_tensors, start=start, apply=apply)
        (report,) = simulation.rounds(1)
        moved = simulation.arrays["w"]
        assert report.exact is True
        assert moved.dtype == torch.bfloat16
        assert torch.allclose(moved.float(), torch.full((4,), expected), atol=1e-3)
        assert start["w"].sum() == 0
        assert simulation.arrays["steps"] == 3


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_error_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'secagg\[ray\]'"):
        next(simulate(executor=OnRay(workers=2)).rounds(1))
