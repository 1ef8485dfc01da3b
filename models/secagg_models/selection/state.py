"""What a tenant remembers of its windows between rounds: as private as the windows themselves.

How often each was trained, its first and latest loss, whether it waits in quarantine, was released,
or rests. Windows are found again by a hash of their content, so the memory survives new data.
Written as one .npz with mode 0600 in the tenant's own folder; nothing of it is sent or logged. A
file that cannot be read counts as none: whether a tenant takes part must not depend on it.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_FIELDS = ("keys", "trained", "first", "last", "waiting", "released", "rests_until")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class BandState:
    """One entry a window, (n,) each: see the module's docstring. Losses are NaN until scored."""

    keys: NDArray[np.uint64]
    trained: NDArray[np.int64]
    first: NDArray[np.float32]
    last: NDArray[np.float32]
    waiting: NDArray[np.bool_]
    released: NDArray[np.bool_]
    rests_until: NDArray[np.int64]
    rounds: int = 0

    def __repr__(self) -> str:
        return "<BandState, redacted>"

    @classmethod
    def fresh(cls, keys: NDArray[np.uint64]) -> BandState:
        """Nothing is known of any window."""
        n = len(keys)
        unknown = np.full(n, np.nan, np.float32)
        none, no = np.zeros(n, np.int64), np.zeros(n, bool)
        return cls(
            keys, none, unknown, unknown.copy(), no, no.copy(), none.copy()
        )  # fmt: skip

    def carried_to(self, keys: NDArray[np.uint64]) -> BandState:
        """The memory of these windows: what is known of those that were there before."""
        order = np.argsort(self.keys, kind="stable")
        place = np.searchsorted(self.keys[order], keys).clip(max=max(0, len(order) - 1))
        fresh = BandState.fresh(keys)
        if not len(order):
            return replace(fresh, rounds=self.rounds)
        source = order[place]
        known = self.keys[source] == keys
        found = {
            name: np.where(known, getattr(self, name)[source], getattr(fresh, name))
            for name in _FIELDS[1:]
        }
        return replace(fresh, **found, rounds=self.rounds)

    def copy(self) -> BandState:
        """Arrays of its own."""
        return replace(self, **{name: getattr(self, name).copy() for name in _FIELDS})


def save_state(state: BandState, path: Path) -> None:
    """Write it durably, readable by this user alone."""
    arrays = {name: getattr(state, name) for name in _FIELDS}
    content = io.BytesIO()
    np.savez(content, rounds=np.int64(state.rounds), **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    passing = path.with_suffix(".new")
    descriptor = os.open(passing, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.getvalue())
        file.flush()
        os.fsync(file.fileno())
    os.replace(passing, path)


def load_state(path: Path) -> BandState | None:
    """Inverse of `save_state`; None where there is no file, or none that can be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _FIELDS}
            rounds = int(file["rounds"])
    except Exception:  # noqa: BLE001  a damaged archive raises whatever its damage leads to
        return None
    like = BandState.fresh(arrays["keys"][:0])
    lengths = {array.shape for array in arrays.values()}
    types = {name for name, array in arrays.items() if array.dtype != getattr(like, name).dtype}
    if len(lengths) != 1 or len(next(iter(lengths))) != 1 or types:
        return None
    return BandState(**arrays, rounds=rounds)
