"""The site's own filter: what it lets out, and what NVFLARE's runner does when it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.filter import Filter, FilterChainType, FilterContextKey, FilterSource
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply
from nvflare.collab.runtime.defs import SETUP_TASK_NAME, SYNC_TASK_NAME, SyncKey
from nvflare.fuel.utils import fobs
from nvflare.private.privacy_manager import Scope

from secagg_embed import hello
from secagg_embed.nvflare import ProtectedOnly, SecureExecutor, Unprotected
from secagg_embed.nvflare.shareables import KEY, Message, payload, task_data, task_result
from secagg_embed.wire import Reply, unable
from tests.stacks.nvflare.local import LocalSite, through_fobs, workspace
from tests.stacks.nvflare.tenants import Federation, Trainer, first_model, require_mean
from tests.stacks.nvflare.test_workflow import job_of, succeeded

REPLY = Reply(unable(bytes(32)).head, b"upload")
EMPTY = {ReservedHeaderKey.HEADERS}


def plain() -> Shareable:
    return DXO(DataKind.WEIGHTS, first_model()).to_shareable()


def protected() -> Shareable:
    return task_result(REPLY)


def with_header(name: str, value: Any) -> Shareable:
    result = protected()
    result.set_header(name, value)
    return result


def with_code(code: Any, content: dict[str, Any] | None = None) -> Shareable:
    result = Shareable(content or {})
    result.set_return_code(code)
    return result


UNPROTECTED = {
    "weights": plain,
    "diff": lambda: DXO(DataKind.WEIGHT_DIFF, first_model()).to_shareable(),
    "metrics": lambda: DXO(DataKind.METRICS, {"loss": 1.0}).to_shareable(),
    "arrays without a DXO": lambda: Shareable({"w": np.ones(3)}),
    "nothing, and all is well": lambda: make_reply(ReturnCode.OK),
    "mixed": lambda: DXO(DataKind.WEIGHTS, first_model()).update_shareable(protected()),
    "one more key": lambda: Shareable({**protected(), "metrics": {"loss": 1.0}}),
    "beside the reply": lambda: Shareable({KEY: {**payload(REPLY), "w": np.ones(3)}}),
    "a head that is none": lambda: Shareable({KEY: {"head": b"weights", "upload": upload()}}),
    "floats as upload": lambda: Shareable({KEY: {**payload(REPLY), "upload": np.ones(3)}}),
    "bytes as upload": lambda: Shareable({KEY: {**payload(REPLY), "upload": b"123"}}),
    "a matrix as upload": lambda: Shareable(
        {KEY: {**payload(REPLY), "upload": np.ones((2, 2), np.uint8)}}
    ),
    "a request": lambda: task_data({"site-1": Message((hello(bytes(32)),))}),
    "a header": lambda: with_header("accuracy", 0.5),
    "a header of ours with something else": lambda: with_header(
        ReservedHeaderKey.CONTENT_TYPE, "DXO"
    ),
    "headers that are none": lambda: (
        Shareable({KEY: payload(REPLY)}) | {ReservedHeaderKey.HEADERS: [1.0]}
    ),
    "an error with content": lambda: with_code(ReturnCode.ERROR, {"DXO": {"data": 1}}),
    "an error with our content": lambda: with_code(ReturnCode.ERROR, {KEY: {"w": 1}}),
    "an error of its own": lambda: with_code("0.25 0.5 0.75"),
    "no Shareable": lambda: {"w": 1},
}


def upload() -> Any:
    return np.zeros(3, np.uint8)


def filtered(result: Any) -> Shareable:
    return ProtectedOnly().process(result, FLContext())


# ---------------------------------------------------------------------------- what it lets out


@pytest.mark.parametrize("make", UNPROTECTED.values(), ids=UNPROTECTED)
def test_what_is_not_protected_is_refused(make: Any) -> None:
    with pytest.raises(Unprotected):
        filtered(make())


def test_what_is_protected_passes_as_it_is() -> None:
    passed = through_fobs(filtered(protected()))
    assert passed[KEY]["head"] == REPLY.head
    assert passed[KEY]["upload"].tobytes() == b"upload"
    assert set(passed) == {KEY, *EMPTY}


def test_an_error_passes_without_content() -> None:
    result = make_reply(ReturnCode.EXECUTION_EXCEPTION, {"accuracy": 0.5})
    passed = filtered(result)
    assert passed.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "accuracy" not in repr(passed)


@given(st.dictionaries(st.text(max_size=8), st.binary(max_size=8), min_size=1, max_size=3))
def test_no_other_content_passes(beside: dict[str, bytes]) -> None:
    result = Shareable({**beside, KEY: payload(REPLY)})
    if set(beside) == {KEY}:
        filtered(result)
        return
    with pytest.raises(Unprotected):
        filtered(result)


# ---------------------------------------------------------------------------- in NVFLARE's runner


class PutsBack(Filter):
    """A job's own filter, which NVFLARE runs after the site's."""

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        return plain()


def guarded(
    federation: Federation, executor: Any, *, last_look: bool = False, job_filter: bool = False
) -> LocalSite:
    scope = Scope()
    scope.set_name("protected")
    scope.add_task_data_filter(ProtectedOnly(), FilterKey.IN)
    scope.add_task_result_filter(ProtectedOnly(), FilterKey.OUT)
    filters = {f"train{FilterKey.DELIMITER}{FilterKey.OUT}": [PutsBack()]} if job_filter else {}
    site = LocalSite(
        "site-1",
        executor,
        workspace(federation.root, "site-1"),
        scope=scope,
        components=(ProtectedOnly(),) if last_look else (),
    )
    site.runner.task_result_filters = filters
    return site


def peer(site: LocalSite) -> FLContext:
    return site.engine.new_context()


def test_the_filters_of_a_scope_are_the_sites(federation: Federation) -> None:
    guard = ProtectedOnly()
    Scope().add_task_data_filter(guard, FilterKey.IN)
    assert guard.get_prop(FilterContextKey.SOURCE) == FilterSource.SITE
    assert guard.get_prop(FilterContextKey.CHAIN_TYPE) == FilterChainType.TASK_DATA_CHAIN


def test_a_plain_task_is_refused_before_anything_is_trained(federation: Federation) -> None:
    trainer = Trainer()
    site = guarded(federation, trainer)
    sent = site.do("train", "1", plain(), peer(site))
    assert sent.get_return_code() == ReturnCode.TASK_DATA_FILTER_ERROR
    assert set(sent) == EMPTY
    assert trainer.given == []


def test_a_plain_task_that_calls_itself_ours_is_refused_as_well(federation: Federation) -> None:
    trainer = Trainer()
    site = guarded(federation, trainer)
    for says in (1, {}, {"requests": {"site-1": [b"x"]}, "settings": b""}):
        task = plain()
        task[KEY] = says
        sent = site.do("train", "1", task, peer(site))
        assert sent.get_return_code() == ReturnCode.TASK_DATA_FILTER_ERROR
    assert trainer.given == []


def test_a_plain_result_does_not_leave_and_the_site_says_so(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    class Ignores(Trainer):
        def execute(self, *args: Any) -> Shareable:
            return plain()

    site = guarded(federation, Ignores())
    sent = site.do("train", "1", task_data({"site-1": Message((hello(bytes(32)),))}), peer(site))
    assert sent.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert set(sent) == EMPTY
    assert first_model()["dense.bias"].tobytes() not in fobs.dumps(sent)
    assert "which is not protected" in caplog.text


@pytest.mark.parametrize("last_look", [False, True])
def test_a_jobs_filter_runs_after_the_sites_and_the_last_look_after_that(
    federation: Federation, last_look: bool
) -> None:
    """The first case is NVFLARE's: what the second is there for."""

    class Answers(Trainer):
        def execute(self, *args: Any) -> Shareable:
            return protected()

    site = guarded(federation, Answers(), last_look=last_look, job_filter=True)
    sent = site.do("train", "1", task_data({"site-1": Message((hello(bytes(32)),))}), peer(site))
    if not last_look:
        assert "DXO" in sent
        return
    assert set(sent) == EMPTY
    assert sent.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR


@pytest.mark.parametrize("task", [SYNC_TASK_NAME, SETUP_TASK_NAME])
def test_a_collab_job_needs_the_sites_word(federation: Federation, task: str) -> None:
    """Its calls go past every filter, so a site that has not agreed must not take part at all."""
    trainer = Trainer()
    site = guarded(federation, trainer)
    sent = site.do(task, "1", Shareable({SyncKey.SERVER_FQCN: "server"}), peer(site))
    assert sent.get_return_code() == ReturnCode.TASK_DATA_FILTER_ERROR
    assert trainer.given == []


def test_with_the_sites_word_collab_prepares_and_no_more() -> None:
    guard, context = ProtectedOnly(collab=True), FLContext()
    context.set_prop(FLContextKey.TASK_NAME, SYNC_TASK_NAME, private=True, sticky=False)
    names = Shareable({SyncKey.COLLAB_INTERFACE: {"": {"secagg": ["requests", "model"]}}})
    assert guard.process(names, context) is names
    with pytest.raises(Unprotected):
        guard.process(plain(), context)
    context.set_prop(FLContextKey.TASK_NAME, "train", private=True, sticky=False)
    with pytest.raises(Unprotected):
        guard.process(names, context)


def test_a_whole_job_passes_the_guard(federation: Federation) -> None:
    job = job_of(federation)
    job.sites[0] = guarded(federation, SecureExecutor(executor=Trainer()), last_look=True)
    require_mean(succeeded(job), first_model(), list(federation.names))


def test_the_guard_is_configured_by_its_path(tmp_path: Path) -> None:
    """`local/privacy.json` names it as the module's docstring shows."""
    import json

    from nvflare.private.fed.app.fl_conf import create_privacy_manager

    import secagg_embed.nvflare.filter as module

    shown = module.__doc__ or ""
    settings = json.loads(shown[shown.index("    {\n") : shown.index("    }\n") + 6])
    space = workspace(tmp_path, "site-1")
    path = tmp_path / "site-1" / "local" / "privacy.json"
    path.write_text(json.dumps(settings))
    manager = create_privacy_manager(space, names_only=False)
    scope = manager.get_scope("")
    assert scope.name == "protected"
    for chain in (
        scope.task_data_filters[FilterKey.IN],
        scope.task_result_filters[FilterKey.OUT],
        list(manager.components.values()),
    ):
        assert [type(one) for one in chain] == [ProtectedOnly]
