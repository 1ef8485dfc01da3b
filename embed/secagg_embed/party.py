"""A tenant's side of the exchanges: one request in, one reply out, and the training in between.

    with Party.open(folder) as party:
        reply = party.answer(request, contribute)     # whatever the request is

`contribute(plan)` trains and returns the delta. It is called once a round, in the exchange of the
agreed view. Everything that has to survive lies in the folder, so each request may be answered by a
process of its own; a request that comes again is answered with the same bytes.

A refusal (by the tenant's policy, or of a message that no honest coordinator sends) is a reply too,
with the reason. What goes wrong in `contribute` leaves the round and is raised to the host, which
tells the coordinator that it went wrong, and nothing of what (`unable`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from secagg.encoding import Values
from secagg.errors import (
    ConfigError,
    MalformedMessage,
    PolicyRefused,
    SecaggError,
    Step,
    UsageError,
)
from secagg.identity import Identity, Roster, sha256
from secagg.ledger import Act, Entry, Ledger
from secagg.messages import AgreedView, decode_message
from secagg.outputs import ParticipantOutput, Send
from secagg.participant import Participant
from secagg.plan import RoundPlan
from secagg.policy import Policy
from secagg.records import encode
from secagg.secret import Randomness, SealKey
from secagg.sqlite_ledger import SqliteLedger
from secagg_embed.exchange import INTRODUCTION
from secagg_embed.folder import TenantFolder
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

log = logging.getLogger("secagg_embed")

_MUCH_CLIPPING = 0.01
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one round gets of a tenant: (d,) float32 or float64, finite, and its weight.

    The vector is read until the reply is made, and must not leave the tenant by any other way.
    """

    vector: Values
    weight: int = 1

    def __repr__(self) -> str:
        return f"Contribution(<{len(self.vector)} values>)"


Contribute = Callable[[RoundPlan], Contribution]


class Rounds(Protocol):
    """Where a running round's plan, seal key and upload are kept between two requests."""

    def create(self, plan: RoundPlan) -> SealKey:
        """Keep the plan, and make the key that seals the round's states."""

    def load(self, context: bytes) -> tuple[RoundPlan, SealKey] | None:
        """Both again; None where the round has ended or never began here."""

    def keep_reply(self, context: bytes, reply: Reply) -> None:
        """The reply with the upload, which may be asked for again."""

    def reply(self, context: bytes) -> Reply | None:
        """The kept reply."""

    def forget(self, context: bytes) -> None:
        """Destroy the round's key and delete what was kept."""

    def contexts(self) -> tuple[bytes, ...]:
        """The rounds of which something is kept."""


class MemoryRounds:
    """For processes that live as long as their rounds."""

    def __init__(self, randomness: Randomness = os.urandom) -> None:
        self._randomness = randomness
        self._kept: dict[bytes, tuple[RoundPlan, SealKey]] = {}
        self._replies: dict[bytes, Reply] = {}

    def create(self, plan: RoundPlan) -> SealKey:
        """See `Rounds`."""
        key = SealKey(self._randomness(SealKey.LENGTH or 32))
        self._kept[plan.context] = plan, key
        return key

    def load(self, context: bytes) -> tuple[RoundPlan, SealKey] | None:
        """See `Rounds`."""
        return self._kept.get(context)

    def keep_reply(self, context: bytes, reply: Reply) -> None:
        """See `Rounds`."""
        self._replies[context] = reply

    def reply(self, context: bytes) -> Reply | None:
        """See `Rounds`."""
        return self._replies.get(context)

    def forget(self, context: bytes) -> None:
        """See `Rounds`."""
        self._kept.pop(context, None)
        self._replies.pop(context, None)

    def contexts(self) -> tuple[bytes, ...]:
        """See `Rounds`."""
        return tuple(self._kept)


class Party:
    """One tenant in whatever rounds it is asked to take part in, one at a time.

    See the module's docstring. `rounds` keeps what a running round needs; the ledger has to outlive
    it (see `secagg.ledger`). Threads may share a party: one request is answered at a time, so that
    one that is repeated while its first answer is still made waits, and gets the same bytes.
    """

    def __init__(
        self,
        identity: Identity,
        roster: Roster,
        *,
        policy: Policy,
        ledger: Ledger,
        rounds: Rounds | None = None,
        randomness: Randomness = os.urandom,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._identity = identity
        self._roster = roster
        self._policy = policy
        self._ledger = ledger
        self._rounds = rounds or MemoryRounds(randomness)
        self._randomness = randomness
        self._now = now
        self._running: Participant | None = None
        self._turn = threading.RLock()
        self._closed = False

    @classmethod
    def open(cls, folder: Path | str) -> Party:
        """The tenant of a folder (`secagg_embed.folder`); close it, or use it in a `with`.

        Raises:
            ConfigError: a file is missing or cannot be used; says which and what makes it.
            LedgerInUse: another process has this tenant's ledger open; it may be free soon.
        """
        try:
            home = TenantFolder(Path(folder))
        except TypeError:
            raise ConfigError(f"{folder!r} is no folder; give the tenant's, by its path") from None
        identity, roster, policy = home.identity(), home.roster(), home.policy()
        return cls(identity, roster, policy=policy, rounds=home.rounds(), ledger=home.ledger())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder back; a round that runs goes on when it is opened again."""
        with self._turn:
            self._running = None
            if isinstance(self._ledger, SqliteLedger) and not self._closed:
                self._closed = True
                self._ledger.close_file()

    @property
    def tenant(self) -> str:
        """Its tenant id."""
        return self._identity.tenant

    def __repr__(self) -> str:
        return f"Party({self.tenant!r})"

    # ------------------------------------------------------------------ one request

    def answer(self, request: bytes, contribute: Contribute | None = None) -> Reply:
        """The reply to one request of the coordinator.

        Raises:
            MalformedMessage: these bytes are no request; nothing has changed.
            UsageError: it is time to train, and there is no `contribute`; or the party is closed.
            Exception: whatever `contribute` raised, or a `UsageError` about what it returned. The
                round has been left; `unable` makes the reply that says so, and no more.
        """
        asked = decode_request(request)
        with self._turn:
            if self._closed:
                raise UsageError(f"{self!r} is closed: its folder has to be opened again")
            match asked:
                case Hello(nonce=nonce):
                    return self._introduce(nonce)
                case Offer(plan=data):
                    return self._join(data)
                case Deliver(context=context, message=message):
                    return self._deliver(context, message, contribute)
                case RoundEnding(context=context):
                    self._leave(context, "the coordinator ended it")
                    return Reply(encode(Said(context, ())))

    def expects_training(self, request: bytes) -> bool:
        """Whether answering this request will call `contribute`."""
        match decode_request(request):
            case Deliver(context=context, message=message):
                return _is_view(message) and self._rounds.reply(context) is None
            case _:
                return False

    # ------------------------------------------------------------------ each kind of request

    def _introduce(self, nonce: bytes) -> Reply:
        signature = self._identity.sign("", INTRODUCTION, nonce, self._roster.digest)
        return Reply(encode(Introduction(self.tenant, signature)))

    def _join(self, data: bytes) -> Reply:
        plan = RoundPlan.decode(data)
        entries = self._entries(plan.context)
        if entries and self._rounds.load(plan.context) is not None:
            return _said(plan.context, [entries[Act.JOINED].message])  # offered again
        try:
            self._policy.check(plan, self.tenant, self._last_round)
            self._require_no_leap(plan)
            for other in self._rounds.contexts():
                self._leave(other, "another round was offered")
            participant = self._participant(plan, self._rounds.create(plan))
            outputs = participant.start()
        except SecaggError as error:
            self._rounds.forget(plan.context)
            return declining(plan.context, error)
        self._running = participant
        return _said(plan.context, _sent(outputs))

    def _deliver(self, context: bytes, message: bytes, contribute: Contribute | None) -> Reply:
        if (again := self._said_before(context, message)) is not None:
            return again
        try:
            participant = self._resumed(context)
            said = _sent(participant.receive(message))
        except SecaggError as error:
            return declining(context, error)
        if participant.step is Step.MASKED_INPUT:
            return self._contribute(participant, contribute)
        if self._entries(context)[-1].act == Act.ANSWERED:
            self._forget(context)
        return _said(context, said)

    def _contribute(self, participant: Participant, contribute: Contribute | None) -> Reply:
        plan = participant.plan
        if contribute is None:
            raise UsageError("the tenants have agreed, and it is time to train: give `contribute`")
        try:
            given = contribute(plan)
            announced = _sent(participant.submit(given.vector, given.weight))
            upload = bytearray(participant.upload_size)
            place = 0
            for piece in participant.upload():
                upload[place : place + len(piece)] = piece
                place += len(piece)
            self._warn_of_clipping(participant)
            self._warn_of_rounding(plan, given)
            committed = _sent(participant.finish_upload())
            reply = Reply(encode(Said(plan.context, tuple(announced), tuple(committed))), upload)
            self._rounds.keep_reply(plan.context, reply)
        except BaseException:
            self._leave(plan.context, "its contribution could not be made")
            raise
        return reply

    # ------------------------------------------------------------------ inside

    def _require_no_leap(self, plan: RoundPlan) -> None:
        """Rounds are numbered by the clock: one offer of a far number would end all later ones."""
        if plan.round_number > self._now() + _DAY_S:
            raise PolicyRefused(
                "round_number",
                f"{plan.round_number} is more than a day after the Unix clock of this tenant; "
                "embedded rounds are numbered by the clock, so that an honest one can follow",
            )

    @property
    def _last_round(self) -> int:
        return self._ledger.last_round(self._identity.public_key)

    def _entries(self, context: bytes) -> tuple[Entry, ...]:
        return self._ledger.entries(self._identity.public_key, context)

    def _said_before(self, context: bytes, message: bytes) -> Reply | None:
        """The same request gets the same bytes, whichever process asks the ledger (C35)."""
        request = sha256(message)
        for entry in self._entries(context):
            if entry.request == request:
                if entry.act == Act.UPLOAD_BEGUN:
                    return self._rounds.reply(context)
                return _said(context, [entry.message])
        return None

    def _resumed(self, context: bytes) -> Participant:
        """The participant of this round, from memory or from its sealed state.

        Raises:
            UsageError: this tenant is not in that round, or no longer.
        """
        if self._running is not None and self._running.plan.context == context:
            return self._running
        kept, entries = self._rounds.load(context), self._entries(context)
        if kept is None or not entries or not entries[-1].state:
            raise UsageError(f"{self.tenant!r} takes no part in this round, or no longer")
        plan, key = kept
        self._running = Participant.restore(
            entries[-1].state, key, plan=plan, identity=self._identity, roster=self._roster,
            policy=self._policy, ledger=self._ledger, randomness=self._randomness,
        )  # fmt: skip
        return self._running

    def _participant(self, plan: RoundPlan, key: SealKey) -> Participant:
        return Participant(
            plan, identity=self._identity, roster=self._roster, policy=self._policy,
            ledger=self._ledger, randomness=self._randomness, seal_key=key,
        )  # fmt: skip

    def _leave(self, context: bytes, reason: str) -> None:
        """Drop the round's secrets; the ledger refuses to continue it."""
        if self._running is not None and self._running.plan.context == context:
            self._running.abort(reason)
        self._ledger.close(self._identity.public_key, context)
        self._forget(context)

    def _forget(self, context: bytes) -> None:
        self._rounds.forget(context)
        if self._running is not None and self._running.plan.context == context:
            self._running = None

    def _warn_of_rounding(self, plan: RoundPlan, given: Contribution) -> None:
        """As above: a clip or a largest weight far from the real ones leaves nothing to learn."""
        if _below_resolution(plan, given):
            log.warning(
                "%s: this update is below the round's resolution and vanishes in rounding; ask for "
                "a clip (now %g) near its values and a max_weight (now %d) near the weights",
                self.tenant,
                plan.quantiser.clip,
                plan.max_weight,
            )

    def _warn_of_clipping(self, participant: Participant) -> None:
        """Said here and never sent: how much was cut tells of the data."""
        share = participant.saturated / participant.plan.layout.size
        if share > _MUCH_CLIPPING:
            log.warning(
                "%s: %.1f%% of this update's values are beyond the round's clip of %g and were "
                "cut; ask for a larger clip, or train fewer steps",
                self.tenant,
                100 * share,
                participant.plan.quantiser.clip,
            )


def examples_in(given: object) -> int | None:
    """What a training reported as its number of examples; None: no whole number of 1 or more."""
    counted: Any = given
    try:
        count = 0 if isinstance(given, str | bytes) else int(counted)
        return count if count >= 1 and count == counted else None
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last is PyTorch's
        return None


def weight_in(reported: object, most: int) -> int | None:
    """A metric as a weight of at most `most`, without its fraction; None: no number of 1 or more.

    Metrics of stacks are floats as often as not; `examples_in` is for what a function returns.
    """
    if isinstance(reported, bool) or not isinstance(reported, Real):
        return None
    number: Any = reported
    return int(min(number, most)) if number >= 1 else None  # NaN is not


def _below_resolution(plan: RoundPlan, given: Contribution) -> bool:
    """Whether all of an update is less than one level: rounding leaves noise of it."""
    largest = float(np.abs(given.vector).max(initial=0))
    return 0 < largest * given.weight / plan.max_weight < plan.quantiser.scale


def _sent(outputs: list[ParticipantOutput]) -> list[bytes]:
    return [output.message for output in outputs if isinstance(output, Send)]


def _said(context: bytes, messages: list[bytes]) -> Reply:
    return Reply(encode(Said(context, tuple(messages))))


def _is_view(message: bytes) -> bool:
    try:
        return isinstance(decode_message(message), AgreedView)
    except MalformedMessage:
        return False
