"""The jobs of docs/examples/nvflare run in NVFLARE's simulator, as the page says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from secagg_embed.folder import make_tenants

pytestmark = pytest.mark.processes

EXAMPLES = Path(__file__).resolve().parents[4] / "docs" / "examples" / "nvflare"
SITES = tuple(f"site-{number}" for number in range(1, 5))
TRUTH = (1.5, -2.0, 0.5, 3.0)


@pytest.fixture
def roster(tmp_path: Path) -> Path:
    tenants = make_tenants(tmp_path / "tenants", SITES)
    shutil.copy(tenants[SITES[0]] / "roster.bin", tmp_path / "roster.bin")
    return tmp_path / "roster.bin"


def run(roster: Path, script: str, *arguments: str) -> str:
    """A script of the page, with the tenants' folders named as on the page; its log."""
    folder = roster.parent
    environment = {
        **os.environ,
        "HOME": str(folder),
        "SECAGG_FOLDER": str(folder / "tenants" / "{site}"),
    }
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), "--roster", str(roster), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )
    log = done.stdout + done.stderr
    assert done.returncode == 0, log[-4000:]
    return log


def test_a_script_of_the_client_api_trains_unchanged(roster: Path) -> None:
    log = run(roster, "job.py", "simulation", "--simulate")
    assert "init() more than once" not in log  # the script runs once at each site
    assert log.count("the mean over site-1, site-2, site-3, site-4") == 3
    (model,) = roster.parent.rglob("server.npy")
    assert np.abs(np.load(model) - TRUTH).max() < 0.1


def test_the_collab_job_trains(roster: Path) -> None:
    log = run(roster, "collab_job.py", "--folder", "simulation")
    means = re.findall(r"the mean over all sites: (\[.*\])", log)
    assert len(means) == 3
    assert np.abs(np.array(eval(means[-1])) - TRUTH).max() < 0.1
