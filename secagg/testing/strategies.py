"""Hypothesis strategies for plans, inputs, dropouts and faulty links. Needs Hypothesis.

Cohorts come from `cohort(n)`, so that keys are made once; what varies is what a round depends on.
"""

from __future__ import annotations

import dataclasses
import typing
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Annotated, Any, Literal, cast

import numpy as np
from hypothesis import strategies as st

from secagg.ckks.parameters import PACKINGS, Packing
from secagg.encoding import Values
from secagg.errors import ConfigError, Step
from secagg.plan import RoundPlan, Suite
from secagg.scheme import upload_bytes
from secagg.secret import SecretBytes
from secagg.testing.cohorts import Cohort, cohort
from secagg.testing.deviations import deviations
from secagg.testing.faults import (
    DOWN,
    UP,
    Delay,
    Drop,
    Duplicate,
    Fault,
    KillDuringUpload,
    Reorder,
    Restart,
    Silence,
)
from secagg.testing.randomness import SeededRandomness
from secagg.testing.tenant import SimulatedTenant

Graph = Literal["complete", "sparse"]

_RESTARTABLE = (*DOWN, "upload_header", "upload_chunk", "upload_commitment")


@dataclass(frozen=True, slots=True)
class Inputs:
    """A plan with everybody's vector and weight, in index order."""

    members: Cohort
    plan: RoundPlan
    vectors: tuple[Values, ...]
    weights: tuple[int, ...]


def cohorts(min_n: int = 3, max_n: int = 7) -> st.SearchStrategy[Cohort]:
    """Cohorts of the kit, by their size."""
    return st.integers(min_n, max_n).map(cohort)


@st.composite
def plans(
    draw: st.DrawFn,
    min_n: int = 3,
    max_n: int = 7,
    max_length: int = 40,
    *,
    suites: Sequence[Suite] = ("x25519-mlkem768",),
    graphs: Sequence[Graph] = ("complete",),
) -> tuple[Cohort, RoundPlan]:
    """Plans of scheme `masking` that can work, over every ring width, threshold and f that fit.

    Sparse graphs need four tenants or more; smaller cohorts get the complete one.
    """
    members = draw(cohorts(min_n, max_n))
    n = len(members.names)
    sparse = sparse_sizes(n) if draw(st.sampled_from(graphs)) == "sparse" else ()
    f, k = draw(st.sampled_from(sparse)) if sparse else (draw(st.integers(0, (n - 1) // 3)), None)
    quorum = (n + f) // 2 + 1
    plan = members.plan(
        draw(st.integers(1, max_length)),
        round_number=draw(st.integers(1, 1 << 32)),
        clip=draw(st.sampled_from((1e-3, 1.0, 64.0))),
        value_bits=draw(st.integers(4, 32)),
        max_weight=draw(st.sampled_from((1, 2, 100, 1 << 20, 1 << 40))),
        max_colluders=f,
        share_threshold=draw(st.integers(quorum, n)) if k is None else None,
        min_survivors=draw(st.integers(f + 2, n)),
        neighbours=k,
        suite=draw(st.sampled_from(suites)),
    )
    return members, plan


@st.composite
def ckks_plans(
    draw: st.DrawFn,
    min_n: int = 3,
    max_n: int = 7,
    max_length: int = 40,
    *,
    suites: Sequence[Suite] = ("x25519-mlkem768",),
    packings: Sequence[Packing] = PACKINGS,
) -> tuple[Cohort, RoundPlan]:
    """Plans of scheme `ckks` that can work, over every ring width, threshold and f that fit.

    Doubles limit packing `slots` to narrower values, and small sums to smaller caps of weights.
    """
    members = draw(cohorts(min_n, max_n))
    n = len(members.names)
    f = draw(st.integers(0, (n - 1) // 3))
    packing = draw(st.sampled_from(packings))
    sizes: dict[str, Any] = {
        "length": draw(st.integers(1, max_length)),
        "round_number": draw(st.integers(1, 1 << 32)),
        "clip": draw(st.sampled_from((1e-3, 1.0, 64.0))),
        "value_bits": draw(st.integers(4, 32 if packing == "coefficients" else 26)),
        "max_weight": draw(st.sampled_from((1, 2, 100, 1 << 20, 1 << 40))),
        "max_colluders": f,
        "share_threshold": draw(st.integers(max(2, f + 1), n)),
        "min_survivors": draw(st.integers(f + 2, n)),
        "suite": draw(st.sampled_from(suites)),
    }
    try:
        return members, members.plan(scheme="ckks", packing=packing, **sizes)
    except ConfigError:  # a digit or slot is too narrow for such weights, or for such values
        sizes |= {"max_weight": 1, "value_bits": min(sizes["value_bits"], 24)}
        return members, members.plan(scheme="ckks", packing=packing, **sizes)


@lru_cache(maxsize=64)
def sparse_sizes(n: int) -> tuple[tuple[int, int], ...]:
    """(f, k) of every sparse plan over n tenants that can work, but for those with f = 0."""
    found: list[tuple[int, int]] = []
    for f, k in product(range(1, (n - 1) // 3 + 1), range(1, n)):
        with suppress(ConfigError):
            cohort(n).plan(1, max_colluders=f, neighbours=k, min_survivors=f + 2)
            found.append((f, k))
    return tuple(found)


def deviants(plan: RoundPlan) -> st.SearchStrategy[dict[str, type[SimulatedTenant]]]:
    """Up to f tenants that deviate, each in one way (`secagg.testing.deviations`)."""
    kinds = st.sampled_from(deviations(plan))
    return st.dictionaries(st.sampled_from(plan.cohort), kinds, max_size=plan.max_colluders)


def vectors(plan: RoundPlan) -> st.SearchStrategy[Values]:
    """(d,) float32: uniform, or all at one end of the clip, at zero, or beyond the clip."""
    clip, length = plan.quantiser.clip, plan.layout.size

    def uniform(seed: int) -> Values:
        return SeededRandomness(f"vector {seed}").uniform(length, clip)

    constant = st.sampled_from((clip, -clip, 0.0, 3 * clip)).map(
        lambda value: np.full(length, value, np.float32)
    )
    return st.one_of(st.integers(0, 1 << 16).map(uniform), constant)


@st.composite
def rounds(
    draw: st.DrawFn,
    min_n: int = 3,
    max_n: int = 7,
    max_length: int = 40,
    *,
    planned: Callable[..., st.SearchStrategy[tuple[Cohort, RoundPlan]]] = plans,
) -> Inputs:
    """A plan (by `plans` or `ckks_plans`) and everybody's input."""
    members, plan = draw(planned(min_n, max_n, max_length))
    weight = st.sampled_from((1, plan.max_weight)) | st.integers(1, plan.max_weight)
    return Inputs(
        members,
        plan,
        tuple(draw(vectors(plan)) for _ in plan.cohort),
        tuple(draw(weight) for _ in plan.cohort),
    )


def dropouts(plan: RoundPlan, most: int | None = None) -> st.SearchStrategy[dict[str, Step | None]]:
    """Which tenants fall silent, and after which step (None: before the first)."""
    return st.dictionaries(
        st.sampled_from(plan.cohort),
        st.sampled_from((None, *list(Step)[:-1])),
        max_size=plan.n if most is None else most,
    )


def faults(plan: RoundPlan) -> st.SearchStrategy[Fault]:
    """One fault on one tenant's link, of any kind but tampering."""
    tenant = st.sampled_from(plan.cohort)
    label = st.sampled_from((*UP, *DOWN))
    seconds = st.sampled_from((0.5, 30.0, 59.9, 60.0, 61.0, 10_000.0))
    return st.one_of(
        st.builds(Drop, tenant, label),
        st.builds(Delay, tenant, label, seconds),
        st.builds(Duplicate, tenant, label, seconds),
        st.builds(Reorder, tenant, label, st.integers(1, 12)),
        st.builds(Silence, tenant, st.sampled_from((None, *list(Step)[:-1]))),
        st.builds(KillDuringUpload, tenant, st.integers(0, _late(plan, 60))),
        restarts(plan),
    )


def restarts(plan: RoundPlan) -> st.SearchStrategy[Restart]:
    """A process that dies and comes back, at any moment, with the right state or an old one."""
    return st.builds(
        Restart,
        st.sampled_from(plan.cohort),
        st.sampled_from(_RESTARTABLE),
        st.sampled_from(("same", "stale")),
        st.booleans(),
        st.integers(0, _late(plan, 40)),
    )


def _late(plan: RoundPlan, small: int) -> int:
    """A place in an upload: `small`, or nearly its end if it is much larger."""
    return max(small, upload_bytes(plan) - 1) if plan.scheme == "ckks" else small


def schedules(plan: RoundPlan, most: int = 6) -> st.SearchStrategy[list[Fault]]:
    """Up to `most` faults."""
    return st.lists(faults(plan), max_size=most)


def mutations(valid: bytes) -> st.SearchStrategy[bytes]:
    """`valid` with something changed: a bit, a byte, a length, a slice lost, doubled or moved."""
    place = st.integers(0, max(0, len(valid) - 1))
    piece = st.binary(min_size=1, max_size=8)
    return st.one_of(
        st.builds(lambda at, bit: _spliced(valid, at, 1, _flipped(valid, at, bit)), place, _BIT),
        st.builds(lambda at, new: _spliced(valid, at, len(new), new), place, piece),
        st.builds(lambda at, new: _spliced(valid, at, 0, new), place, piece),
        st.builds(lambda at, size: _spliced(valid, at, size, b""), place, st.integers(1, 64)),
        st.builds(lambda at, size: _doubled(valid, at, size), place, st.integers(1, 64)),
        st.builds(lambda at: valid[:at], place),
        st.builds(lambda new: valid + new, piece),
        st.builds(lambda at: valid[at:] + valid[:at], place),
    ).filter(lambda data: data != valid)


def records(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a record type, from its annotations (see `secagg.records`)."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        size = arguments[1].size
        if arguments[0] is bytes:
            return st.binary(min_size=size, max_size=size)
        return st.integers(0, 256**size - 1)
    if origin is tuple:
        return st.lists(records(arguments[0]), max_size=3).map(tuple)
    if isinstance(kind, type) and issubclass(kind, SecretBytes):
        length = kind.LENGTH or 0
        return st.binary(min_size=length, max_size=length).map(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        fields = [records(hints[field.name]) for field in dataclasses.fields(kind)]
        return st.builds(cast(Callable[..., Any], kind), *fields)
    return _PLAIN[kind]


_BIT = st.integers(0, 7)
_PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    bytes: st.binary(max_size=40),
    bool: st.booleans(),
    str: st.text(st.characters(codec="utf-8"), max_size=12).map(
        lambda text: unicodedata.normalize("NFC", text)
    ),
}


def _spliced(data: bytes, at: int, size: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + size :]


def _flipped(data: bytes, at: int, bit: int) -> bytes:
    return bytes([data[at] ^ 1 << bit]) if data else b"\0"


def _doubled(data: bytes, at: int, size: int) -> bytes:
    return data[: at + size] + data[at:]
