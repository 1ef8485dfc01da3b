"""What each tenant adds to the model: whole steps of the round's grid, so that nothing is rounded.

A delta is a multiple of 2^-20, and so is every model: the clip makes a level 2^-20 wide, a delta
stays whole when it is scaled by its weight, and the weights of those who survive sum to a power of
two, with and without the tenant that is killed.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

WEIGHTS = {"clinic-1": 1, "clinic-2": 1, "clinic-3": 2, "clinic-4": 4, "clinic-5": 8}
MAX_WEIGHT = 8
VALUE_BITS = 16
STEP = 2.0**-20
CLIP = (2 ** (VALUE_BITS - 1) - 1) * STEP
SHAPES = {"weight": (20, 50), "bias": (50,)}


def steps_of(tenant: str, server_round: int, name: str) -> NDArray[np.int64]:
    """By how many steps of the grid a tenant moves a tensor in a round."""
    seed = [*tenant.encode(), server_round, *name.encode()]
    drawn = np.random.default_rng(seed).integers(-4095, 4096, SHAPES[name])
    return np.asarray(drawn, np.int64) * MAX_WEIGHT


def start() -> dict[str, NDArray[np.float32]]:
    """The model before the first round."""
    return {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}


def trained(
    model: dict[str, NDArray[np.float32]], tenant: str, server_round: int
) -> dict[str, NDArray[np.float32]]:
    """The model that a tenant returns."""
    return {
        name: (values + STEP * steps_of(tenant, server_round, name)).astype(np.float32)
        for name, values in model.items()
    }


def opened(rounds: Iterable[tuple[int, Iterable[str]]]) -> dict[str, NDArray[np.float64]]:
    """The model after these rounds, each with its survivors, exactly."""
    model = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for server_round, survivors in rounds:
        alive = tuple(survivors)
        weight = sum(WEIGHTS[tenant] for tenant in alive)
        for name in model:
            total = sum(WEIGHTS[t] * steps_of(t, server_round, name) for t in alive)
            model[name] += STEP * np.asarray(total) / weight
    return model
