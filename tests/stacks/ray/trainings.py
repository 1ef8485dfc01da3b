"""Training functions in a module that Ray's workers import, as they import a user's."""

import os
from typing import Any

import numpy as np

from secagg_embed.simulation import TenantInfo

Returned = tuple[dict[str, Any], int]
START = {"b": np.zeros(3, np.float32), "w": np.linspace(-1, 1, 20, dtype=np.float32).reshape(4, 5)}


def walk(tenant: TenantInfo, arrays: dict[str, Any], number: int) -> Returned:
    """The same for the same tenant and round, and in place."""
    draw = tenant.rng(number)
    for name in arrays:
        arrays[name] += draw.uniform(-0.4, 0.4, arrays[name].shape).astype(np.float32)
    return arrays, 1 + tenant.index


def counting(tenant: TenantInfo, arrays: dict[str, Any], number: int) -> Returned:
    """As many examples as rounds that this tenant remembers."""
    tenant.memory["rounds"] = tenant.memory.get("rounds", 0) + 1
    return {name: array + np.float32(0.1) for name, array in arrays.items()}, tenant.memory[
        "rounds"
    ]


def raising_in_t002(tenant: TenantInfo, arrays: dict[str, Any], number: int) -> Returned:
    """An exception that cannot be pickled."""
    if tenant.name == "t002":
        raise Unpicklable(lambda: None)
    return walk(tenant, arrays, number)


def raising(tenant: TenantInfo, arrays: dict[str, Any], number: int) -> Returned:
    raise RuntimeError("the loader found no file")


def dying_in_t001_once(tenant: TenantInfo, arrays: dict[str, Any], number: int) -> Returned:
    """The process of this tenant ends in round 1, as one that is out of memory does."""
    if tenant.name == "t001" and number == 1:
        os._exit(1)
    return walk(tenant, arrays, number)


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("this exception does not travel")
