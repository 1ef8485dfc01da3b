"""The job, before (`--plain`) and after.

python job.py FOLDER --roster hub/roster.bin                # writes the job's folder, to submit
python job.py FOLDER --roster hub/roster.bin --simulate     # runs it here, in FOLDER
"""

import argparse
from pathlib import Path

from nvflare.app_common.executors.client_api_executor import ClientAPIExecutor
from nvflare.app_common.np.np_model_persistor import NPModelPersistor
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.job_config.api import FedJob

from secagg_embed.nvflare import SecureExecutor, SecureFedAvgController

TRAIN = Path(__file__).resolve().parent / "train.py"


def training() -> ClientAPIExecutor:
    """What the sites run, before and after: the script that the job brings along."""
    return ClientAPIExecutor(execution_mode="in_process", task_script_path=TRAIN.name)


def plain_job(sites: int = 4, rounds: int = 3) -> FedJob:
    """Before: the server sees every site's weights."""
    job = FedJob(name="plain", min_clients=sites)
    job.to_server(NPModelPersistor(model=[0.0] * 4), id="persistor")
    job.to_server(FedAvg(num_clients=sites, num_rounds=rounds))
    job.to_clients(training(), tasks=["train"])
    job.to_clients(str(TRAIN))
    return job


def protected_job(roster: str, sites: int = 4, rounds: int = 3, scheme: str = "masking") -> FedJob:
    """After: it sees their mean."""
    job = FedJob(name="protected", min_clients=sites)
    job.to_server(NPModelPersistor(model=[0.0] * 4), id="persistor")
    controller = SecureFedAvgController(
        roster=roster,
        terms={"clip": 4.0, "max_weight": 1000, "scheme": scheme},
        num_rounds=rounds,
    )
    job.to_server(controller)
    job.to_server({"server": {"task_request_interval": 0.2}})
    job.to_clients(SecureExecutor(executor=training()), tasks=["train"])
    job.to_clients(str(TRAIN))
    return job


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The job of this page.")
    parser.add_argument("folder")
    parser.add_argument("--roster", help="the server's file with the tenants' public keys")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--simulate", action="store_true")
    given = parser.parse_args()
    chosen = plain_job() if given.plain else protected_job(given.roster)
    if given.simulate:
        chosen.simulator_run(given.folder, n_clients=4, threads=4)
    else:
        chosen.export_job(given.folder)
