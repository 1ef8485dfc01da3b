"""Rounds over a real Flower deployment: SuperLink, SuperNodes, TLS and keys as documented.

All processes are real and the sums are exact: docs/flower.md says what is shown here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.stacks.flower.deployment.deployment import Deployment, enrol, write_app
from tests.stacks.flower.deployment.exact import deltas

pytestmark = pytest.mark.processes

HERE = Path(__file__).resolve().parent
TENANTS = tuple(deltas.WEIGHTS)
LONG_S = 480


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One deployment for all: the test that kills a node comes last."""
    root = tmp_path_factory.mktemp("federation")
    enrol(root, TENANTS)
    with Deployment(root, TENANTS) as deployment:
        yield deployment


def app(flower: Deployment, name: str, *, client: str = "app", server: str = "app") -> Path:
    return write_app(
        flower.root / name, HERE / "exact",
        client=f"client:{client}", server=f"server:{server}",
        roster=str(flower.root / "approved" / "roster.bin"), out=str(flower.root / f"{name}.npz"),
        scheme="masking", rounds=2,
    )  # fmt: skip


def test_a_server_that_asks_for_plain_updates_gets_none(flower: Deployment) -> None:
    run = flower.start_run(app(flower, "plain_server", server="unprotected"))
    flower.wait(run, within_s=LONG_S)  # Flower's own strategy calls that a completed run
    assert "this tenant trains under secure aggregation alone" in flower.said(run)
    assert not any((flower.root / tenant / "training").exists() for tenant in TENANTS)
    assert not (flower.root / "plain_server.npz").exists()


def test_clients_without_the_mod_take_no_part_and_the_run_fails(flower: Deployment) -> None:
    run = flower.start_run(app(flower, "plain_client", client="unprotected"))
    assert flower.wait(run, within_s=LONG_S) == "finished:failed"
    assert "0 of the nodes that the strategy chose are tenants" in flower.said(run)
    assert not (flower.root / "plain_client.npz").exists()


def test_a_node_killed_while_it_trains_leaves_the_exact_sum_of_the_others(
    flower: Deployment,
) -> None:
    victim, survivors = TENANTS[-1], TENANTS[:-1]
    training = flower.root / victim / "training"
    training.unlink(missing_ok=True)
    (flower.root / victim / "hold").touch()
    run = flower.start_run(app(flower, "protected"))
    flower.until(training.exists, victim, within_s=LONG_S)
    flower.kill(victim)
    assert flower.wait(run, within_s=LONG_S) == "finished:completed"
    expected = deltas.opened([(1, survivors), (2, survivors)])
    with np.load(flower.root / "protected.npz") as found:
        assert set(found.files) == set(expected)
        for name, values in expected.items():
            assert np.array_equal(found[name].astype(np.float64), values)
    assert f"opened the sum of {len(survivors)} tenants" in flower.said(run)
