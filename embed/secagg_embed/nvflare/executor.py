"""A site's executor: it answers every exchange itself, and has the site's own executor train.

    SecureExecutor(executor=MyExecutor())          # yours, unchanged: a DXO in, a DXO out
    SecureExecutor(executor=ClientAPIExecutor("in_process", task_script_path="train.py"))
    SecureExecutor(train=lambda weights: (trained(weights), steps))

The training sees what NVFLARE's FedAvg would send, and nothing that the round's plan does not name:
a DXO of WEIGHTS with the job's settings in its meta, and the number of the round in the headers. A
function gets the settings as arguments. It returns WEIGHTS or WEIGHT_DIFF. Of that nothing leaves
but the change of the weights, inside the protected vector, and the weight (`weight_key` in the
DXO's meta) inside their sum; metrics and other meta stay.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.apis.utils.event import fire_event_to_components
from nvflare.app_common.app_constant import AppConstants

from secagg.errors import ConfigError, SecaggError
from secagg_embed.nvflare.shareables import message_of, task_result
from secagg_embed.nvflare.site import STEPS, Train, answer, party_of, tenant_folder
from secagg_embed.party import Party


class SecureExecutor(Executor):
    """See the module's docstring; `secagg_embed.nvflare.site` says where the tenant's folder is."""

    def __init__(
        self,
        executor: Executor | None = None,
        train: Callable[..., object] | None = None,
        weight_key: str = STEPS,
    ) -> None:
        super().__init__()
        if (executor is None) == (train is None):
            raise ConfigError("give SecureExecutor either an executor or a function that trains")
        if executor is not None and not isinstance(executor, Executor):
            raise ConfigError(
                f"executor is {_named(executor)}; give an object of an Executor's class"
            )
        if train is not None and not callable(train):
            raise ConfigError(f"train is {_named(train)}; give a function of the weights")
        self.executor = executor
        self.train = train
        self.weight_key = weight_key

    def party(self, fl_ctx: FLContext) -> AbstractContextManager[Party]:
        """This site's tenant, for one message."""
        return party_of(tenant_folder(fl_ctx.get_identity_name(), fl_ctx.get_workspace()))

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """The executor inside hears of everything once, as if it were the job's own."""
        if self.executor is not None and not _hears(self.executor, event_type, fl_ctx):
            fire_event_to_components(event_type, [self.executor], fl_ctx)

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """The reply to an exchange, or an empty one with an error's code: nothing else leaves."""
        try:
            message = message_of(shareable, fl_ctx.get_identity_name())
        except SecaggError as error:
            self.log_error(fl_ctx, f"not answered: {error}")
            return make_reply(ReturnCode.BAD_TASK_DATA)
        try:
            train = self._training(task_name, shareable, fl_ctx, abort_signal)
            with self.party(fl_ctx) as party:
                return task_result(answer(party, message, train, weight_key=self.weight_key))
        except SecaggError as error:
            self.log_error(fl_ctx, f"not answered: {error}")
            return make_reply(ReturnCode.EXECUTION_EXCEPTION)

    def _training(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Train:
        """The function, or the executor inside, as a function of the weights and settings."""
        executor: Any = self.executor
        function: Any = self.train

        def train(weights: dict[str, Any], settings: dict[str, Any]) -> object:
            _require_named(settings.pop(ReservedHeaderKey.TASK_NAME, None), task_name)
            headers = {name: settings.pop(name) for name in ROUND_HEADERS if name in settings}
            if function is not None:
                return function(weights, **settings)
            task = DXO(DataKind.WEIGHTS, weights, settings).to_shareable()
            for name in (ReservedHeaderKey.TASK_NAME, ReservedHeaderKey.TASK_ID):
                headers[name] = shareable.get_header(name)
            for name, value in headers.items():
                task.set_header(name, value)
            return executor.execute(task_name, task, fl_ctx, abort_signal)

        return train


def _named(given: object) -> str:
    return f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"


def _require_named(planned: object, task_name: str) -> None:
    """Demand that the plan names this task: a site that is told to validate while another trains
    would leave the other's update alone in the sum."""
    if planned != task_name:
        raise ConfigError(
            f"the task is named {task_name!r}, and the round's plan names {planned!r}"
        )


def _hears(executor: Executor, event_type: str, fl_ctx: FLContext) -> bool:
    """Whether NVFLARE tells it by itself: what it builds from a job's JSON it tells, nested or not.

    Twice told of the start, `ClientAPIExecutor` would run the training script twice at a time.
    """
    handlers = getattr(fl_ctx.get_engine(), "handlers", None) or ()
    return event_type not in _TO_ONE_ALONE and any(one is executor for one in handlers)


_TO_ONE_ALONE = (EventType.POST_TASK_ASSIGNMENT_SENT, EventType.POST_TASK_RESULT_RECEIVED)

ROUND_HEADERS = (
    AppConstants.START_ROUND,
    AppConstants.CURRENT_ROUND,
    AppConstants.NUM_ROUNDS,
)
