"""Who is alive: a lease that every call of a tenant renews.

A dead tenant shows within `seconds`; keepalive on the connection needs more than a minute and sees
machines, not processes. A lease is no authentication and decides nothing about a sum: a tenant
whose lease ended is a dropout like any silent one, later than its grace.
"""

from __future__ import annotations

from collections.abc import Callable

from secagg_coordinator.store import now_ms

Clock = Callable[[], float]


class Leases:
    """Leases of all tenants, by a clock in seconds that does not go back."""

    def __init__(self, seconds: float, clock: Clock) -> None:
        self.seconds = seconds
        self._clock = clock
        self._began = clock()
        self._ends: dict[str, float] = {}
        self._heard_ms: dict[str, int] = {}

    def renew(self, tenant: str) -> None:
        """This tenant was heard now."""
        self._ends[tenant] = self._clock() + self.seconds
        self._heard_ms[tenant] = now_ms()

    def ends_at(self, tenant: str) -> float:
        """When the lease ends or ended; for a tenant never heard, when this process began."""
        return self._ends.get(tenant, self._began)

    def live(self, tenant: str) -> bool:
        """Whether the lease holds."""
        return self._clock() < self.ends_at(tenant)

    def heard_at_ms(self, tenant: str) -> int:
        """Wall-clock time of the last call, 0 for never."""
        return self._heard_ms.get(tenant, 0)
