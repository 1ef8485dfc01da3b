"""The model of what a round costs follows what each scheme does."""

from dataclasses import fields, replace

import pytest

from secagg.costs import TYPICAL, UnitCosts, coordinator_cost, neighbours, tenant_cost
from secagg.plan_cli import plan_for


def masked(n: int, length: int = 1_000_000):
    return plan_for(n, None, 16, length, 1)


def encrypted(n: int, length: int = 1_000_000, committee: int = 0, packing="coefficients"):
    return plan_for(n, None, 16, length, 1, scheme="ckks", committee=committee, packing=packing)


def test_masks_cost_with_every_neighbour_and_ciphertexts_do_not() -> None:
    few, many = masked(10), masked(60)
    assert tenant_cost(many).masks > 5 * tenant_cost(few).masks
    assert tenant_cost(encrypted(60)).ciphertexts < 2 * tenant_cost(encrypted(10)).ciphertexts
    assert tenant_cost(encrypted(60)).masks == neighbours(encrypted(60)) == 0
    assert tenant_cost(few).ciphertexts == 0


def test_a_dropout_costs_masks_and_saves_ciphertexts() -> None:
    assert coordinator_cost(masked(20), 4).masks > 2 * coordinator_cost(masked(20), 0).masks
    plan = encrypted(20)
    assert coordinator_cost(plan, 4).total < coordinator_cost(plan, 0).total


def test_costs_grow_with_the_length() -> None:
    for make in (masked, encrypted):
        short, long = make(10, 100_000), make(10, 10_000_000)
        assert tenant_cost(long).total > 10 * tenant_cost(short).total
        assert coordinator_cost(long, 0).total > 10 * coordinator_cost(short, 0).total


def test_a_smaller_committee_has_fewer_shares() -> None:
    small, large = encrypted(100, committee=20), encrypted(100, committee=60)
    assert tenant_cost(small).shares < tenant_cost(large).shares
    assert tenant_cost(small).keys < tenant_cost(large).keys
    assert coordinator_cost(small, 0).shares < coordinator_cost(large, 0).shares


def test_slots_cost_more_than_coefficients() -> None:
    dense, slots = encrypted(10), encrypted(10, packing="slots")
    assert tenant_cost(slots).ciphertexts > 2 * tenant_cost(dense).ciphertexts


@pytest.mark.parametrize("make", [masked, encrypted])
def test_a_machine_that_is_twice_as_slow_takes_twice_as_long(make) -> None:
    plan, unit = make(10), UnitCosts()
    slow = UnitCosts(*(2 * getattr(unit, name) for name in unit.__dataclass_fields__))
    assert tenant_cost(plan, slow).total == pytest.approx(2 * tenant_cost(plan, unit).total)
    assert coordinator_cost(plan, 1, slow).total == pytest.approx(
        2 * coordinator_cost(plan, 1, unit).total
    )


def test_every_unit_cost_is_in_some_rounds_cost() -> None:
    plans = [masked(10), encrypted(10), encrypted(10, packing="slots")]

    def total(units: UnitCosts) -> float:
        return sum(
            tenant_cost(plan, units).total + coordinator_cost(plan, 1, units).total
            for plan in plans
        )

    for one in fields(UnitCosts):
        assert total(replace(TYPICAL, **{one.name: 1.0})) > 2 * total(TYPICAL), one.name
