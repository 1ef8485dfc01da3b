"""The server's part, whichever of NVFLARE's APIs carries it: who is there, and round after round.

A round is six exchanges with every site (`secagg_embed.exchange`). Who has not answered in time is
a dropout, and the round goes on without it where the plan allows; in the next it is asked again.
How a round ended is told with the first request of the next.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from secagg.errors import ConfigError, MalformedMessage, ProtocolError, Step
from secagg.identity import Roster
from secagg_embed.exchange import CoordinatedRound, Requests, hello, read_hello
from secagg_embed.nvflare.shareables import Message, Settings, settings_bytes
from secagg_embed.tensors import Tensors, added
from secagg_embed.terms import Terms, next_round_number, require_terms
from secagg_embed.wire import Reply

log = logging.getLogger("secagg_embed")

NO_REPLY = Reply(b"")
"""Stands for an answer that was an error: the site lives, and may be asked again."""

_NONCE = 32
_LOOK_S = 1.0
_ATTEMPTS = 2

Arrived = Callable[[str, Reply], None]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the server waits, in seconds: for an exchange, and for the one with training in it.

    Once `min_responses` sites have answered in an exchange, the others get `wait_after_s` more; 0
    means that everybody is waited for, as when the sites are asked who they are.
    """

    exchange_s: float = 60
    training_s: float = 3600
    min_responses: int = 0
    wait_after_s: float = 10


class Sites(Protocol):
    """A job's sites, as one of NVFLARE's APIs reaches them."""

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are there now."""

    def send(
        self, messages: Mapping[str, Message], timeout_s: float, arrived: Arrived
    ) -> Callable[[], None]:
        """Start to ask; `arrived` is called from any thread. Returns what gives up on the rest."""

    def require_running(self) -> None:
        """Raise what ends the job's code if the job was aborted."""


@dataclass(frozen=True, slots=True)
class Averaged:
    """A round's outcome: the new model, and over whom it is the mean."""

    model: dict[str, Any] = field(repr=False)
    survivors: tuple[str, ...]
    total_weight: int
    transcript: bytes = field(repr=False)


class ProtectedRounds:
    """Rounds of federated averaging over the sites of one job.

    `strangers` says, of each site that takes no part, why its answer to "who are you" was refused.
    """

    def __init__(
        self, sites: Sites, roster: Roster, terms: Terms, patience: Patience | None = None
    ) -> None:
        require_terms(terms)
        self.strangers: dict[str, str] = {}
        self._sites = sites
        self._roster = roster
        self._terms = terms
        self._patience = patience or Patience()
        self._site_of: dict[str, str] = {}
        self._nonces: dict[str, bytes] = {}
        self._endings: Requests = {}
        self._last = 0

    def average(self, model: Tensors, settings: Settings | None = None) -> Averaged:
        """One round: every site trains on `model`, and the weighted mean of the changes is added.

        `settings` is what else the sites are told; the plan names it with the model.

        Raises:
            RoundAborted, ProtocolError: nothing was opened; says why, and who left and why.
            ConfigError: no round can be planned over the sites that are there.
        """
        self.meet()
        told = settings_bytes(settings or {})
        coordinated = self._planned(model, told)
        self.carry(coordinated, model, told)
        result = coordinated.outcome()
        log.info(
            "round %d: the mean over %d of %d tenants", coordinated.plan.round_number,
            len(result.survivors), len(coordinated.plan.cohort),
        )  # fmt: skip
        return Averaged(
            added(model, result.mean(), coordinated.plan.layout),
            result.survivors,
            result.total_weight,
            coordinated.transcript,
        )

    def finish(self) -> None:
        """Tell the sites how the last round ended; their answers matter to nobody."""
        messages = {self._site_of[one]: Message((told,)) for one, told in self._endings.items()}
        self._endings = {}
        for _ in self._replies(messages, min(10, self._patience.exchange_s)):
            pass

    # ------------------------------------------------------------------ who is there

    def meet(self) -> None:
        """Ask the sites who they are, once; those that come later are asked beside an offer."""
        if not self._site_of:
            for site, reply in self._replies(self._hellos(), self._patience.exchange_s, enough=0):
                self._know(site, reply)

    def _hellos(self) -> dict[str, Message]:
        """To each site that is not known yet: a nonce of its own, which it signs."""
        known = set(self._site_of.values())
        strangers = [site for site in self._sites.names if site not in known]
        self._nonces = {site: os.urandom(_NONCE) for site in strangers}
        return {site: Message((hello(nonce),)) for site, nonce in self._nonces.items()}

    def _know(self, site: str, reply: Reply) -> None:
        if reply is NO_REPLY:
            self._refuse(
                site, "it did not say who it is; the log of its job has the reason "
                "(no folder: is SECAGG_FOLDER set there?)",
            )  # fmt: skip
            return
        try:
            tenant = read_hello(self._roster, self._nonces[site], reply)
        except ProtocolError as error:
            self._refuse(site, str(error))
            return
        if (other := self._site_of.setdefault(tenant, site)) != site:
            self._refuse(site, f"tenant {tenant!r} is at site {other!r} already")
        else:
            self.strangers.pop(site, None)

    def _refuse(self, site: str, reason: str) -> None:
        self.strangers[site] = reason
        log.warning("site %s takes no part: %s", site, reason)

    def _planned(self, model: Tensors, settings: bytes) -> CoordinatedRound:
        cohort = tuple(sorted(self._site_of))
        if not cohort:
            refused = self.strangers or "none answered"
            raise ConfigError(f"no site of this job is a tenant of the roster's: {refused}")
        self._last = next_round_number(self._last, time.time())
        try:
            return self._terms.round(
                self._roster, model, round_number=self._last, cohort=cohort, settings=settings
            )
        except ConfigError as error:
            error.add_note(f"tenants that are there: {list(cohort)}; not taken: {self.strangers}")
            raise

    # ------------------------------------------------------------------ one round

    def carry(self, coordinated: CoordinatedRound, model: Tensors, settings: bytes = b"") -> None:
        """One round to its end, over sites that are known; an error that ended it stays in it."""
        requests = coordinated.begin()
        beside = self._hellos()
        while requests:
            training = (model, settings) if coordinated.step is Step.MASKED_INPUT else ()
            ask = set(coordinated.waiting)
            for _ in range(_ATTEMPTS):
                messages = {
                    name: Message(self._with_ending(name, requests), *training) for name in ask
                }
                spoke = self._exchange(coordinated, messages, beside)
                beside = {}
                if not (ask := spoke & set(coordinated.waiting)):
                    break
            requests = coordinated.close()
        self._endings = coordinated.endings()

    def _with_ending(self, tenant: str, requests: Requests) -> tuple[bytes, ...]:
        """Its request, and before the first of a round, how the last one ended."""
        told = self._endings.pop(tenant, None)
        return (requests[tenant],) if told is None else (told, requests[tenant])

    def _exchange(
        self,
        coordinated: CoordinatedRound,
        messages: Mapping[str, Message],
        beside: Mapping[str, Message],
    ) -> set[str]:
        """Ask tenants once; returns who said anything. Whoever is silent is not asked again."""
        tenants = {self._site_of[tenant]: tenant for tenant in messages}
        trains = coordinated.step is Step.MASKED_INPUT
        timeout_s = self._patience.training_s if trains else self._patience.exchange_s
        spoke = set()
        to_sites = {site: messages[tenant] for site, tenant in tenants.items()}
        for site, reply in self._replies(to_sites, timeout_s, beside):
            if site in tenants:
                spoke.add(tenants[site])
                coordinated.take(tenants[site], reply)
            else:
                self._know(site, reply)
        return spoke

    def _replies(
        self,
        messages: dict[str, Message],
        timeout_s: float,
        beside: Mapping[str, Message] | None = None,
        *,
        enough: int | None = None,
    ) -> Iterator[tuple[str, Reply]]:
        """(site, reply) as they come, until all of `messages` are answered or time is up.

        Nobody is waited for in `beside`.
        """
        arrived: SimpleQueue[tuple[str, Reply]] = SimpleQueue()
        silent = set(messages)
        need = self._patience.min_responses if enough is None else enough
        until = time.monotonic() + timeout_s
        give_up = self._sites.send(
            {**messages, **(beside or {})},
            timeout_s,
            lambda site, reply: arrived.put((site, reply)),
        )
        try:
            while silent and (left_s := until - time.monotonic()) > 0:
                self._sites.require_running()
                try:
                    site, reply = arrived.get(timeout=min(left_s, _LOOK_S))
                except Empty:
                    continue
                silent.discard(site)
                yield site, reply
                if 0 < need <= len(messages) - len(silent):
                    until = min(until, time.monotonic() + self._patience.wait_after_s)
        finally:
            give_up()


def read_or(read: Callable[[Any], Reply], given: Any) -> Reply:
    """The reply in what a site sent; `NO_REPLY` for what is none: the site may be asked again."""
    try:
        return read(given)
    except MalformedMessage as error:
        log.warning("an answer was not taken: %s", error)
        return NO_REPLY
