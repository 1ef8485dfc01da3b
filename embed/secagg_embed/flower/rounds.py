"""One round of the protocol over one grid: who is asked what, when, and how it went.

advance()                 exchanges 1 to 3: keys, shares, acknowledgements
training()                the letters of exchange 4, which Flower's strategy loop may send
absorb(node, content)     its replies
advance()                 exchanges 5 and 6; `outcome` is the sum
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from logging import INFO, WARNING

from flwr.app import RecordDict

from secagg.errors import MalformedMessage, Step
from secagg.plan import RoundPlan
from secagg.result import Result
from secagg_embed.exchange import CoordinatedRound, Requests
from secagg_embed.flower.courier import Courier
from secagg_embed.flower.records import Records, read_replies, with_requests

_log = logging.getLogger("flwr")
_GOODBYE_S = 30.0


class FlowerRound:
    """A `CoordinatedRound` whose requests travel to `nodes` (by tenant) as `message_type`.

    `content` is what goes along in the exchange in which the tenants train. `farewells` are the
    endings of an earlier round that are still to be told; they ride along with the first letters.
    """

    def __init__(
        self,
        coordinated: CoordinatedRound,
        nodes: Mapping[str, int],
        message_type: str,
        content: Records,
        farewells: dict[int, bytes] | None = None,
    ) -> None:
        self.coordinated = coordinated
        self._nodes = nodes
        self._tenants = {node: tenant for tenant, node in nodes.items()}
        self._message_type = message_type
        self._content = content
        self._farewells = {} if farewells is None else farewells
        self._requests: Requests = coordinated.begin()
        self._step = coordinated.step  # of the requests: with the last reply the round moves on
        self._since = time.monotonic()
        self._told_refused = 0
        _log_plan(coordinated.plan)

    @property
    def over(self) -> bool:
        """Whether it has ended, one way or the other."""
        return self.coordinated.over

    def offers(self) -> dict[int, bytes]:
        """The requests of the running exchange that are not answered yet, by node."""
        waiting = self.coordinated.waiting
        return {self._nodes[t]: self._requests[t] for t in waiting if t in self._requests}

    def letters(self) -> dict[int, RecordDict]:
        """The same as letters; the task goes along in the exchange of training alone."""
        content = self._content if self._step is Step.MASKED_INPUT else {}
        return {
            node: with_requests(content, [*self._farewell(node), asked])
            for node, asked in self.offers().items()
        }

    def absorb(self, node: int, content: RecordDict) -> bool:
        """One node's reply; False where it has to be asked again.

        Raises:
            MalformedMessage: this is no reply of ours.
        """
        replies = read_replies(content)
        if replies is None:
            raise MalformedMessage("its app answered without secagg_mod: add it to @app.train")
        self._farewells.pop(node, None)
        return self.coordinated.take(self._tenants[node], replies[-1])

    def exchange(
        self,
        courier: Courier,
        *,
        among: Collection[int] | None = None,
        attempts: int | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """The running exchange to its end: ask who has not answered, of the nodes `among`."""
        letters = self.letters()
        if among is not None:
            letters = {node: letter for node, letter in letters.items() if node in among}
        silent = courier.carry(
            self._message_type, letters, self.absorb, attempts=attempts, timeout_s=timeout_s
        )
        for node, reason in silent.items():
            _log.log(WARNING, "secagg: %s: %s", self._tenants[node], reason)
        self.close()

    def close(self) -> None:
        """End the running exchange; whoever has not answered is a dropout."""
        step, asked = self._step, self._requests.keys()
        for one in self.coordinated.refused[self._told_refused :]:
            _log.log(WARNING, "secagg: refused what %s sent: %s", one.tenant, one.reason)
        self._told_refused = len(self.coordinated.refused)
        declined = {t: why for t, why in self.coordinated.declined.items() if t in asked}
        for tenant, reason in declined.items():
            _log.log(WARNING, "secagg: %s declined: %s", tenant, reason)
        missing = asked & {*self.coordinated.waiting, *declined}
        self._requests, self._step = self.coordinated.close(), self.coordinated.step
        now = time.monotonic()
        took, self._since = now - self._since, now
        _log.log(
            INFO, "secagg: %d/6 %s: %d of %d tenants in %.1f s",
            step + 1, step.label, len(asked) - len(missing), len(asked), took,
        )  # fmt: skip

    def advance(self, courier: Courier, until: Step | None = None) -> None:
        """Exchange after exchange, until the round is over or the step `until` begins."""
        while self._requests and self._step is not until:
            self.exchange(courier)

    def outcome(self) -> Result:
        """The opened sum.

        Raises:
            RoundAborted, ProtocolError: nothing was opened; says why, and who declined and why.
        """
        return self.coordinated.outcome()

    def endings(self) -> dict[int, bytes]:
        """What tells each node how the round ended."""
        return {self._nodes[t]: ending for t, ending in self.coordinated.endings().items()}

    def _farewell(self, node: int) -> list[bytes]:
        first = self._step is Step.ADVERTISE_KEYS
        return [self._farewells[node]] if first and node in self._farewells else []


def say_goodbye(courier: Courier, message_type: str, farewells: dict[int, bytes]) -> None:
    """Tell the tenants how the last round ended; nobody waits long for them to have heard."""
    letters = {node: with_requests({}, [ending]) for node, ending in farewells.items()}
    farewells.clear()
    courier.carry(message_type, letters, lambda *_: True, timeout_s=_GOODBYE_S)


def _log_plan(plan: RoundPlan) -> None:
    _log.log(
        INFO, "secagg: round %d over %d tenants, %s, %d values; it opens if %d are left",
        plan.round_number, plan.n, plan.scheme, plan.layout.size, plan.min_survivors,
    )  # fmt: skip
