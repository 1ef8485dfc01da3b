"""A Flower strategy around any strategy that averages: it averages what nobody sees.

    SecureAggregation(FedAdam(...), roster=..., terms=..., run_config=context.run_config)

The inner strategy samples nodes, configures training and evaluation, and turns an average into the
next model. In between, the replies are protected: what it gets to aggregate is one reply, with the
model plus the mean update, the sum of the weights, and the mean metrics. Strategies that look at
single updates cannot work like that and are refused.

A round is six exchanges. The first rides along with the evaluation of the round before, where the
app's evaluate function has the mod too.

Each round is fresh: nothing of the protocol's state is kept across a restart of the ServerApp.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from logging import ERROR, INFO, WARNING
from pathlib import Path
from typing import ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result as FlowerResult
from flwr.serverapp.strategy import Strategy

from secagg.errors import ConfigError, MalformedMessage, RoundAborted, SecaggError, Step
from secagg.identity import Roster
from secagg.plan import MIN_SURVIVORS, RoundPlan
from secagg.result import Result
from secagg_embed.exchange import CoordinatedRound, ended
from secagg_embed.flower import metrics as summed
from secagg_embed.flower.averaging import require_averaging
from secagg_embed.flower.courier import DEFAULT_PACE, Courier, Pace, final, problem_of
from secagg_embed.flower.nodes import Nodes
from secagg_embed.flower.records import read_replies, with_requests, without_ours
from secagg_embed.flower.rounds import FlowerRound, say_goodbye
from secagg_embed.flower.task import RunConfig, Task, only_arrays, tensors
from secagg_embed.folder import as_roster
from secagg_embed.tensors import added, layout_of, require_finite_model
from secagg_embed.terms import Terms, next_round_number, require_terms

_log = logging.getLogger("flwr")


@dataclass(frozen=True, slots=True)
class _Begun:
    """A round that runs, and what it was begun for."""

    server_round: int
    arrays: ArrayRecord
    config: ConfigRecord
    task: Task
    round: FlowerRound

    def serves(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord) -> bool:
        """Whether this is the round that is asked for now."""
        same = server_round == self.server_round and config is self.config
        return same and (arrays is self.arrays or arrays == self.arrays)


@dataclass(frozen=True, slots=True)
class _Run:
    """What `start` was called with."""

    num_rounds: int = 0
    timeout_s: float = 3600.0
    train_config: ConfigRecord | None = None


class SecureAggregation(Strategy):
    """See the module's docstring.

    `roster` (or its file) and `terms` decide who may take part and how updates become a sum.
    `run_config` is the ServerApp's `context.run_config`: tenants train only if all have the same.
    `metrics` names the training metrics that are summed, each with its largest magnitude. A round
    that does not open ends the run, unless it is one of at most `max_failed_rounds` in a row: then
    the model stays as it was. `transcripts` is a folder that gets one file a round; that of the
    last round is in `transcript`.
    """

    _last_number: ClassVar[int] = 0

    def __init__(
        self,
        strategy: Strategy,
        *,
        roster: Roster | Path | str,
        terms: Terms,
        run_config: RunConfig | None = None,
        metrics: Mapping[str, float] | None = None,
        max_failed_rounds: int = 0,
        transcripts: Path | str | None = None,
        pace: Pace = DEFAULT_PACE,
    ) -> None:
        require_averaging(strategy)
        require_terms(terms)
        _require_config(run_config)
        self.strategy = strategy
        self.transcript = b""
        self._roster = as_roster(roster)
        self._terms = terms
        self._run_config = dict(run_config or {})
        self._metrics = summed.metrics_of(metrics or {})
        self._max_failed_rounds = max_failed_rounds
        self._transcripts = None if transcripts is None else _folder(Path(transcripts))
        self._pace = pace
        self._nodes = Nodes(self._roster)
        self._run = _Run()
        self._begun: _Begun | None = None
        self._farewells: dict[int, bytes] = {}
        self._message_type = "train"
        self._evaluation_carries = True
        self._riders: set[int] = set()
        self._failed_in_a_row = 0

    def __repr__(self) -> str:
        return f"SecureAggregation({type(self.strategy).__name__})"

    def summary(self) -> None:
        """Log the configuration."""
        _log.log(
            INFO, "\t├──> Secure aggregation: %s, clip %g, weights up to %d, %d tenants enrolled",
            self._terms.scheme, self._terms.clip, self._terms.max_weight, len(self._roster.members),
        )  # fmt: skip
        self.strategy.summary()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> FlowerResult:
        """Flower's `Strategy.start`; afterwards the tenants are told how the last round ended.

        Raises:
            RoundAborted, ProtocolError: a round did not open; says why, and what tenants said.
            ConfigError: no honest tenant could accept such a round; says why.
        """
        config = ConfigRecord() if train_config is None else train_config
        self._run = _Run(num_rounds, timeout, config)
        try:
            result = super().start(
                grid, initial_arrays, num_rounds, timeout, config, evaluate_config, evaluate_fn
            )
        except SecaggError:
            say_goodbye(Courier(grid, self._pace), self._message_type, self._farewells)
            raise
        say_goodbye(Courier(grid, self._pace), self._message_type, self._farewells)
        if not result.arrays:  # no round opened, and none had to: the model is what it was
            result.arrays = initial_arrays
        return result

    # ------------------------------------------------------------------ training

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Exchanges 1 to 3; the messages of exchange 4, in which the tenants train."""
        courier = Courier(grid, self._pace)
        self._courier = courier
        begun, self._begun = self._begun, None
        try:
            if begun is None or not begun.serves(server_round, arrays, config):
                begun = self._begin(server_round, arrays, config, courier)
            if begun is None:
                return []
            begun.round.advance(courier, Step.MASKED_INPUT)
            if begun.round.over:
                begun.round.outcome()
        except SecaggError as error:
            self._failed(begun, error)
            return []
        self._begun = begun
        messages = []
        for node, letter in begun.round.letters().items():
            message = begun.task.messages[node]
            message.content = letter
            messages.append(message)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The rest of exchange 4, exchanges 5 and 6, and the inner strategy's step."""
        begun, self._begun = self._begun, None
        if begun is None:
            return None, None  # nobody was asked, or it failed and was reported
        try:
            self._absorb(begun, replies)
            begun.round.advance(self._courier)
            result = begun.round.outcome()
        except SecaggError as error:
            self._failed(begun, error)
            return None, None
        self._close(begun.round)
        self._failed_in_a_row = 0
        _log.log(INFO, "secagg: opened the sum of %d tenants", len(result.survivors))
        return self._aggregated(begun, result)

    def _begin(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, courier: Courier
    ) -> _Begun | None:
        """Ask the inner strategy, learn whose nodes those are, and make the plan."""
        messages = list(self.strategy.configure_train(server_round, arrays, config, courier.grid))
        if not messages:
            return None
        task = Task.of(messages, self._run_config)
        self._message_type = task.message_type
        nodes = self._nodes.tenants(task.messages, courier, task.message_type)
        coordinated = CoordinatedRound(self._plan(task, nodes), self._roster)
        round_ = FlowerRound(coordinated, nodes, task.message_type, task.content, self._farewells)
        return _Begun(server_round, arrays, config, task, round_)

    def _plan(self, task: Task, nodes: Mapping[str, int]) -> RoundPlan:
        if len(nodes) < MIN_SURVIVORS:
            error = RoundAborted(
                f"{len(nodes)} of the nodes that the strategy chose are tenants of the roster, and "
                f"{MIN_SURVIVORS} are the least that hide one another; each node's app needs "
                "@app.train(mods=[secagg_mod]), before any other mod, and the node its tenant's "
                "folder; or too few were chosen: min_available_nodes of the strategy"
            )
            for node, reason in self._nodes.strangers.items():
                error.add_note(f"node {node}: {reason}")
            raise error
        arrays = tensors(only_arrays(task.content, "the strategy's training message"))
        model = layout_of(arrays)
        require_finite_model(arrays, model)
        # Of the process, not of this strategy: another one may have begun in the same second.
        SecureAggregation._last_number = next_round_number(self._last_number, time.time())
        return self._terms.plan(
            self._roster,
            summed.joined(model, self._metrics),
            task.digest,
            round_number=self._last_number,
            cohort=tuple(sorted(nodes)),
        )

    def _absorb(self, begun: _Begun, replies: Iterable[Message]) -> None:
        """Take what Flower brought, and ask those again whose answer was an error."""
        nodes = {m.metadata.message_id: node for node, m in begun.task.messages.items()}
        again = []
        for reply in replies:
            node = nodes.get(reply.metadata.reply_to_message_id)
            if node is None:
                continue
            if (problem := problem_of(reply, node, begun.round.absorb)) is not None:
                _log.log(WARNING, "secagg: node %d: %s", node, problem)
                again += [] if final(reply) else [node]
        begun.round.exchange(
            self._courier,
            among=again if self._pace.attempts > 1 else (),
            attempts=self._pace.attempts - 1,
            timeout_s=self._run.timeout_s,
        )

    def _aggregated(
        self, begun: _Begun, result: Result
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The inner strategy's step over one reply that is the average of all."""
        task, plan = begun.task, begun.round.coordinated.plan
        layout, metrics = summed.split(plan.layout)
        record = only_arrays(task.content, "the strategy's training message")
        mean = result.mean()
        after = added(tensors(record), mean[: layout.size], layout)
        reported = summed.decode(metrics, mean[layout.size :], plan.quantiser.clip)
        weighted_by = getattr(self.strategy, "weighted_by_key", "num-examples")
        content = RecordDict(
            {
                next(iter(task.content.array_records)): ArrayRecord(
                    {name: Array(np.asarray(after[name])) for name in record}
                ),
                "metrics": MetricRecord({**reported, weighted_by: result.total_weight}),
            }
        )
        reply = Message(content, reply_to=next(iter(task.messages.values())))
        arrays, train_metrics = self.strategy.aggregate_train(begun.server_round, [reply])
        return None if arrays is None else in_kind(arrays, record), train_metrics

    # ------------------------------------------------------------------ evaluation

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The inner strategy's messages; with them travel how the round ended, and the next
        round's offer."""
        self._courier = Courier(grid, self._pace)
        messages = list(self.strategy.configure_evaluate(server_round, arrays, config, grid))
        self._riders = set()
        if messages and self._evaluation_carries:
            self._begun = self._begin_early(server_round + 1, arrays, config)
            offers = self._begun.round.offers() if self._begun else {}
            for message in messages:
                node = message.metadata.dst_node_id
                asked = [kept[node] for kept in (self._farewells, offers) if node in kept]
                if asked:
                    message.content = with_requests(message.content, asked)
                    self._riders.add(node)
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Take what rode along, and let the inner strategy see the rest."""
        given = list(replies)
        carried = [
            self._unload(reply)
            for reply in given
            if reply.has_content() and reply.metadata.src_node_id in self._riders
        ]
        if carried and not any(carried):
            self._evaluation_carries = False
            _log.log(
                INFO, "secagg: @app.evaluate(mods=[secagg_mod]) would save an exchange a round"
            )
        return self.strategy.aggregate_evaluate(server_round, given)

    def _begin_early(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord
    ) -> _Begun | None:
        """The next round, if `start` told that there is one and what it will be configured with."""
        train_config = self._run.train_config
        if server_round > self._run.num_rounds or train_config is None or train_config is config:
            return None
        try:
            return self._begin(server_round, arrays, train_config, self._courier)
        except SecaggError as error:
            _log.log(WARNING, "secagg: %s", error)  # it is tried again when its time comes
            return None

    def _unload(self, reply: Message) -> bool:
        """Whether something of ours was in the reply to an evaluation."""
        node, content = reply.metadata.src_node_id, reply.content
        reply.content = without_ours(content)
        try:
            if read_replies(content) is None:
                return False
            offered = self._begun.round.offers() if self._begun else {}
            if self._begun is not None and node in offered:
                self._begun.round.absorb(node, content)
            self._farewells.pop(node, None)
        except MalformedMessage as error:
            _log.log(WARNING, "secagg: node %d: %s", node, error)
        return True

    # ------------------------------------------------------------------ how a round ends

    def _failed(self, begun: _Begun | None, error: SecaggError) -> None:
        """Report a round that did not open; end the run unless it may fail.

        Raises:
            SecaggError: this one.
        """
        if begun is not None:
            self._close(begun.round)
        self._failed_in_a_row += 1
        if not ended(error) or self._failed_in_a_row > self._max_failed_rounds:
            _log.log(ERROR, "secagg: %s", error)
            raise error
        _log.log(
            WARNING, "secagg: this round did not open and the model stays as it is (%d of at most "
            "%d in a row): %s", self._failed_in_a_row, self._max_failed_rounds, error,
        )  # fmt: skip

    def _close(self, round_: FlowerRound) -> None:
        """Keep the transcript, and what the tenants are to be told."""
        if round_.over:
            self._farewells.update(round_.endings())
        self.transcript = round_.coordinated.transcript
        if self._transcripts is not None:
            name = f"round-{round_.coordinated.plan.round_number}.transcript"
            (self._transcripts / name).write_bytes(self.transcript)


def _require_config(given: object) -> None:
    if not isinstance(given, Mapping | None):
        raise ConfigError(
            f"run_config is a {type(given).__name__}; give context.run_config of the ServerApp"
        )


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"transcripts: cannot make the folder {path}: {error.strerror}") from None
    return path


def in_kind(after: ArrayRecord, before: ArrayRecord) -> ArrayRecord:
    """`after` in the dtypes of `before`; what is not averaged (integers) as it was.

    Flower's own averages turn integers into floats, and adaptive strategies float32 into float64;
    a model that comes back like that is no longer the one that its tenants train.
    """
    return ArrayRecord(
        {
            name: _in_kind(array, before[name]) if name in before else array
            for name, array in after.items()
        }
    )


def _in_kind(array: Array, before: Array) -> Array:
    if array.dtype == before.dtype:
        return array
    if not before.dtype.startswith("float"):
        return before
    return Array(np.asarray(array.numpy().astype(before.dtype)))
