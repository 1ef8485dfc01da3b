"""What comes out is what Flower's own strategies make of the plain updates, within quantisation."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    Result,
    Strategy,
)

from secagg import verify_transcript
from secagg_embed.flower import Terms
from secagg_embed.flower.records import RECORD, UPLOAD
from tests.stacks.flower.local import (
    MODEL,
    NAMES,
    NODES,
    Federation,
    arrays_of,
    client_app,
    examples,
)

INNER: dict[str, Callable[[], Strategy]] = {
    "FedAvg": FedAvg,
    "FedAvgM": lambda: FedAvgM(server_momentum=0.5, server_learning_rate=0.8),
    "FedProx": lambda: FedProx(proximal_mu=0.1),
    "FedAdam": lambda: FedAdam(eta=0.05, tau=0.1),
    "FedYogi": lambda: FedYogi(eta=0.05, tau=0.1),
    "FedAdagrad": lambda: FedAdagrad(eta=0.05, tau=0.1),
}
ROUNDS = 3


def plain(federation: Federation, inner: Strategy) -> Result:
    grid = federation.grid(app=client_app(mods=()))
    return inner.start(grid, arrays_of(MODEL), num_rounds=ROUNDS)


def largest_gap(ours: ArrayRecord, theirs: ArrayRecord) -> float:
    return max(
        float(np.abs(ours[name].numpy() - theirs[name].numpy()).max())
        for name in MODEL
        if MODEL[name].dtype.kind == "f"
    )


@pytest.mark.parametrize("scheme", ["masking", "ckks"])
@pytest.mark.parametrize("name", INNER)
def test_the_model_is_that_of_the_plain_strategy(
    federation: Federation, name: str, scheme: str
) -> None:
    grid = federation.grid()
    terms = Terms(clip=1.0, max_weight=50, value_bits=24, scheme=scheme)
    strategy = federation.strategy(INNER[name](), grid, terms=terms)
    ours = strategy.start(grid, arrays_of(MODEL), num_rounds=ROUNDS)
    theirs = plain(federation, INNER[name]())
    assert largest_gap(ours.arrays, theirs.arrays) < 2e-5
    assert ours.evaluate_metrics_clientapp == theirs.evaluate_metrics_clientapp


def test_arrays_keep_order_dtype_and_shape_and_integers_stay_as_they_were(
    federation: Federation,
) -> None:
    grid = federation.grid()
    result = federation.strategy(FedAdam(), grid).start(grid, arrays_of(MODEL), num_rounds=2)
    assert list(result.arrays) == list(MODEL)
    for name, before in MODEL.items():
        after = result.arrays[name].numpy()
        assert (after.dtype, after.shape) == (before.dtype, before.shape)
    assert result.arrays["norm.num_batches_tracked"].numpy() == 41


def test_metrics_come_out_as_their_weighted_mean_and_no_others_come_out(
    federation: Federation,
) -> None:
    grid = federation.grid()
    strategy = federation.strategy(FedAvg(), grid, metrics={"train_loss": 10.0})
    ours = strategy.start(grid, arrays_of(MODEL), num_rounds=1)
    theirs = plain(federation, FedAvg())
    assert ours.train_metrics_clientapp[1]["train_loss"] == pytest.approx(
        theirs.train_metrics_clientapp[1]["train_loss"], abs=0.005
    )
    without = federation.strategy(FedAvg(), grid).start(grid, arrays_of(MODEL), num_rounds=1)
    assert dict(without.train_metrics_clientapp[1]) == {}


def test_an_inner_strategy_sees_nothing_of_ours(federation: Federation) -> None:
    seen: list[RecordDict] = []

    def train_metrics(contents: list[RecordDict], weighted_by: str) -> MetricRecord:
        seen.extend(contents)
        return MetricRecord({"weight": contents[0]["metrics"][weighted_by]})

    def evaluate_metrics(contents: list[RecordDict], weighted_by: str) -> MetricRecord:
        seen.extend(contents)
        return MetricRecord()

    grid = federation.grid()
    inner = FedAvg(train_metrics_aggr_fn=train_metrics, evaluate_metrics_aggr_fn=evaluate_metrics)
    result = federation.strategy(inner, grid).start(grid, arrays_of(MODEL), num_rounds=2)
    assert len(seen) == 2 * (1 + len(NAMES))  # one average, and each tenant's evaluation
    assert not any(RECORD in content or UPLOAD in content for content in seen)
    assert result.train_metrics_clientapp[2] == {"weight": sum(map(examples, NODES.values()))}


def test_a_transcript_proves_over_whom_each_round_opened(
    federation: Federation, tmp_path: Path
) -> None:
    grid = federation.grid({("eve", 2): "down"})
    strategy = federation.strategy(FedAvg(), grid, transcripts=tmp_path / "kept")
    strategy.start(grid, arrays_of(MODEL), num_rounds=2)
    files = sorted((tmp_path / "kept").iterdir())
    assert len(files) == 2
    assert files[-1].read_bytes() == strategy.transcript
    roster = federation.home("ada").roster()
    survivors = [verify_transcript(file.read_bytes(), roster).survivors for file in files]
    assert survivors == [NAMES[:4], NAMES]


def test_progress_stands_in_flowers_own_log(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    grid = federation.grid({("eve", 4): "down"})
    federation.strategy(FedAvg(), grid).start(grid, arrays_of(MODEL), num_rounds=1)
    lines = [line.partition(" in ")[0] for line in caplog.messages if "/6 " in line]
    assert lines == [
        "secagg: 1/6 advertise_keys: 5 of 5 tenants",
        "secagg: 2/6 share_keys: 5 of 5 tenants",
        "secagg: 3/6 acknowledge: 5 of 5 tenants",
        "secagg: 4/6 masked_input: 4 of 5 tenants",
        "secagg: 5/6 consistency_check: 4 of 4 tenants",
        "secagg: 6/6 unmask: 4 of 4 tenants",
    ]
    assert any("over 5 tenants, masking" in line for line in caplog.messages)
    assert "secagg: opened the sum of 4 tenants" in caplog.messages
