"""A round as a series of exchanges: the coordinator asks every tenant something, each answers once.

Stacks that federate training carry a request to every client and bring back a reply: Flower's
`send_and_receive`, NVFLARE's `broadcast_and_wait`, a loop of calls. The six steps of the protocol
(docs/protocol.md) are six such exchanges:

    1  the plan              ->  keys, signed            advertise_keys
    2  everybody's keys      ->  shares, sealed          share_keys
    3  the shares            ->  an acknowledgement      acknowledge
    4  the agreed view       ->  the protected vector    masked_input; the tenant trains here
    5  the survivors         ->  a signature             consistency_check
    6  a quorum of those     ->  shares for the sum      unmask

    coordinated = CoordinatedRound(plan, roster)
    requests = coordinated.begin()
    while requests:
        for tenant, reply in carry(requests):        # yours: in any order, as they come
            coordinated.take(tenant, reply)
        requests = coordinated.close()               # whoever is still silent is a dropout
    result = coordinated.outcome()

There is no clock: the host decides how long it waits, and whether it asks `waiting` again. Nor is
anything kept on disk: a coordinator that stops ends its round, and the next has another number.
What the sum implies, and what not, is said in `secagg.aggregator`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from secagg.aggregator import Aggregator
from secagg.errors import (
    MalformedMessage,
    ProtocolError,
    RoundAborted,
    SecaggError,
    Step,
    UsageError,
)
from secagg.identity import Roster
from secagg.intake import Each
from secagg.outputs import Aborted, AggregatorOutput, Dispatch, Excluded
from secagg.plan import RoundPlan
from secagg.records import encode
from secagg.result import Result
from secagg.scheme import upload_bytes
from secagg.spool import MemorySpool, Spool
from secagg.traffic import traffic
from secagg_embed.tensors import Tensors, added
from secagg_embed.wire import (
    Declined,
    Deliver,
    Hello,
    Introduction,
    Offer,
    Reply,
    RoundEnding,
    Said,
    printable,
)

Requests = dict[str, bytes]

_SLACK = 1 << 16
_PIECE = 1 << 20
_FOR_EVER = float("inf")
_MOST_MESSAGES = 16
_MOST_REFUSALS = 20
INTRODUCTION = "introduction"


@dataclass(frozen=True, slots=True)
class Refused:
    """Something that a tenant sent and that was not taken; the round is as it was before."""

    tenant: str
    step: Step
    reason: str


class CoordinatedRound:
    """One round at the coordinator; see the module's docstring for the order of calls.

    `spool`, `past_disputes` and `each` are the aggregator's. By default uploads wait in memory.
    """

    def __init__(
        self,
        plan: RoundPlan,
        roster: Roster,
        *,
        spool: Spool | None = None,
        past_disputes: Mapping[str, int] | None = None,
        each: Each = map,
    ) -> None:
        self.plan = plan
        self.error: SecaggError | None = None
        self.excluded: list[Excluded] = []
        self.refused: list[Refused] = []  # of each tenant the first twenty
        self.declined: dict[str, str] = {}
        self._aggregator = Aggregator(
            plan, roster, spool=spool or MemorySpool(), past_disputes=past_disputes, each=each
        )
        # `traffic` is of the average tenant: who seals a pad for each peer sends almost twice that.
        self._longest = {step: 2 * one.up + _SLACK for step, one in traffic(plan).items()}
        self._asked: Step | None = None
        self._next: Requests = {}
        self._encoded: tuple[tuple[bytes, ...], bytes] = ((), b"")
        self._refusals: Counter[str] = Counter()

    # ------------------------------------------------------------------ how things stand

    @property
    def step(self) -> Step:
        """The step that runs."""
        return self._aggregator.step

    @property
    def result(self) -> Result | None:
        """What was opened."""
        return self._aggregator.result

    @property
    def over(self) -> bool:
        """Whether the round has ended, one way or the other."""
        return self.result is not None or self.error is not None

    @property
    def waiting(self) -> tuple[str, ...]:
        """Who was asked in this exchange and has not answered: ask again, or close."""
        if self.over or self._asked is not self.step:
            return ()
        return self._aggregator.unanswered

    @property
    def trains(self) -> bool:
        """Whether this exchange's requests make tenants train: send the model beside them."""
        return self.step is Step.MASKED_INPUT

    @property
    def transcript(self) -> bytes:
        """The hash-chained signed messages (`secagg.transcript`)."""
        return self._aggregator.transcript

    def outcome(self) -> Result:
        """The opened sum.

        Raises:
            RoundAborted, ProtocolError: nothing was opened; says why, and who declined and why.
        """
        if self.result is not None:
            return self.result
        raise self._explained(self.error or UsageError("this round has not ended yet"))

    def applied(self, tensors: Tensors) -> dict[str, Any]:
        """The model after the round: `tensors` and the mean delta. Integer tensors stay.

        Raises:
            RoundAborted, ProtocolError: nothing was opened, as `outcome`.
            ConfigError: these are not the tensors of the plan's layout.
        """
        return added(tensors, self.outcome().mean(), self.plan.layout)

    # ------------------------------------------------------------------ the exchanges

    def begin(self) -> Requests:
        """The first exchange: the plan, to the whole cohort."""
        self._aggregator.start(0.0)
        self._asked = self.step
        return dict.fromkeys(self.plan.cohort, encode(Offer(self.plan.encode())))

    def take(self, tenant: str, reply: bytes | Reply) -> bool:
        """Take one reply of `tenant`, the name that the stack authenticated, as it arrives.

        False: it did not answer, and may be asked again. What was wrong is in `refused`.
        """
        if self.over:
            return True
        try:
            given = reply if isinstance(reply, Reply) else Reply.decode(reply)
            head = given.read()
        except MalformedMessage as error:
            self._refuse(tenant, error)
            return False
        match head:
            case Said(context=context) if context == self.plan.context:
                self._hear(tenant, head, given.upload)
            case Declined(context=context) if context == self.plan.context:
                self._let_go(tenant, printable(head.reason))
            case _:
                self._refuse(tenant, MalformedMessage("this reply belongs to another request"))
        return tenant not in self.waiting

    def close(self) -> Requests:
        """End the exchange: whoever has not answered is a dropout. Empty: the round is over."""
        if self.waiting:
            self._execute(self._aggregator.on_deadline(_FOR_EVER))
        requests, self._next = self._next, {}
        self._asked = self.step
        return {} if self.over else requests

    def abort(self, reason: str) -> None:
        """End the round by decision of the host."""
        self._execute(self._aggregator.abort(reason))

    def endings(self) -> Requests:
        """Once it is over: what tells every tenant so. The replies need not be awaited."""
        if not self.over:
            raise UsageError("this round has not ended yet")
        survivors = self.result.survivors if self.result is not None else ()
        reason = printable(str(self.error or ""))
        ending = RoundEnding(self.plan.context, int(self.result is not None), reason, survivors)
        return dict.fromkeys(self.plan.cohort, encode(ending))

    # ------------------------------------------------------------------ inside

    def _hear(self, tenant: str, said: Said, upload: bytes | bytearray | memoryview) -> None:
        if len(said.messages) + len(said.committed) > _MOST_MESSAGES:
            self._refuse(tenant, MalformedMessage("more messages in one reply than a round has"))
            return
        for message in said.messages:
            self._receive(tenant, message)
        if upload:
            self._absorb(tenant, memoryview(upload))
        for message in said.committed:
            self._receive(tenant, message)

    def _receive(self, tenant: str, message: bytes) -> None:
        if self.over:
            return
        try:
            if len(message) > self._longest[self.step]:
                raise MalformedMessage(
                    f"{len(message)} bytes; no message of {self.step.label} has so many"
                )
            self._execute(self._aggregator.receive(tenant, message, 0.0))
        except ProtocolError as error:
            self._refuse(tenant, error)

    def _absorb(self, tenant: str, upload: memoryview) -> None:
        """The rest of an upload: where it broke off before, it goes on."""
        try:
            if len(upload) != upload_bytes(self.plan):
                raise MalformedMessage(
                    f"an upload of {len(upload)} bytes, the plan has {upload_bytes(self.plan)}"
                )
            place = self._aggregator.committed(tenant)
            while place < len(upload):
                piece = upload[place : place + _PIECE]
                place = self._aggregator.absorb(tenant, place, piece)
        except ProtocolError as error:
            self._refuse(tenant, error)

    def _let_go(self, tenant: str, reason: str) -> None:
        if tenant in self.waiting:
            self.declined[tenant] = reason
            self._execute(self._aggregator.on_silence(tenant, 0.0))

    def _refuse(self, tenant: str, error: SecaggError) -> None:
        if self._refusals[tenant] < _MOST_REFUSALS:
            self._refusals[tenant] += 1
            self.refused.append(Refused(tenant, self.step, str(error)))

    def _execute(self, outputs: list[AggregatorOutput]) -> None:
        for output in outputs:
            match output:
                case Dispatch(recipient=recipient):
                    self._next[recipient] = self._request(output)
                case Excluded():
                    self.excluded.append(self._with_reason(output))
                case Aborted(error=error):
                    self.error = error
                case _:
                    pass  # persisting: a restart ends this round; finished: the aggregator has it

    def _request(self, dispatch: Dispatch) -> bytes:
        """What is the same for everybody, megabytes in a large cohort, is encoded and kept once."""
        if dispatch.parts != self._encoded[0]:
            encoded = encode(Deliver(self.plan.context, dispatch.message))
            self._encoded = dispatch.parts, encoded
        return self._encoded[1]

    def _with_reason(self, excluded: Excluded) -> Excluded:
        """A tenant that declined said why; the aggregator knows only that it is gone."""
        reason = self.declined.get(excluded.participant)
        if reason is None or excluded.evidence:
            return excluded
        return Excluded(excluded.participant, excluded.step, f"it declined: {reason}")

    def _explained(self, error: SecaggError) -> SecaggError:
        """The error, with what the tenants said: in a stack, this is all that its user sees."""
        if getattr(error, "__notes__", None):  # this very error was explained before
            return error
        left = [f"{one.participant}: {one.reason}" for one in self.excluded]
        wrong = [f"{one.tenant}: {one.reason}" for one in self.refused]
        for title, lines in (("left the round", left), ("sent what was refused", wrong)):
            if lines:
                shown = lines[:5] + [f"and {len(lines) - 5} more"] * (len(lines) > 5)
                error.add_note(f"{title}: " + "; ".join(shown))
        return error


def hello(nonce: bytes) -> bytes:
    """The request that asks a node whose it is; `nonce` is 32 random bytes, fresh for each node."""
    return encode(Hello(nonce))


def read_hello(roster: Roster, nonce: bytes, reply: bytes | Reply) -> str:
    """The tenant whose node answered `hello(nonce)`, proven by its signature (C46).

    Raises:
        ProtocolError: it is no answer to this, or not signed by a member of the roster.
    """
    given = reply if isinstance(reply, Reply) else Reply.decode(reply)
    match given.read():
        case Introduction(tenant=tenant, signature=signature) if tenant in roster:
            if roster[tenant].verify("", INTRODUCTION, nonce, roster.digest, signature):
                return tenant
            raise ProtocolError(
                f"a node says that it is {tenant!r}, and its signature does not hold: it has "
                "another roster, or not this tenant's key"
            )
        case Introduction(tenant=tenant):
            raise ProtocolError(f"a node is {tenant!r}, who is not in the roster")
        case _:
            raise MalformedMessage("a node did not answer with its name")


def ended(error: SecaggError) -> bool:
    """Whether an error says that a round ended without a sum, and another may succeed."""
    return isinstance(error, RoundAborted | ProtocolError)
