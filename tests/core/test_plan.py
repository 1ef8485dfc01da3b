"""A plan either can work, with its sizes and its ring, or names the clause that does not hold."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings

from secagg.encoding import Quantiser
from secagg.errors import ConfigError, MalformedMessage
from secagg.identity import Member, Roster
from secagg.layout import Layout, TensorSpec
from secagg.plan import MAX_COHORT, Deadlines, RoundPlan
from secagg.testing import Cohort, cohort
from secagg.testing.strategies import plans

PLAN = cohort(5).plan()


@given(plans())
def test_a_plan_decodes_to_itself(chosen: tuple[Cohort, RoundPlan]) -> None:
    _, plan = chosen
    again = RoundPlan.decode(plan.encode())
    assert again == plan
    assert (again.context, again.encode()) == (plan.context, plan.encode())


@given(plans(max_n=12))
@settings(max_examples=60)
def test_sizes_keep_two_quorums_and_two_honest_survivors_apart(
    chosen: tuple[Cohort, RoundPlan],
) -> None:
    """C29: two quorums share more than f members; U3 holds two honest ones; t > f."""
    _, plan = chosen
    n, f = plan.n, plan.max_colluders
    assert 2 * plan.quorum - n > f
    assert plan.least >= max(f + 2, plan.quorum, plan.share_threshold)
    assert plan.share_threshold > f
    assert 2 * plan.share_threshold - n > f


@given(plans())
@settings(max_examples=60)
def test_n_largest_levels_fit_the_ring_with_room_to_spare(chosen: tuple[Cohort, RoundPlan]) -> None:
    """C29: no sum of honest levels or weights wraps, by at least the guard bits."""
    _, plan = chosen
    assert plan.n * plan.quantiser.max_level < 2 ** (plan.ring_bits - 1 - plan.guard_bits) * 2
    assert plan.n * plan.quantiser.max_level << (plan.guard_bits - 1) < 2 ** (plan.ring_bits - 1)
    assert plan.n * plan.max_weight << (plan.guard_bits - 1) < 2 ** (plan.weight_ring_bits - 1)


def sparse(**sizes: int) -> RoundPlan:
    return replace(cohort(8).plan(1, max_colluders=1, neighbours=6), **sizes)


BROKEN: dict[str, Callable[[], RoundPlan]] = {
    "SHA-256": lambda: replace(PLAN, model_digest=b"short"),
    "suite": lambda: replace(PLAN, suite="none"),  # type: ignore[arg-type]
    "scheme": lambda: replace(PLAN, scheme="plain"),  # type: ignore[arg-type]
    "round number": lambda: replace(PLAN, round_number=0),
    "not 0": lambda: replace(PLAN, round_number=1 << 64),
    "sorted": lambda: replace(PLAN, cohort=PLAN.cohort[::-1]),
    "unique": lambda: replace(PLAN, cohort=(*PLAN.cohort[:4], "t003")),
    "cohort has 3": lambda: cohort(5).plan(cohort=("t000", "t001"), max_colluders=0),
    f"to {MAX_COHORT}": lambda: replace(PLAN, cohort=("a",)),
    "0 <= f": lambda: replace(PLAN, max_colluders=-1),
    "2t = 4 is above k": lambda: sparse(share_threshold=2),
    "t = 7 <= k": lambda: sparse(share_threshold=7),
    "above the 1 holders that may collude": lambda: sparse(share_threshold=1),
    "make one sum": lambda: cohort(12).plan(1, max_colluders=1, neighbours=6),
    "at most n": lambda: replace(PLAN, share_threshold=6),
    "above f": lambda: replace(PLAN, share_threshold=1),
    "2t = 6": lambda: replace(PLAN, share_threshold=3),
    "min_survivors = 2": lambda: replace(PLAN, min_survivors=2),
    "fit in n": lambda: replace(PLAN, min_survivors=6),
    "guard_bits|guard bits": lambda: replace(PLAN, guard_bits=3),
    "ring_bits": lambda: replace(PLAN, ring_bits=PLAN.ring_bits - 1),
    "8 to 64": lambda: replace(PLAN, ring_bits=65),
    "max_weight": lambda: replace(PLAN, max_weight=0),
    "2\\^40": lambda: replace(PLAN, max_weight=(1 << 40) + 1, weight_ring_bits=64),
    "weight_ring_bits": lambda: replace(PLAN, weight_ring_bits=PLAN.weight_ring_bits - 1),
    "coordinates": lambda: replace(PLAN, layout=Layout.flat(1 << 37)),
    "rotation": lambda: replace(PLAN, rotation_seed=bytes(32)),
    "deadline": lambda: replace(PLAN, deadlines=Deadlines(unmask_ms=0)),
    "colluders|min_survivors|fit in n": lambda: cohort(5).plan(max_colluders=4),
    "4 to 32": lambda: cohort(5).plan(value_bits=64),
    "enrol": lambda: cohort(5).plan(cohort=("t000", "t001", "mallory")),
}


@pytest.mark.parametrize("clause", BROKEN)
def test_a_plan_that_cannot_work_is_refused_by_its_clause(clause: str) -> None:
    """C29."""
    with pytest.raises(ConfigError, match=clause):
        BROKEN[clause]()


@pytest.mark.parametrize("n", range(3, 60))
def test_default_sizes_are_the_stated_ones(n: int) -> None:
    plan = cohort(n).plan(1)
    f = (n - 1) // 3
    assert plan.max_colluders == f
    assert plan.share_threshold == plan.quorum == (n + f) // 2 + 1
    assert plan.min_survivors == max(plan.quorum, f + 2, 3)


CHANGES: dict[str, RoundPlan] = {
    "round": replace(PLAN, round_number=2),
    "model": replace(PLAN, model_digest=bytes(32)),
    "roster": replace(PLAN, roster_digest=bytes(32)),
    "layout length": replace(PLAN, layout=Layout.flat(9)),
    "layout name": replace(PLAN, layout=Layout.flat(8, "other")),
    "layout shape": replace(PLAN, layout=Layout((TensorSpec("vector", (2, 4)),))),
    "layout dtype": replace(PLAN, layout=Layout((TensorSpec("vector", (8,), "bfloat16"),))),
    "clip": replace(PLAN, quantiser=Quantiser(1.5, 16)),
    "bits": replace(PLAN, quantiser=Quantiser(1.0, 15)),
    "ring": replace(PLAN, ring_bits=30),
    "weight ring": replace(PLAN, weight_ring_bits=30),
    "guard": replace(PLAN, ring_bits=30, weight_ring_bits=30, guard_bits=5),
    "max_weight": replace(PLAN, max_weight=99),
    "f": replace(PLAN, max_colluders=0),
    "suite": replace(PLAN, suite="x25519"),
    "k": replace(PLAN, share_count=4),
    "t": replace(PLAN, share_threshold=5),
    "min_survivors": replace(PLAN, min_survivors=5),
    "cohort": replace(PLAN, cohort=("t000", "t001", "t002", "t003", "t005")),
    "committee": replace(PLAN, committee=("t000",)),
    "deadlines": replace(PLAN, deadlines=Deadlines(unmask_ms=1)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_field_enters_the_context(what: str) -> None:
    """C03: two plans that differ in anything are two rounds."""
    assert CHANGES[what].context != PLAN.context
    assert RoundPlan.decode(CHANGES[what].encode()) == CHANGES[what]


def test_no_two_of_these_changes_share_a_context() -> None:
    assert len({plan.context for plan in CHANGES.values()}) == len(CHANGES)


def with_sizes(*changed: int) -> bytes:
    """The plan's bytes with other f, k, t, q and min_survivors."""
    whole, sizes = PLAN.encode(), b"".join(value.to_bytes(4) for value in (1, 5, 4, 4, 4))
    assert whole.count(sizes) == 1
    return whole.replace(sizes, b"".join(value.to_bytes(4) for value in changed))


@pytest.mark.parametrize("sizes", [(1, 5, 4, 3, 4), (1, 5, 4, 5, 4), (0, 5, 4, 4, 4)])
def test_a_stated_quorum_that_does_not_follow_is_malformed(sizes: tuple[int, ...]) -> None:
    """C01, C29."""
    with pytest.raises(MalformedMessage, match="does not follow"):
        RoundPlan.decode(with_sizes(*sizes))


@pytest.mark.parametrize("sizes", [(1, 6, 4, 4, 4), (1, 0, 4, 4, 4), (1, 3, 4, 4, 4)])
def test_a_stated_share_count_that_cannot_work_is_malformed(sizes: tuple[int, ...]) -> None:
    """C29."""
    with pytest.raises(MalformedMessage, match="0 < t"):
        RoundPlan.decode(with_sizes(*sizes))


def test_a_plan_that_is_made_sparse_on_its_way_is_another_round() -> None:
    """C03: what was signed for the complete graph does not verify on a sparse one."""
    sparse = RoundPlan.decode(with_sizes(1, 4, 4, 4, 4))
    assert not sparse.complete
    assert sparse.context != PLAN.context


def test_a_roster_refuses_keys_without_proof_and_names_that_stand_twice() -> None:
    """C38."""
    members = cohort(3).roster.members
    unproven = replace(members[0], proof=bytes(64))
    for bad in (
        (unproven, *members[1:]),
        (replace(members[0], group="other"), *members[1:]),
        (members[0], members[0]),
        members[::-1],
        (replace(members[0], tenant="t001"), members[1]),
        (),
    ):
        with pytest.raises(ConfigError, match="roster"):
            Roster(bad)
    identity = cohort(3).identities[0]
    same_key = Member.create(identity)
    renamed = replace(same_key, tenant="t00x")
    with pytest.raises(ConfigError, match="share one public key"):
        Roster((same_key, renamed))
    with pytest.raises(ConfigError, match="committee"):
        Roster(members, ("mallory",))
