"""Controller and Executor: whole jobs on NVFLARE's task manager and client runners."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AppConstants
from nvflare.fuel.utils import fobs

from secagg.errors import ConfigError
from secagg_embed.folder import make_tenants
from secagg_embed.nvflare import SecureExecutor, SecureFedAvgController
from secagg_embed.nvflare.shareables import KEY
from secagg_embed.wire import Deliver, Hello, Offer, decode_request
from tests.stacks.nvflare.local import LocalJob, LocalSite, workspace
from tests.stacks.nvflare.tenants import (
    STEP,
    Federation,
    Trainer,
    change,
    first_model,
    mean_change,
    require_mean,
    steps_of,
    trained,
    weight_diff,
    weights,
)

SILENCES = [Offer.__name__, "KeyDirectory", "ShareDelivery", "AgreedView", "SurvivorSet"]


# Once so many have answered, the others are given up: no test waits for a deadline. What they have
# until then is for a busy machine, where the last of five threads comes late.
WITHOUT_ONE = {
    "exchange_timeout": 600,
    "training_timeout": 600,
    "min_responses": 4,
    "wait_time_after_min_received": 2,
}
WITHOUT_TWO = {**WITHOUT_ONE, "min_responses": 3, "wait_time_after_min_received": 3}


class Server(SecureFedAvgController):
    """The workflow as a job runs it; keeps the model that it would save."""

    saved: dict[str, Any] | None = None

    def save_model(self, model: FLModel) -> None:
        super().save_model(model)
        self.saved = model.params

    def get_run_dir(self) -> str:
        return self.engine.get_workspace().root_dir


def job_of(
    federation: Federation,
    trainer: Callable[[], Any] = Trainer,
    *,
    executors: dict[str, Any] | None = None,
    **settings: Any,
) -> LocalJob:
    server = Server(
        federation.roster,
        settings.pop("terms", federation.terms),
        model=first_model(),
        persistor_id="none",
        **({"num_rounds": 1, "exchange_timeout": 30, "training_timeout": 30} | settings),
    )
    made = executors or {}
    sites = [
        LocalSite(
            name,
            made.get(name) or SecureExecutor(executor=trainer()),
            workspace(federation.root, name),
        )
        for name in federation.names
    ]
    return LocalJob(server, sites, workspace(federation.root, "server"))


def kind_of(task: Shareable) -> str:
    """The record that a task's last request carries: `Hello`, `Offer`, or a message's name."""
    ((requests,),) = [task[KEY]["requests"].values()]  # of this site alone
    request = decode_request(requests[-1])
    if isinstance(request, Deliver):
        return bytes(request.message[5 : 5 + int.from_bytes(request.message[1:5])]).decode()
    return type(request).__name__


def succeeded(job: LocalJob) -> dict[str, Any]:
    job.run()
    assert job.panics == []
    assert job.controller.saved is not None
    return job.controller.saved


def failed(job: LocalJob) -> str:
    job.run()
    assert job.controller.saved is None
    assert len(job.panics) == 1
    return job.panics[0]


# ---------------------------------------------------------------------------- what is computed


@pytest.mark.parametrize("scheme", ["masking", "ckks"])
@pytest.mark.parametrize("returns", [weights, weight_diff])
def test_the_model_is_the_weighted_mean(federation: Federation, scheme: Any, returns: Any) -> None:
    terms = dataclasses.replace(federation.terms, scheme=scheme)
    job = job_of(federation, lambda: Trainer(returns), terms=terms)
    require_mean(succeeded(job), first_model(), list(federation.names))


def test_every_round_goes_on_from_the_last(federation: Federation) -> None:
    after = succeeded(job_of(federation, num_rounds=3))
    expected = first_model()
    for number in range(3):
        for name, drawn in mean_change(list(federation.names), number).items():
            expected[name] = expected[name] + drawn
    assert all(np.abs(after[name] - expected[name]).max() < 18 * STEP for name in change(""))


def test_a_function_trains_as_well_as_an_executor(federation: Federation) -> None:
    executors = {
        name: SecureExecutor(train=lambda w, name=name: (trained(name, w), steps_of(name)))
        for name in federation.names
    }
    job = job_of(federation, executors=executors)
    require_mean(succeeded(job), first_model(), list(federation.names))


def test_training_in_place_is_no_mistake(federation: Federation) -> None:
    def in_place(after: Any, before: Any, steps: int) -> Shareable:
        for name in change(""):
            before[name][...] = after[name]
        return weights(before, before, steps)

    job = job_of(federation, lambda: Trainer(in_place))
    require_mean(succeeded(job), first_model(), list(federation.names))


def test_the_training_code_sees_what_fedavg_sends(federation: Federation) -> None:
    trainer = Trainer()
    job = job_of(federation, executors={"site-1": SecureExecutor(executor=trainer)}, num_rounds=2)
    succeeded(job)
    assert [task.get_header(AppConstants.CURRENT_ROUND) for task in trainer.given] == [0, 1]
    assert {task.get_header(AppConstants.NUM_ROUNDS) for task in trainer.given} == {2}
    assert all(KEY not in task for task in trainer.given)
    assert EventType.BEFORE_TASK_EXECUTION in trainer.events


def test_the_training_code_is_told_the_jobs_settings(federation: Federation) -> None:
    trainer, told = Trainer(), []
    executors = {"site-1": SecureExecutor(executor=trainer)}

    def train(weights: dict[str, Any], **settings: Any) -> Any:
        told.append(settings)
        return trained("site-2", weights), steps_of("site-2")

    executors["site-2"] = SecureExecutor(train=train)
    succeeded(job_of(federation, executors=executors, settings={"rate": 0.1, "mu": 2}))
    (task,) = trainer.given
    assert from_shareable(task).meta == {"rate": 0.1, "mu": 2}
    assert told == [{"rate": 0.1, "mu": 2}]


def test_settings_that_are_not_json_are_refused(federation: Federation) -> None:
    job = job_of(federation, settings={"rate": np.float32(0.1)})
    assert "settings for the sites' training have to be JSON" in failed(job)


def test_the_model_is_saved_where_there_is_no_persistor(federation: Federation) -> None:
    job = job_of(federation)
    after = succeeded(job)
    kept = fobs.loadf(str(Path(job.space.root_dir) / "FL_global_model.fobs"))
    assert np.array_equal(kept.params["dense.bias"], after["dense.bias"])


# ---------------------------------------------------------------------------- what leaves a site


def test_nothing_leaves_but_what_is_protected(federation: Federation) -> None:
    job = job_of(federation)
    succeeded(job)
    for site in job.sites:
        raw = b"".join(fobs.dumps(sent) for sent in site.sent)
        after = trained(site.client.name, first_model())
        for name, drawn in change(site.client.name).items():
            assert after[name].tobytes()[:8] not in raw
            assert drawn.tobytes()[:8] not in raw
        assert b"accuracy" not in raw
        assert all(set(sent) <= {KEY, "__headers__"} for sent in site.sent)


def test_what_the_training_raises_stays_at_the_site(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(after: Any, before: Any, steps: int) -> Shareable:
        raise ValueError("the patient is called Anna")

    job = job_of(federation, executors={"site-2": SecureExecutor(executor=Trainer(broken))})
    require_mean(succeeded(job), first_model(), [n for n in federation.names if n != "site-2"])
    raw = b"".join(fobs.dumps(sent) for sent in job.sites[1].sent)
    assert b"ValueError" not in raw
    assert b"Anna" not in raw
    assert "Anna" in caplog.text


def test_a_task_of_another_workflow_is_not_done(federation: Federation) -> None:
    trainer = Trainer()
    job = job_of(federation, executors={"site-1": SecureExecutor(executor=trainer)})
    plain = DXO(DataKind.WEIGHTS, first_model()).to_shareable()
    result = job.sites[0].do("train", "1", plain, job.engine.new_context())
    assert result.get_return_code() == ReturnCode.BAD_TASK_DATA
    assert trainer.given == []
    assert set(result) == {"__headers__"}


# ---------------------------------------------------------------------------- who falls silent


@pytest.mark.parametrize("after", SILENCES)
def test_a_site_that_falls_silent_costs_itself_alone(federation: Federation, after: str) -> None:
    """It is asked, and never answers: in each exchange but the last, where its answer is spare."""
    job = job_of(federation, **WITHOUT_ONE)
    silent: set[str] = set()

    def deaf(site: LocalSite, task: Shareable) -> bool:
        if site.client.name == "site-3" and kind_of(task) == after:
            silent.add(site.client.name)
        return site.client.name in silent

    job.deaf = deaf
    left = [name for name in federation.names if name != "site-3"]
    counted = list(federation.names) if after == "SurvivorSet" else left
    require_mean(succeeded(job), first_model(), counted)
    assert silent


def test_a_site_that_is_gone_before_the_end_is_counted(federation: Federation) -> None:
    job = job_of(federation, **WITHOUT_ONE)
    job.deaf = lambda site, task: site.client.name == "site-3" and kind_of(task) == "Quorum"
    require_mean(succeeded(job), first_model(), list(federation.names))


def test_a_site_that_comes_later_takes_part_in_the_next_round(federation: Federation) -> None:
    late = Trainer()
    executors = {"site-3": SecureExecutor(executor=late)}
    job = job_of(federation, executors=executors, num_rounds=2, exchange_timeout=10)
    offered = threading.Event()

    def deaf(site: LocalSite, task: Shareable) -> bool:
        if site.client.name == "site-3":
            return not offered.is_set()
        if kind_of(task) == "Offer":
            offered.set()
            return site.client.name == "site-1" and not job.sites[2].sent  # the late one is heard
        return False

    job.deaf = deaf
    succeeded(job)
    assert [task.get_header(AppConstants.CURRENT_ROUND) for task in late.given] == [1]


def test_one_tenant_at_two_sites_is_one_tenant(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    tenants = federation.root / "tenants"
    (tenants / "site-2").rename(tenants / "away")
    (tenants / "site-2").symlink_to(tenants / "site-1")
    trainers = {name: Trainer() for name in ("site-1", "site-2")}
    executors = {name: SecureExecutor(executor=trainer) for name, trainer in trainers.items()}
    succeeded(job_of(federation, executors=executors))
    assert sorted(len(trainer.given) for trainer in trainers.values()) == [0, 1]
    assert "tenant 'site-1' is at site 'site-" in caplog.text


def test_a_site_of_another_federation_is_left_out(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    make_tenants(federation.root / "others", ("site-2", "site-9"))
    own = federation.root / "tenants" / "site-2" / "roster.bin"
    own.unlink()
    own.write_bytes((federation.root / "others" / "site-2" / "roster.bin").read_bytes())
    left = [name for name in federation.names if name != "site-2"]
    require_mean(succeeded(job_of(federation)), first_model(), left)
    assert "site site-2 takes no part: a node says that it is 'site-2'" in caplog.text


def test_too_few_sites_fail_the_job_and_say_why(federation: Federation) -> None:
    job = job_of(federation, **WITHOUT_TWO)
    job.deaf = lambda site, task: (
        site.client.name in ("site-1", "site-4") and kind_of(task) == "AgreedView"
    )
    reason = failed(job)
    assert "3 participants are left and the plan needs 4" in reason


def test_no_answer_at_all_is_no_success(federation: Federation) -> None:
    job = job_of(federation, exchange_timeout=1)
    job.deaf = lambda site, task: True
    assert "no site of this job is a tenant of the roster's: none answered" in failed(job)


def test_a_round_may_fail_where_the_job_says_so(federation: Federation) -> None:
    job = job_of(federation, **WITHOUT_TWO, num_rounds=2, max_failed_rounds=1)
    job.deaf = lambda site, task: (
        site.client.name in ("site-1", "site-4")
        and kind_of(task) == "AgreedView"
        and b'"current_round": 0' in task[KEY]["settings"]
    )
    require_mean(succeeded(job), first_model(), list(federation.names), 1)


def test_an_aborted_job_ends_at_once(federation: Federation) -> None:
    job = job_of(federation, exchange_timeout=600)

    def deaf(site: LocalSite, task: Shareable) -> bool:
        job.abort_signal.trigger(True)
        return True

    job.deaf = deaf
    job.run()
    assert job.controller.saved is None


# ---------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("returns", "text"),
    [
        (lambda a, b, n: weights({**a, "dense.bias": np.zeros(4, np.float32)}, b, n), "dense.bias"),
        (lambda a, b, n: weights({"dense.bias": a["dense.bias"]}, b, n), "dense.weight"),
        (lambda a, b, n: weights({**a, "extra": a["dense.bias"]}, b, n), "extra"),
        (lambda a, b, n: DXO(DataKind.METRICS, {"loss": 1.0}).to_shareable(), "METRICS"),
        (lambda a, b, n: make_reply(ReturnCode.TASK_ABORTED), "TASK_ABORTED"),
        (lambda a, b, n: Shareable({"weights": a}), "no DXO"),
        (lambda a, b, n: DXO(DataKind.WEIGHTS, a).to_shareable(), "NUM_STEPS_CURRENT_ROUND"),
        (lambda a, b, n: weights(a, b, 0), "NUM_STEPS_CURRENT_ROUND"),
        (lambda a, b, n: weights(a, b, float("nan")), "NUM_STEPS_CURRENT_ROUND"),
        (lambda a, b, n: weights(a, b, "12"), "NUM_STEPS_CURRENT_ROUND"),
        (lambda a, b, n: (a, None), "(weights by name, number of examples)"),
    ],
)
def test_what_cannot_be_averaged_is_named(
    federation: Federation, returns: Any, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    job = job_of(federation, executors={"site-2": SecureExecutor(executor=Trainer(returns))})
    left = [name for name in federation.names if name != "site-2"]
    require_mean(succeeded(job), first_model(), left)
    assert text in caplog.text


def test_another_model_than_the_plans_is_not_trained_on(federation: Federation) -> None:
    trainer = Trainer()
    job = job_of(federation, executors={"site-2": SecureExecutor(executor=trainer)})

    def swapped(site: LocalSite, task: Shareable) -> bool:
        if site.client.name == "site-2" and "DXO" in task:
            data = task["DXO"]["data"]
            task["DXO"] = {**task["DXO"], "data": {**data, "dense.bias": data["dense.bias"] * 2}}
        return False

    job.deaf = swapped
    left = [name for name in federation.names if name != "site-2"]
    require_mean(succeeded(job), first_model(), left)
    assert trainer.given == []


def test_one_site_cannot_be_told_to_train_otherwise(federation: Federation) -> None:
    """A rate of 0 for all but one, and the sum would be that one's update."""
    trainer = Trainer()
    executors = {"site-2": SecureExecutor(executor=trainer)}
    job = job_of(federation, executors=executors, settings={"rate": 0.1})

    def told(site: LocalSite, task: Shareable) -> bool:
        if site.client.name == "site-2":
            other = task[KEY]["settings"].replace(b"0.1", b"0.0")
            task[KEY] = {**task[KEY], "settings": other}
        return False

    job.deaf = told
    left = [name for name in federation.names if name != "site-2"]
    require_mean(succeeded(job), first_model(), left)
    assert trainer.given == []


def test_nothing_of_a_task_reaches_the_training_but_what_the_plan_names(
    federation: Federation,
) -> None:
    trainer = Trainer()
    job = job_of(federation, executors={"site-2": SecureExecutor(executor=trainer)})

    def whispered(site: LocalSite, task: Shareable) -> bool:
        task["rate"] = 0.0
        task.set_header("rate", 0.0)
        if "DXO" in task:
            task["DXO"] = {**task["DXO"], "meta": {"rate": 0.0}}
        return False

    job.deaf = whispered
    require_mean(succeeded(job), first_model(), list(federation.names))
    assert "rate" not in repr(trainer.given)


def test_an_update_without_a_model_is_not_given(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer()
    job = job_of(federation, executors={"site-2": SecureExecutor(executor=trainer)})

    def without(site: LocalSite, task: Shareable) -> bool:
        if site.client.name == "site-2":
            task.pop("DXO", None)
        return False

    job.deaf = without
    left = [name for name in federation.names if name != "site-2"]
    require_mean(succeeded(job), first_model(), left)
    assert trainer.given == []
    assert "sent no model with it" in caplog.text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"terms": {"clip": "1"}}, "clip is '1'"),
        ({"terms": {"klip": 1.0}}, "klip"),
        ({"num_rounds": "2"}, "num_rounds is '2'; give a number"),
        ({"exchange_timeout": "30"}, "exchange_timeout is '30'"),
        ({"min_responses": -1}, "min_responses is -1"),
        ({"settings": [0.1]}, "settings is a list"),
        ({"model": np.zeros(3)}, "model is a ndarray; give a dict"),
    ],
)
def test_what_cannot_work_is_refused_where_the_job_is_made(
    federation: Federation, given: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        SecureFedAvgController(**{"roster": federation.roster, "terms": {"clip": 1.0}, **given})


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"executor": Trainer}, "executor is the class Trainer"),
        ({"executor": trained}, "executor is a function"),
        ({"train": "train.py"}, "train is a str"),
    ],
)
def test_what_cannot_train_is_refused_where_the_job_is_made(
    given: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        SecureExecutor(**given)


def test_an_executor_is_needed_and_one_is_enough() -> None:
    with pytest.raises(ConfigError, match="either"):
        SecureExecutor()
    with pytest.raises(ConfigError, match="either"):
        SecureExecutor(executor=Trainer(), train=lambda weights: (weights, 1))


def test_without_a_model_there_is_no_job(federation: Federation) -> None:
    job = job_of(federation)
    job.controller.model = None
    assert "initial model" in failed(job)


def test_without_a_roster_there_is_no_job(federation: Federation) -> None:
    job = job_of(federation)
    job.controller.roster = "/nowhere/roster.bin"
    assert "/nowhere/roster.bin" in failed(job)


def test_requests_say_what_they_are(federation: Federation) -> None:
    """What `kind_of` reads in the tests above."""
    seen: set[str] = set()
    job = job_of(federation)
    job.deaf = lambda site, task: bool(seen.add(kind_of(task)))
    succeeded(job)
    assert seen == {Hello.__name__, *SILENCES, "Quorum", "RoundEnding"}
