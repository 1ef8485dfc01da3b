"""Where the tenants of a simulation live: in this process, or in Ray's workers (`on_ray.py`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from secagg_embed.exchange import Requests
from secagg_embed.simulation.seats import Answer, Given, MakeSeats, Shard


class Workers(Protocol):
    """Tenants at work. Their state stays where they live, from one exchange to the next."""

    def begin(self, given: Given) -> None:
        """A round begins."""

    def ask(self, requests: Requests, reply_bytes: int) -> Iterable[tuple[str, Answer]]:
        """Every tenant's answer, as it comes; `reply_bytes` is about the size of the largest.

        However many are asked, few answers are held at a time.
        """

    def close(self) -> None:
        """The simulation is over; nothing is left running."""


class Executor(Protocol):
    """Brings tenants to life."""

    def open(self, make: MakeSeats, names: Sequence[str]) -> Workers:
        """Workers for these tenants, whose seats `make` makes wherever they will live."""


@dataclass(frozen=True, slots=True)
class InProcess:
    """All tenants in this process and thread, one after the other."""

    def open(self, make: MakeSeats, names: Sequence[str]) -> Workers:
        """See `Executor`."""
        return _Here(Shard(make, names))


class _Here:
    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    def begin(self, given: Given) -> None:
        self._shard.begin(given)

    def ask(self, requests: Requests, reply_bytes: int) -> Iterator[tuple[str, Answer]]:
        for tenant, request in requests.items():
            yield tenant, self._shard.answer(tenant, request)

    def close(self) -> None:
        pass
