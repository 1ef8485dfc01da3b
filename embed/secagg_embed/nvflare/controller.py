"""The server's workflow: federated averaging of which only the mean is ever seen.

    job.to_server(SecureFedAvgController(
        roster="/srv/roster.bin", terms={"clip": 0.05, "max_weight": 1000}, num_rounds=5))
    job.to_clients(SecureExecutor(executor=...), tasks=["train"])

It takes NVFLARE's place of `FedAvg`: the same persistor, the same events, the same task for the
sites' training code. A round that opens nothing ends the job as failed, unless `max_failed_rounds`
in a row may fail: then the model stays as it was. Nothing that needs single updates or single
metrics works with it (model selection by clients' validation scores, custom aggregators).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.workflows.model_controller import ModelController
from nvflare.collab.api.exceptions import RunAborted
from nvflare.fuel.utils import fobs

from secagg.errors import ConfigError, SecaggError
from secagg_embed.exchange import ended
from secagg_embed.folder import as_roster
from secagg_embed.nvflare.rounds import (
    Arrived,
    Patience,
    ProtectedRounds,
    read_or,
)
from secagg_embed.nvflare.shareables import Message, Settings, for_one, result_of, task_data
from secagg_embed.terms import Terms


class SecureFedAvgController(ModelController):
    """See the module's docstring.

    `roster`: the file that `secagg keys` made. `terms`: the fields of `secagg_embed.terms.Terms`.
    `model`: the initial weights by name, in place of a persistor's. `settings`: what the sites'
    training is told beside them, in the DXO's meta, and every tenant the same. Timeouts are in
    seconds; once `min_responses` sites have answered, the others get
    `wait_time_after_min_received`, as in NVFLARE's broadcasts; 0 means waiting for everybody.
    """

    def __init__(
        self,
        roster: str,
        terms: dict[str, Any] | Terms,
        num_rounds: int = 5,
        model: dict[str, Any] | None = None,
        save_filename: str = "FL_global_model.fobs",
        settings: dict[str, Any] | None = None,
        task_name: str = AppConstants.TASK_TRAIN,
        exchange_timeout: float = 60,
        training_timeout: float = 3600,
        min_responses: int = 0,
        wait_time_after_min_received: float = 10,
        max_failed_rounds: int = 0,
        persistor_id: str = AppConstants.DEFAULT_PERSISTOR_ID,
        task_check_period: float = 0.2,
    ) -> None:
        super().__init__(persistor_id=persistor_id, task_check_period=task_check_period)
        self.roster = roster
        self.terms = asdict(terms) if isinstance(terms, Terms) else terms
        _terms_of(self.terms)
        _require_numbers(
            num_rounds=num_rounds, exchange_timeout=exchange_timeout,
            training_timeout=training_timeout, min_responses=min_responses,
            wait_time_after_min_received=wait_time_after_min_received,
            max_failed_rounds=max_failed_rounds,
        )  # fmt: skip
        _require_dicts(model=model, settings=settings)
        self.num_rounds = num_rounds
        self.model = model
        self.save_filename = save_filename
        self.settings = settings or {}
        self.task_name = task_name
        self.exchange_timeout = exchange_timeout
        self.training_timeout = training_timeout
        self.min_responses = min_responses
        self.wait_time_after_min_received = wait_time_after_min_received
        self.max_failed_rounds = max_failed_rounds
        self._failed = 0

    # ------------------------------------------------------------------ the workflow

    def run(self) -> None:
        """All rounds, or a job that has failed and says why."""
        try:
            self.save_model(self._all_rounds())
        except RunAborted:
            self.info("the job was aborted; nothing is saved")
        except SecaggError as error:
            self.panic("; ".join((str(error), *getattr(error, "__notes__", ()))))

    def _all_rounds(self) -> FLModel:
        patience = Patience(
            self.exchange_timeout, self.training_timeout,
            self.min_responses, self.wait_time_after_min_received,
        )  # fmt: skip
        rounds = ProtectedRounds(
            TaskSites(self), as_roster(self.roster), _terms_of(self.terms), patience
        )
        self.fl_ctx.set_prop(AppConstants.NUM_ROUNDS, self.num_rounds, private=True, sticky=False)
        current = self._initial()
        try:
            for number in range(self.num_rounds):
                self.current_round = current.current_round = number
                self.set_fl_context(current)
                self.event(AppEventType.ROUND_STARTED)
                settings = {
                    **self.settings,
                    ReservedHeaderKey.TASK_NAME: self.task_name,
                    AppConstants.CURRENT_ROUND: number,
                    AppConstants.NUM_ROUNDS: self.num_rounds,
                }
                current.params = self._averaged(rounds, current.params, settings)
                self.event(AppEventType.ROUND_DONE)
        finally:
            rounds.finish()
        return current

    def _initial(self) -> FLModel:
        current = self.load_model() if self.model is None else FLModel(params=dict(self.model))
        if current is None or not current.params:
            raise ConfigError("there is no initial model; give `model`, or a persistor with one")
        current.start_round, current.total_rounds = 0, self.num_rounds
        return current

    def _averaged(
        self, rounds: ProtectedRounds, model: dict[str, Any], settings: Settings
    ) -> dict[str, Any]:
        """The next model, or the same where a round may fail.

        Raises:
            SecaggError: nothing was opened, once too often; the notes say who left and why.
        """
        try:
            averaged = rounds.average(model, settings)
        except SecaggError as error:
            self._failed += 1
            if not ended(error) or self._failed > self.max_failed_rounds:
                raise
            self.warning(f"round {self.current_round} opened nothing, the model stays: {error}")
            return model
        self._failed = 0
        names = ", ".join(averaged.survivors)
        self.info(f"round {self.current_round}: the mean over {names}")
        return averaged.model

    def save_model(self, model: FLModel) -> None:
        """To the persistor; without one, to `save_filename` in the job's folder, as FedAvg does."""
        if self.persistor is not None or not self.save_filename:
            super().save_model(model)
            return
        path = Path(self.get_run_dir()) / self.save_filename
        fobs.dumpf(model, str(path))
        self.info(f"the model is saved to {path}")

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Before a site gets its copy of a task: the others' requests are taken out."""
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.AFTER_TASK_DATA_FILTER:
            site = fl_ctx.get_peer_context().get_identity_name()
            for_one(fl_ctx.get_prop(FLContextKey.TASK_DATA), site)

    def process_result_of_unknown_task(
        self,
        client: Client,
        task_name: str,
        client_task_id: str,
        result: Shareable,
        fl_ctx: FLContext,
    ) -> None:
        """Late answers are not read: their exchange has closed without them."""
        self.log_info(fl_ctx, f"{client.name} answered {task_name} too late")


def _terms_of(given: dict[str, Any]) -> Terms:
    """The terms; said to be wrong where the job is made, and not at the server.

    Raises:
        ConfigError: one that there is not, or the clip is missing.
    """
    try:
        return Terms(**given)
    except TypeError as error:
        raise ConfigError(f"terms: {error}; see secagg_embed.Terms") from None


def _require_numbers(**given: object) -> None:
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, Real) or value < 0:
            raise ConfigError(f"{name} is {value!r}; give a number, 0 or more")


def _require_dicts(**given: object) -> None:
    for name, value in given.items():
        if not isinstance(value, Mapping | None):
            raise ConfigError(f"{name} is a {type(value).__name__}; give a dict with names")


class TaskSites:
    """`Sites` over a controller's broadcasts: one task with everybody's requests for an exchange.

    NVFLARE gives each site a copy, and the controller leaves in it what is for that site. One task
    for each site would do too, were it not for NVFLARE 2.9: with several tasks at once, a site that
    asks again for its own ends the thread that watches them all, and none times out any more.
    """

    def __init__(self, controller: SecureFedAvgController) -> None:
        self._controller = controller

    @property
    def names(self) -> tuple[str, ...]:
        """See `Sites`."""
        return tuple(client.name for client in self._controller.engine.get_clients())

    def require_running(self) -> None:
        """See `Sites`."""
        if self._controller.is_aborted():
            raise RunAborted("the job was aborted")

    def send(
        self, messages: Mapping[str, Message], timeout_s: float, arrived: Arrived
    ) -> Callable[[], None]:
        """See `Sites`."""
        task = Task(
            name=self._controller.task_name,
            data=task_data(messages),
            timeout=max(1, math.ceil(timeout_s)),
            result_received_cb=partial(_received, arrived),
        )
        if messages:
            self._controller.broadcast(
                task, self._controller.fl_ctx, list(messages), min_responses=len(messages)
            )
        return partial(self._give_up, task)

    def _give_up(self, task: Task) -> None:
        if task.completion_status is None:
            self._controller.cancel_task(task, fl_ctx=self._controller.fl_ctx)


def _received(arrived: Arrived, client_task: ClientTask, fl_ctx: FLContext) -> None:
    """Who answered, NVFLARE says: the client that the task was for, by its authenticated name."""
    result, client_task.result = client_task.result, None
    arrived(client_task.client.name, read_or(result_of, result))
