"""Unit costs are measured by a clock that comes from outside, on the operations of a round."""

import time
from dataclasses import asdict, fields

import pytest

from secagg import calibration
from secagg.costs import TYPICAL, UnitCosts, units_from_json, units_to_json
from secagg.errors import ConfigError


def test_every_unit_cost_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_TURNS", 2)
    units = calibration.measure(time.process_time)
    same = [
        one.name
        for one in fields(UnitCosts)
        if getattr(units, one.name) == getattr(TYPICAL, one.name)
    ]
    assert same == []
    assert all(0 < cost < 1 for cost in asdict(units).values())


def test_the_clock_alone_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_TURNS", 1)
    ticks = iter(range(1_000))
    units = calibration.measure(lambda: float(next(ticks)))  # each act takes one second
    assert units.exchange == units.signature == 1.0
    assert units.mask_byte == 1 / calibration.CHUNK_BYTES


def test_units_are_the_same_after_json() -> None:
    units = UnitCosts(mask_byte=3e-10)
    assert units_from_json(units_to_json(units)) == units
    assert units_from_json({}) == TYPICAL


@pytest.mark.parametrize("facts", [{"mask_byte": 0}, {"mask_byte": True}, {"leaf": "1"}, {"x": 1}])
def test_what_is_no_unit_cost_is_refused(facts: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="unit costs"):
        units_from_json(facts)


def test_what_an_extra_would_be_needed_for_keeps_its_typical_cost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(clock: object) -> object:
        raise ConfigError("pip install 'secagg[ckks]'")

    monkeypatch.setattr(calibration, "_TURNS", 1)
    monkeypatch.setattr(calibration, "_slots", missing)
    assert calibration.measure(time.process_time).slot == TYPICAL.slot
