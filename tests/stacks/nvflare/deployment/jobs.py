"""Jobs as their authors write them, exported to the folders that NVFLARE takes."""

from __future__ import annotations

import json
from pathlib import Path

from nvflare.apis.dxo import DataKind
from nvflare.apis.executor import Executor
from nvflare.app_common.np.np_model_persistor import NPModelPersistor
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.job_config.api import FedJob

from secagg_embed.nvflare import SecureExecutor, SecureFedAvgController
from tests.stacks.nvflare.deployment.training import (
    CLIP,
    MAX_WEIGHT,
    VALUE_BITS,
    Drift,
    first_model,
)

ROUNDS = 3
# How often a site asks for its next task: by default every 2 s, six times a round.
OFTEN = {"server": {"task_request_interval": 0.2}}
TERMS = {"clip": CLIP, "value_bits": VALUE_BITS, "max_weight": MAX_WEIGHT}


def protected(
    folder: Path,
    roster: Path,
    executor: Executor | None = None,
    scheme: str = "masking",
    rounds: int = ROUNDS,
    patience_s: float = 25,
) -> Path:
    """Ours; with `executor`, sites run that in place of the one that protects.

    The last of five sites has `patience_s` after the fourth.
    """
    job = FedJob(name="protected", min_clients=4)
    job.to_server(NPModelPersistor(model=first_model()), id="persistor")
    job.to_server(
        SecureFedAvgController(
            roster=str(roster),
            terms={**TERMS, "scheme": scheme},
            num_rounds=rounds,
            exchange_timeout=30,
            training_timeout=60,
            min_responses=4,
            wait_time_after_min_received=patience_s,
        )
    )
    job.to_server(OFTEN)
    job.to_clients(executor or SecureExecutor(executor=Drift()), tasks=["train"])
    return exported(job, folder)


def plain(folder: Path) -> Path:
    """NVFLARE's own, which asks every site for its weights."""
    job = FedJob(name="plain", min_clients=4)
    job.to_server(NPModelPersistor(model=first_model()), id="persistor")
    job.to_server(FedAvg(num_clients=5, num_rounds=1))
    job.to_clients(Drift(kind=DataKind.WEIGHTS), tasks=["train"])
    return exported(job, folder)


def exported(job: FedJob, folder: Path) -> Path:
    """The job's folder, without code in it: all parties have these packages installed."""
    job.set_app_packages(["secagg_embed", "tests"])
    job.export_job(str(folder))
    return folder / job.name


def with_code(folder: Path, roster: Path) -> Path:
    """Ours, with a component of the job's own code beside it."""
    job = protected(folder, roster)
    job = job.rename(folder / "with_code")
    custom = job / "app" / "custom"
    custom.mkdir()
    (custom / "brought.py").write_text(_BROUGHT, encoding="utf-8")
    for name in ("config_fed_client.json", "../../meta.json"):
        path = job / "app" / "config" / name
        content = json.loads(path.read_text(encoding="utf-8"))
        if "components" in content:
            content["components"].append({"id": "brought", "path": "brought.Brought"})
        else:
            content["name"] = "with_code"
        path.write_text(json.dumps(content), encoding="utf-8")
    return job


_BROUGHT = """
import os, pathlib
from nvflare.apis.fl_component import FLComponent

class Brought(FLComponent):
    def __init__(self):
        super().__init__()
        if "DRIFT_FOLDER" in os.environ:
            pathlib.Path(os.environ["DRIFT_FOLDER"], "code-ran").touch()
"""
