"""The tenant's side in Flower: a mod that answers the protocol and lets only protected updates out.

    @app.train(mods=[secagg_mod])
    @app.evaluate(mods=[secagg_mod])        # optional: saves one exchange a round

The train function stays as it was: it gets the model, returns all of its arrays and the number of
examples. It is called once a round, when the tenants have agreed on who takes part. What leaves is
the protected difference; its metrics leave inside the sum or not at all, and of an error in it
nothing but that there was one: what went wrong stands in the tenant's own log. A TRAIN message of
a server that asks for updates without protection is refused.

Flower answers each message in a process of its own, so all state lies in the tenant's folder
(`secagg_embed.folder`). Which folder that is, the tenant says on its own command line:

    flower-supernode --node-config 'secagg-folder="/var/lib/secagg"' ...

or in the environment variable SECAGG_FOLDER; a text like "{partition-id}" in it is filled in from
the node's configuration. Nothing of it comes from the server or the run's configuration.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode

from secagg.errors import ConfigError, ProtocolError, SecaggError, SpentInput, UsageError
from secagg.plan import RoundPlan
from secagg.sqlite_ledger import LedgerInUse
from secagg_embed.flower import metrics, records, task
from secagg_embed.party import Contribute, Contribution, Party, weight_in
from secagg_embed.tensors import difference
from secagg_embed.wire import Deliver, Reply, declining, decode_request, printable, unable

FOLDER_KEY = "secagg-folder"
FOLDER_VARIABLE = "SECAGG_FOLDER"
BUSY = "this tenant is busy with another message; it may be free soon"
FAILED = "its app failed; its own log says how"

_log = logging.getLogger("flwr")


@dataclass(frozen=True, slots=True)
class SecaggMod:
    """See the module's docstring; `secagg_mod` is the one with these defaults.

    `weighted_by` names the metric that is the update's weight. It is the tenant's to choose: a
    server that could choose it could give one tenant nearly all of the weight.
    """

    weighted_by: str = "num-examples"
    folder: Path | None = None

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Answer one message (Flower's `Mod`)."""
        training = _category(message) == MessageType.TRAIN
        try:
            requests = records.read_requests(message.content)
            message.content = records.without_ours(message.content)
            if training:
                return self._train(message, context, call_next, requests)
            return self._pass(message, context, call_next, requests or ())
        except LedgerInUse as error:
            _log.warning("secagg: %s", error)
            return _refusal(message, BUSY, ErrorCode.CLIENT_APP_RAISED_EXCEPTION)
        except SecaggError as error:
            _log.error("secagg: %s", error)
            return _refusal(message, str(error))
        except Exception:  # noqa: BLE001 - its text may quote data, and Flower would send it
            _log.exception("secagg: this message is not answered")
            return _refusal(message, FAILED, ErrorCode.CLIENT_APP_RAISED_EXCEPTION)

    def _train(
        self,
        message: Message,
        context: Context,
        call_next: ClientAppCallable,
        requests: tuple[bytes, ...] | None,
    ) -> Message:
        if requests is None:
            raise UsageError(
                "this tenant trains under secure aggregation alone, and this message asks for an "
                "unprotected update: start the run with secagg_embed.flower.SecureAggregation"
            )

        def contribute(plan: RoundPlan) -> Contribution:
            kind = message.metadata.message_type
            task.require_task(plan, kind, message.content, context.run_config)
            try:
                return trained(plan, message, context, call_next, self.weighted_by)
            except Exception as error:
                raise _TrainingFailed from error

        replies = self._answer(context, requests, contribute)
        return Message(records.with_replies({}, replies), reply_to=message)

    def _pass(
        self,
        message: Message,
        context: Context,
        call_next: ClientAppCallable,
        requests: tuple[bytes, ...],
    ) -> Message:
        """An evaluation, which may bring requests along that need no training."""
        replies: tuple[Reply, ...] = ()
        try:
            if requests:
                replies = self._answer(context, requests, None)
        except SecaggError as error:  # it can be asked again; the evaluation is not its business
            _log.warning("secagg: %s", error)
        answer = _message(call_next(message, context))
        if answer.has_error():
            return answer
        if answer.content.array_records:
            raise UsageError(
                "the app answers a message that is no training with arrays; under secure "
                "aggregation arrays leave inside the sum alone, and metrics are for evaluation"
            )
        if replies:
            answer.content = records.with_replies(answer.content, replies)
        return answer

    def _answer(
        self, context: Context, requests: tuple[bytes, ...], contribute: Contribute | None
    ) -> tuple[Reply, ...]:
        with self.party(context) as party:
            return tuple(_answered(party, request, contribute) for request in requests)

    def party(self, context: Context) -> Party:
        """The tenant of this node, opened for one message."""
        return Party.open(self._home(context))

    def _home(self, context: Context) -> Path:
        given = self.folder or context.node_config.get(FOLDER_KEY) or os.getenv(FOLDER_VARIABLE)
        if not given:
            raise ConfigError(
                f"this node has no tenant's folder: give {FOLDER_KEY!r} in --node-config, or set "
                f"{FOLDER_VARIABLE}, to a folder made by `secagg keys`"
            )
        return Path(_filled(str(given), context.node_config))


secagg_mod = SecaggMod()


def trained(
    plan: RoundPlan,
    message: Message,
    context: Context,
    call_next: ClientAppCallable,
    weighted_by: str,
) -> Contribution:
    """Train, and make of the app's reply what enters the sum.

    Raises:
        ConfigError: the reply has other tensors than the model, no weight, or not the metrics that
            the round sums; says what.
    """
    received = dict(task.only_arrays(message.content, "the training message"))
    reply = _called(call_next, message, context)
    if reply.has_error():
        raise UsageError("the train function answered with an error; this tenant's log has it")
    model, summed = metrics.split(plan.layout)
    after = task.tensors(task.only_arrays(reply.content, "what the train function returned"))
    delta = difference(after, task.tensors(received), model)
    reported = _only_metrics(reply.content)
    if summed:
        extra = metrics.encode(summed, reported, plan.quantiser.clip)
        delta = np.concatenate([delta, extra])
    return Contribution(delta, _weight(reported, weighted_by, plan.max_weight))


def _called(call_next: ClientAppCallable, message: Message, context: Context) -> Message:
    """The app's reply to the task and nothing else: the server writes the group of each message as
    it likes, and an app that reads its round or its rate from it could be told another."""
    metadata = message.metadata
    group, metadata.group_id = metadata.group_id, ""
    try:
        return _message(call_next(message, context))
    finally:
        metadata.group_id = group


def _message(answer: object) -> Message:
    if not isinstance(answer, Message):
        raise UsageError(f"the app returned a {type(answer).__name__}; return a Message")
    return answer


class _TrainingFailed(Exception):
    """What went wrong, of any type, is its cause."""


def _answered(party: Party, request: bytes, contribute: Contribute | None) -> Reply:
    """The reply, and one that says so where the training failed: the round goes on without it."""
    asked = decode_request(request)
    try:
        return party.answer(request, contribute or _not_now)
    except (ProtocolError, _TrainingFailed, UsageError) as error:
        if not isinstance(asked, Deliver):
            raise
        cause = _explained(error.__cause__ or error)
        _log.error(
            "secagg: %s takes no further part in this round: %s",
            party.tenant,
            cause,
            exc_info=None if isinstance(cause, SecaggError) else cause,
        )
        if isinstance(error, ProtocolError):  # what was sent is wrong, whatever the data are
            return declining(asked.context, error)
        return unable(asked.context)


def _not_now(_: RoundPlan) -> Contribution:
    raise ProtocolError("a message that is no training asks this tenant to train; it does not")


def _explained(error: BaseException) -> BaseException:
    if not isinstance(error, SpentInput):
        return error
    return UsageError(
        "this update is, value for value, one that left in an earlier round, and two sums with the "
        "same update can give it away: training has to differ from round to round and from run to "
        "run (another seed; not the model as it came)"
    )


def _weight(reported: Mapping[str, object], weighted_by: str, most: int) -> int:
    value: Any = reported.get(weighted_by)
    if (weight := weight_in(value, most)) is None:
        raise ConfigError(
            f"the train function has to report the weight of its update as the metric "
            f"{weighted_by!r}, a number of at least 1"
        )
    if value > most:
        _log.warning(
            "secagg: %r is above the round's largest weight of %d and counts as it",
            weighted_by,
            most,
        )
    return weight


def _only_metrics(content: RecordDict) -> MetricRecord:
    found = list(content.metric_records.values())
    if len(found) != 1:
        raise ConfigError(
            f"what the train function returned has {len(found)} MetricRecords, and exactly one is "
            "needed, with the number of examples in it"
        )
    return found[0]


def _category(message: Message) -> str:
    return message.metadata.message_type.partition(".")[0]


def _filled(folder: str, node_config: Mapping[str, object]) -> str:
    for key, value in node_config.items():
        folder = folder.replace(f"{{{key}}}", str(value))
    return folder


def _refusal(
    message: Message, reason: str, code: int = ErrorCode.MOD_FAILED_PRECONDITION
) -> Message:
    """An error reply; with the default code Flower's node is not asked again."""
    return Message(Error(code, f"secagg: {printable(reason)}"), reply_to=message)
