"""Which node is which tenant: each node is asked, and its signature is the answer.

Flower numbers nodes; the roster names tenants. A node that cannot prove to be a tenant takes part
in no round; it is asked once more in the next, and then no longer, for every time costs all an
exchange. A node that lies gains nothing: every message of the protocol is signed by its tenant.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable

from flwr.app import RecordDict

from secagg.errors import ProtocolError
from secagg.identity import Roster
from secagg_embed.exchange import hello, read_hello
from secagg_embed.flower.courier import Courier
from secagg_embed.flower.mod import BUSY
from secagg_embed.flower.records import read_replies, with_requests

_log = logging.getLogger("flwr")
_TIMES = 2


class Nodes:
    """What is known of the run's nodes. `strangers` are those that are no tenant, and why."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._tenants: dict[int, str] = {}
        self._asked = Counter[int]()
        self.strangers: dict[int, str] = {}

    def tenants(self, nodes: Iterable[int], courier: Courier, message_type: str) -> dict[str, int]:
        """The node of each tenant, among `nodes`; who is not known yet is asked."""
        chosen = tuple(nodes)
        unknown = [n for n in chosen if n not in self._tenants and self._asked[n] < _TIMES]
        self._greet(unknown, courier, message_type)
        found: dict[str, int] = {}
        for node in chosen:
            if node not in self._tenants:
                _log.warning("secagg: node %d takes no part: %s", node, self.strangers[node])
            elif (tenant := self._tenants[node]) in found:
                _log.warning("secagg: node %d is %s, as another node is", node, tenant)
            else:
                found[tenant] = node
        return found

    def _greet(self, nodes: list[int], courier: Courier, message_type: str) -> None:
        nonces = {node: os.urandom(32) for node in nodes}

        def take(node: int, content: RecordDict) -> bool:
            replies = read_replies(content)
            if replies is None:
                return False
            self._asked[node] += 1
            try:
                self._tenants[node] = read_hello(self._roster, nonces[node], replies[-1])
            except ProtocolError as error:
                self.strangers[node] = str(error)
            return True

        letters = {node: with_requests({}, [hello(nonces[node])]) for node in nodes}
        silent = courier.carry(message_type, letters, take)
        self._asked.update(node for node, reason in silent.items() if BUSY not in reason)
        self.strangers.update(silent)
