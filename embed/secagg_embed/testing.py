"""Holding a stack's adapter to the claims that every transport has to keep.

`secagg.testing.transport_conformance` states what a transport must do, over the kit's tenants,
honest and deviating. `AnsweringTenant` lets one of them answer requests as `Party` does, and
`ExchangeTransport` is the transport around your code that carries a round:

    def carry(coordinated, tenants):      # your adapter: run the round to its end over your stack,
        ...                               # tenants[name].answer(request) where a party would answer

    @pytest.mark.parametrize("claim", TRANSPORT_CLAIMS)
    def test_my_stack(claim):
        claim(ExchangeTransport(carry))

Where a claim breaks a tenant's connection, `answer` raises `ConnectionLost` once: the reply did not
leave, and whoever asks again gets it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from secagg.errors import SecaggError
from secagg.messages import decode_message
from secagg.plan import RoundPlan
from secagg.records import encode
from secagg.testing.cohorts import Cohort, cohort
from secagg.testing.faults import DOWN_NAMES, UPLOAD_CHUNK
from secagg.testing.tenant import SimulatedTenant
from secagg.testing.transport_conformance import Case, Cut, Ending, Report
from secagg_embed.exchange import INTRODUCTION, CoordinatedRound
from secagg_embed.party import Contribute
from secagg_embed.plain import run_round
from secagg_embed.wire import (
    Deliver,
    Hello,
    Introduction,
    Offer,
    Reply,
    RoundEnding,
    Said,
    declining,
    decode_request,
)

_MOST = 1 << 30


class ConnectionLost(OSError):
    """The connection broke before the reply left. The tenant's process lives on."""


class AnsweringTenant:
    """One of the kit's tenants behind `Party`'s method; `told` is how it heard of the round's end.

    It sends what it wants to send, right or wrong, and trains nothing: its input is its own.
    """

    def __init__(self, tenant: SimulatedTenant, cuts: tuple[Cut, ...] = ()) -> None:
        self.tenant = tenant
        self.told: Ending | None = None
        self._cuts = list(cuts)
        self._replies: dict[bytes, Reply] = {}

    @property
    def name(self) -> str:
        """Its tenant id."""
        return self.tenant.name

    def expects_training(self, request: bytes) -> bool:
        """Whether a party would train at this request."""
        match decode_request(request):
            case Deliver(message=message):
                return DOWN_NAMES[type(decode_message(message))] == "agreed_view"
            case _:
                return False

    def answer(self, request: bytes, contribute: Contribute | None = None) -> Reply:
        """See `Party.answer`; the input is the tenant's own, whatever `contribute` would be.

        Raises:
            ConnectionLost: once for each cut that is due.
        """
        reply = self._replies.get(request) or self._answered(request)
        self._replies[request] = reply
        self._break_if_due(request, reply)
        return reply

    def _answered(self, request: bytes) -> Reply:
        match decode_request(request):
            case Hello(nonce=nonce):
                return self._introduced(nonce)
            case Offer(plan=plan):
                context = RoundPlan.decode(plan).context
                return self._said(context, lambda: self.tenant.offer(plan))
            case Deliver(context=context, message=message):
                return self._said(context, lambda: self.tenant.receive(message))
            case RoundEnding(opened=opened, context=context):
                self.told = "opened" if opened else "aborted"
                return Reply(encode(Said(context, ())))

    def _introduced(self, nonce: bytes) -> Reply:
        digest = self.tenant.roster.digest
        signature = self.tenant.identity.sign("", INTRODUCTION, nonce, digest)
        return Reply(encode(Introduction(self.name, signature)))

    def _said(self, context: bytes, act: Callable[[], list[bytes]]) -> Reply:
        try:
            messages = act()
        except SecaggError as error:
            self.tenant.failure = error
            return declining(context, error)
        if not self.tenant.ready:
            return Reply(encode(Said(context, tuple(messages))))
        announced = [*messages, *self.tenant.submit()]
        upload = self.tenant.piece(0, _MOST)
        while piece := self.tenant.piece(len(upload), _MOST):
            upload += piece
        committed = self.tenant.finish_upload()
        return Reply(encode(Said(context, tuple(announced), tuple(committed))), upload)

    def _break_if_due(self, request: bytes, reply: Reply) -> None:
        match decode_request(request):
            case Deliver(message=message):
                label = DOWN_NAMES[type(decode_message(message))]
            case _:
                return
        for cut in self._cuts:
            if cut.after == label or (cut.after == UPLOAD_CHUNK and reply.upload):
                self._cuts.remove(cut)
                raise ConnectionLost(f"the connection of {self.name!r} broke before it answered")


Carry = Callable[[CoordinatedRound, Mapping[str, AnsweringTenant]], None]
"""Run a round to its end and tell the tenants; an error that ended it stays in the round."""


class ExchangeTransport:
    """An adapter as the transport of `TRANSPORT_CLAIMS`; see the module's docstring.

    `step_ms` bounds nothing here: the adapter decides how long it waits.
    """

    step_ms = 60_000

    def __init__(self, carry: Carry, members: Cohort | None = None) -> None:
        self._carry = carry
        self._members = members or cohort(5)

    @property
    def members(self) -> Cohort:
        """Five tenants."""
        return self._members

    def run(self, case: Case) -> Report:
        """See `secagg.testing.transport_conformance.Transport`."""
        tenants = {
            name: AnsweringTenant(tenant, tuple(c for c in case.cuts if c.tenant == name))
            for name, tenant in case.tenants.items()
        }
        coordinated = CoordinatedRound(case.plan, self._members.roster)
        self._carry(coordinated, tenants)
        told = {name: tenant.told for name, tenant in tenants.items() if tenant.told is not None}
        return Report(coordinated.result, told)


def carry_by_calls(coordinated: CoordinatedRound, tenants: Mapping[str, AnsweringTenant]) -> None:
    """The smallest adapter: requests and replies are arguments and results."""

    def ask(requests: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
        replies: list[tuple[str, bytes]] = []
        for name, request in requests.items():
            try:
                replies.append((name, tenants[name].answer(request).encode()))
            except ConnectionLost:
                continue
        return replies

    try:
        run_round(coordinated, ask)
    except SecaggError:
        if coordinated.error is None:
            raise
