"""Whatever is lost, in whichever exchange: the sum of those who are left, or a visible failure."""

import numpy as np
import pytest
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secagg.errors import RoundAborted, TooFewSurvivors
from secagg_embed.flower import Terms
from secagg_embed.flower.records import RECORD
from tests.stacks.flower.local import (
    MODEL,
    NAMES,
    NODES,
    Fault,
    Federation,
    arrays_of,
    client_app,
    examples,
    updated,
)

# The letters to a node in the first round: hello, and the six exchanges.
HELLO, OFFER, TRAIN, UNMASK = 0, 1, 4, 6
FAULTS: tuple[Fault, ...] = ("lost", "reply lost", "crash", "reply crash", "down")
COMES_BACK = ("crash", "reply crash")


def mean_of(names: tuple[str, ...], server_round: int = 1) -> dict[str, np.ndarray]:
    updates = [updated(NODES[name], arrays_of(MODEL), server_round) for name in names]
    weights = [examples(NODES[name]) for name in names]
    return {
        key: np.average([one[key].numpy() for one in updates], axis=0, weights=weights)
        for key in MODEL
        if MODEL[key].dtype.kind == "f"
    }


def is_mean_of(arrays: ArrayRecord, names: tuple[str, ...], server_round: int = 1) -> bool:
    expected = mean_of(names, server_round)
    return all(np.allclose(arrays[key].numpy(), expected[key], atol=5e-4) for key in expected)


def without(name: str) -> tuple[str, ...]:
    return tuple(other for other in NAMES if other != name)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("letter", range(HELLO, UNMASK + 1))
def test_one_fault_costs_at_most_its_tenant(
    federation: Federation, letter: int, fault: Fault
) -> None:
    """An app that crashes is asked again; who was in when the survivors were agreed stays in."""
    grid = federation.grid({("bob", letter): fault})
    strategy = federation.strategy(FedAvg(fraction_evaluate=0.0), grid)
    result = strategy.start(grid, arrays_of(MODEL), num_rounds=1)
    stays = fault in COMES_BACK or letter > TRAIN
    assert is_mean_of(result.arrays, NAMES if stays else without("bob"))


@pytest.mark.parametrize("letter", range(HELLO, UNMASK + 1))
def test_two_dropouts_of_five_end_the_run_visibly(federation: Federation, letter: int) -> None:
    """Three that are left from the start are refused by their own policies: one may collude."""
    grid = federation.grid({("bob", letter): "down", ("eve", letter): "lost"})
    strategy = federation.strategy(FedAvg(), grid)
    with pytest.raises(TooFewSurvivors):
        strategy.start(grid, arrays_of(MODEL), num_rounds=1)


def test_all_nodes_down_is_a_visible_failure(federation: Federation) -> None:
    grid = federation.grid({(name, TRAIN): "down" for name in NAMES})
    with pytest.raises(TooFewSurvivors, match="0 participants are left"):
        federation.strategy(FedAvg(), grid).start(grid, arrays_of(MODEL), num_rounds=2)


def test_rounds_may_fail_where_that_is_asked_for_and_the_model_stays(
    federation: Federation,
) -> None:
    grid = federation.grid({("bob", TRAIN): "down", ("eve", TRAIN): "down"})
    strategy = federation.strategy(FedAvg(), grid, max_failed_rounds=1)
    result = strategy.start(grid, arrays_of(MODEL), num_rounds=2)
    assert list(result.train_metrics_clientapp) == [2]
    assert is_mean_of(result.arrays, NAMES, server_round=2)  # from the first model


def test_failed_rounds_count_only_in_a_row(federation: Federation) -> None:
    third = TRAIN + (UNMASK - HELLO) + (TRAIN - HELLO)  # a round cut short, and a whole one
    faults: dict[tuple[str, int], Fault] = {
        (name, nth): "down" for name in ("bob", "eve") for nth in (TRAIN, third)
    }
    grid = federation.grid(faults)
    strategy = federation.strategy(FedAvg(fraction_evaluate=0.0), grid, max_failed_rounds=1)
    result = strategy.start(grid, arrays_of(MODEL), num_rounds=3)
    assert list(result.train_metrics_clientapp) == [2]


def test_more_failed_rounds_in_a_row_than_may_be_end_the_run(federation: Federation) -> None:
    faults = {(name, nth): "down" for name in ("bob", "eve") for nth in range(TRAIN, 30)}
    grid = federation.grid(faults)
    strategy = federation.strategy(FedAvg(), grid, max_failed_rounds=1)
    with pytest.raises(RoundAborted):
        strategy.start(grid, arrays_of(MODEL), num_rounds=5)


@pytest.mark.parametrize(("carried", "exchanges"), [(True, 1 + 6 + 5 + 5), (False, 1 + 3 * 6 + 1)])
def test_a_round_after_an_evaluation_costs_five_exchanges_of_its_own(
    federation: Federation, carried: bool, exchanges: int
) -> None:
    """Hello once; the offer and the ending before it ride along with the evaluation, or else the
    ending with the next offer, and the last one alone."""
    grid = federation.grid(app=client_app(on_evaluate=carried))
    federation.strategy(FedAvg(), grid).start(grid, arrays_of(MODEL), num_rounds=3)
    evaluations = 3
    assert grid.exchanges == exchanges + evaluations
    both = [one for one in grid.replied if len(one.content.get(RECORD, {}).get("heads", ())) == 2]
    assert len(both) == 2 * len(NAMES)  # the ending and the next offer, in one letter


def test_tenants_keep_nothing_of_a_round_that_is_over(federation: Federation) -> None:
    grid = federation.grid({("bob", UNMASK): "lost"})
    federation.strategy(FedAvg(), grid).start(grid, arrays_of(MODEL), num_rounds=1)
    assert not any(federation.home(name).rounds().contexts() for name in NAMES)


letters = st.integers(OFFER, 14)
schedules = st.dictionaries(
    st.tuples(st.sampled_from(NAMES), letters), st.sampled_from(FAULTS), max_size=5
)


@given(faults=schedules, scheme=st.sampled_from(["masking", "ckks"]))
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_any_schedule_of_faults_gives_the_mean_of_some_or_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory,
    faults: dict[tuple[str, int], Fault],
    scheme: str,
) -> None:
    federation = Federation.create(tmp_path_factory.mktemp("any"))
    grid = federation.grid(faults)
    strategy = federation.strategy(
        FedAvg(fraction_evaluate=0.0), grid, terms=Terms(clip=1.0, max_weight=50, scheme=scheme)
    )
    try:
        result = strategy.start(grid, arrays_of(MODEL), num_rounds=1)
    except RoundAborted:
        return
    assert any(is_mean_of(result.arrays, names) for names in [NAMES, *map(without, NAMES)])
