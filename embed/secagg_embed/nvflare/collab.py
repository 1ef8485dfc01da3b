"""The Collab API: a client class that answers the exchanges, and a server's rounds over all sites.

    class Client(SecureClient):                      # a site
        def train(self, weights):                    # yours; it is not published
            ...
            return new_weights, number_of_examples

    class Server:                                    # the server
        @collab.main
        def run(self):
            rounds = SecureAveraging("roster.bin", Terms(clip=0.05, max_weight=1000))
            with rounds:
                for _ in range(5):
                    weights = rounds.average(weights).model
            return weights

    CollabRecipe("job", server=Server(), client=Client()).run(environment)

NVFLARE's filters see no call of Collab, the site's own neither (`ProtectedOnly` refuses Collab jobs
unless its `collab` is set): what a published method returns leaves the site, and so does the
traceback of what it raises. So publish nothing that returns a model or data of the site. Code of a
Collab job comes with the job and runs in the site's process (`secagg_embed.nvflare.site`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Self

from nvflare.collab import collab
from nvflare.collab.api.context import Context
from nvflare.collab.api.decorators import is_publish
from nvflare.collab.api.exceptions import CollabCallError, RunAborted
from nvflare.collab.api.proxy import Proxy

from secagg.errors import ConfigError
from secagg.identity import Roster
from secagg_embed.folder import as_roster
from secagg_embed.nvflare.rounds import (
    NO_REPLY,
    Arrived,
    Averaged,
    Patience,
    ProtectedRounds,
    read_or,
)
from secagg_embed.nvflare.shareables import Message, payload, reply_of, requests_of
from secagg_embed.nvflare.site import STEPS, answer, party_of, tenant_folder
from secagg_embed.party import Party
from secagg_embed.tensors import Tensors
from secagg_embed.terms import Terms

log = logging.getLogger("secagg_embed")


class SecureClient:
    """Base of a Collab job's client class: implement `train`; see the module's docstring."""

    weight_key = STEPS

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if is_publish(cls.train):
            raise ConfigError(
                f"{cls.__name__}.train is published, so the server can call it and get the weights "
                "in the clear; take @collab.publish off it"
            )

    def train(self, weights: dict[str, Any], **settings: Any) -> object:
        """Train on `weights`; return (new weights, examples), an FLModel or a DXO.

        `settings` are those that the server gave to `average`, the same for every site.
        """
        raise NotImplementedError(f"{type(self).__name__} has no train(weights)")

    def party(self) -> AbstractContextManager[Party]:
        """This site's tenant, for one message."""
        return party_of(tenant_folder(collab.site_name, collab.workspace))

    @collab.publish
    def secagg(
        self, requests: list[bytes], model: dict[str, Any] | None = None, settings: bytes = b""
    ) -> dict[str, Any]:
        """One exchange. Errors stay here: Collab would send their traceback to the server."""
        try:
            message = Message(requests_of(requests), model, settings)
            with self.party() as party:
                return payload(answer(party, message, self._train, weight_key=self.weight_key))
        except Exception as error:
            log.warning("an exchange was not answered", exc_info=True)  # errors are streamed
            return {"error": type(error).__name__}

    def _train(self, weights: dict[str, Any], settings: dict[str, Any]) -> object:
        return self.train(weights, **settings)


class CollabSites:
    """`Sites` over Collab's proxies: one call for each site, each in a thread of its own."""

    def __init__(self, context: Context, target: str | None = None) -> None:
        self._context = context
        self._target = target
        self._proxies: dict[str, Proxy] = {proxy.name: proxy for proxy in context.clients}

    @property
    def names(self) -> tuple[str, ...]:
        """See `Sites`."""
        return tuple(self._proxies)

    def require_running(self) -> None:
        """See `Sites`."""
        if self._context.is_aborted():
            raise RunAborted("the job was aborted")

    def send(
        self, messages: Mapping[str, Message], timeout_s: float, arrived: Arrived
    ) -> Callable[[], None]:
        """See `Sites`."""
        if not messages:
            return _nothing
        threads = ThreadPoolExecutor(len(messages), thread_name_prefix="secagg")
        for site, message in messages.items():
            threads.submit(self._call, site, message, timeout_s, arrived)
        return partial(threads.shutdown, wait=False, cancel_futures=True)

    def _call(self, site: str, message: Message, timeout_s: float, arrived: Arrived) -> None:
        try:
            call = self._proxies[site](timeout=timeout_s, target=self._target)
            model = None if message.model is None else dict(message.model)
            given = call.secagg(
                requests=list(message.requests), model=model, settings=message.settings
            )
        except CollabCallError as error:
            if error.cause_type != TimeoutError.__name__:
                log.warning("site %s: %s", site, error)
                arrived(site, NO_REPLY)
        except RunAborted:
            pass  # `require_running` tells the thread that waits
        else:
            arrived(site, read_or(reply_of, given))


class SecureAveraging:
    """Protected rounds inside a function with `@collab.main`; leaving it tells the sites the end.

    `roster` is the file that `secagg keys` made, or a roster. `target` names the Collab object at
    the sites, where the client class is not the client itself.
    """

    def __init__(
        self,
        roster: Roster | Path | str,
        terms: Terms,
        patience: Patience | None = None,
        *,
        target: str | None = None,
    ) -> None:
        sites = CollabSites(collab.context, target)
        self._rounds = ProtectedRounds(sites, as_roster(roster), terms, patience)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._rounds.finish()

    @property
    def strangers(self) -> Mapping[str, str]:
        """Sites that take no part, and why."""
        return self._rounds.strangers

    def average(self, model: Tensors, **settings: Any) -> Averaged:
        """One round of federated averaging; see `ProtectedRounds.average`.

        `settings` go to every site's `train`, beside the weights.
        """
        return self._rounds.average(model, settings)


def _nothing() -> None:
    pass
