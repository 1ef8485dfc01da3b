"""One unprotected round of Flower's FedAvg, timed for one client and for the server.

The floor of what a round costs. Processes, messages, vectors and what is left out are those of
`flower.py`; the server samples with Flower's FedAvg, sends by its client proxies, and aggregates
with FedAvg, which is its default. Silent clients are not asked.

  python flower_plain.py --n 10 --d 1000000
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flower
import flwr.compat.common.recorddict_compat as compat
import numpy as np
from flwr.common import parameters_to_ndarrays
from flwr.server import LegacyContext
from flwr.server.workflow.constant import MAIN_PARAMS_RECORD
from flwr.serverapp.grid import Grid


class PlainServer(flower.Server):
    """FedAvg's own round, one client after another."""

    mods: Sequence[Any] = ()

    def participants(self, nodes: list[int]) -> list[int]:
        """Who answers."""
        return nodes[: self._alive]

    def aggregate(self, grid: Grid, context: LegacyContext) -> list[np.ndarray]:
        """Measured."""
        record = context.state.array_records[MAIN_PARAMS_RECORD]
        parameters = compat.arrayrecord_to_parameters(record, True)
        asked = context.strategy.configure_fit(1, parameters, context.client_manager)
        results = [(proxy, proxy.fit(request, None, 1)) for proxy, request in asked]
        mean, _ = context.strategy.aggregate_fit(1, results, [])
        return parameters_to_ndarrays(mean)


if __name__ == "__main__":
    flower.main(PlainServer, "Flower FedAvg, unprotected", (__doc__ or "").split("\n")[0])
