"""Real NVFLARE: a server and five sites as processes, mTLS between them, no code in the jobs.

Every site has its own tenant's folder, the site-owned guard, and no right for jobs to bring code.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from secagg_embed.folder import make_tenants
from tests.stacks.nvflare.deployment import jobs
from tests.stacks.nvflare.deployment.federation import (
    Federation,
    JobEnd,
    wait_for,
)
from tests.stacks.nvflare.deployment.page import blocks
from tests.stacks.nvflare.deployment.training import (
    FOLDER,
    HANGS,
    LAYERS,
    MAX_WEIGHT,
    SCALE,
    Leaks,
    weight_of,
)

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parents[4]
SITES = tuple(f"site-{number}" for number in range(1, 6))
VICTIM = "site-3"
ALLOWED = ("secagg_embed.nvflare.", "tests.stacks.nvflare.deployment.")
(LAYER,) = LAYERS


def tenant_of(site: str) -> str:
    return site.replace("site", "bank")


@dataclass(frozen=True)
class Running:
    federation: Federation
    root: Path
    roster: Path

    def own(self, site: str) -> Path:
        """What only this site's training code reads and writes."""
        return self.root / "drift" / site


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("nvflare")
    tenants = make_tenants(root / "tenants", tuple(map(tenant_of, SITES)))
    roster = root / "roster.bin"
    shutil.copy(tenants[tenant_of(SITES[0])] / "roster.bin", roster)
    environment = {"server": {"PYTHONPATH": str(ROOT)}}
    for site in SITES:
        own = root / "drift" / site
        own.mkdir(parents=True)
        environment[site] = {
            "PYTHONPATH": str(ROOT),
            "SECAGG_FOLDER": str(tenants[tenant_of(site)]),
            FOLDER: str(own),
        }
    environment[VICTIM][HANGS] = "1"
    federation = Federation(root / "federation", SITES, environment, ALLOWED)
    federation.provision()
    for site in SITES:
        guard(federation, site)
    with federation:
        yield Running(federation, root, roster)


def guard(federation: Federation, site: str) -> None:
    """What the page has a site's administrator write."""
    privacy, authorization = map(json.loads, blocks("json"))
    federation.local(site, "privacy.json", privacy)
    federation.local(site, "authorization.json", authorization)


def test_a_job_that_asks_for_weights_in_the_clear_is_refused_before_anything_is_trained(
    running: Running,
) -> None:
    end = running.federation.run(jobs.plain(running.root / "jobs"))
    assert end.status == "FINISHED:EXECUTION_EXCEPTION"
    assert "TASK_DATA_FILTER_ERROR" in end.log
    # The first refusal ends the job, so not every site has been asked.
    logs = [running.federation.site_log(site, end.job_id) for site in SITES]
    assert any("asks for an update in the clear" in log for log in logs)
    assert not any((running.own(site) / "training-0").exists() for site in SITES)


def test_an_executor_that_returns_weights_is_refused_by_the_sites_own_filter(
    running: Running,
) -> None:
    job = jobs.protected(running.root / "jobs", running.roster, Leaks())
    end = running.federation.run(job)
    assert end.status == "FINISHED:EXECUTION_EXCEPTION"
    assert "the site answered TASK_RESULT_FILTER_ERROR" in end.log
    for site in SITES:
        assert (running.own(site) / "leaks").exists()
        assert "which is not protected" in running.federation.site_log(site, end.job_id)


def test_a_job_that_brings_code_is_refused_where_jobs_may_not(running: Running) -> None:
    end = running.federation.run(jobs.with_code(running.root / "jobs", running.roster))
    assert end.status == "FINISHED:FAILED_TO_RUN"
    assert {f"{site}: NVFLARE_ERROR: BYOC not permitted" for site in SITES} <= set(end.deployed)
    assert not any((running.own(site) / "code-ran").exists() for site in SITES)


def test_ckks_opens_the_exact_sum_as_well(running: Running) -> None:
    job = jobs.protected(running.root / "jobs", running.roster, scheme="ckks", rounds=1)
    end = running.federation.run(job)
    assert end.status == "FINISHED:COMPLETED", end.log
    require_exact(running, end, [list(SITES)])


@pytest.fixture(scope="module")
def killed(running: Running) -> JobEnd:
    """Three rounds; a site is killed while it trains in the second, after all dealt shares."""
    federation = running.federation
    job = jobs.protected(running.root / "jobs", running.roster, patience_s=8)
    job_id = federation.submit(job)
    wait_for(running.own(VICTIM) / "training-1", 120.0)
    federation.kill(VICTIM)
    return federation.wait(job_id, 240.0)


def test_the_sum_over_the_survivors_is_exact_though_a_site_is_killed_while_it_trains(
    running: Running, killed: JobEnd
) -> None:
    assert killed.status == "FINISHED:COMPLETED", killed.log
    rest = [site for site in SITES if site != VICTIM]
    require_exact(running, killed, [list(SITES), rest, rest])


def test_the_killed_site_contributed_nothing_more(running: Running, killed: JobEnd) -> None:
    assert (running.own(VICTIM) / "training-1").exists()
    assert not (running.own(VICTIM) / "levels-1.npz").exists()


def require_exact(running: Running, end: JobEnd, survivors: list[list[str]]) -> None:
    """In each round the sum, in levels, is what the survivors recorded in their own folders."""
    models = [before(running, names, number) for number, names in enumerate(survivors)]
    models.append(np.load(end.run / "models" / "server.npy").astype(np.float64))
    for number, names in enumerate(survivors):
        weights = sum(map(weight_of, names))
        opened = (models[number + 1] - models[number]) * weights / MAX_WEIGHT / SCALE
        assert np.abs(opened - np.rint(opened)).max() < 0.2
        contributed = sum(kept(running, site, number) for site in names)
        np.testing.assert_array_equal(np.rint(opened), contributed)
    told = re.findall(r"round \d: the mean over (bank-[^\n]*)", end.log)
    assert told == [", ".join(map(tenant_of, names)) for names in survivors]


def before(running: Running, survivors: list[str], number: int) -> np.ndarray:
    """The model that every survivor was sent in this round."""
    sent = [np.load(running.own(site) / f"before-{number}.npz")[LAYER] for site in survivors]
    for other in sent[1:]:
        np.testing.assert_array_equal(sent[0], other)
    return sent[0].astype(np.float64)


def kept(running: Running, site: str, number: int) -> np.ndarray:
    """The levels that a site recorded in its own folder."""
    return np.load(running.own(site) / f"levels-{number}.npz")[LAYER]
