"""Progress is told as it happens, in order, and reports add up."""

import io
from typing import Any

import numpy as np
import pytest

from secagg.errors import Step
from secagg.traffic import traffic
from secagg_embed.simulation import (
    Answered,
    Bar,
    DroppedOut,
    Event,
    Lines,
    RoundBegan,
    RoundEnded,
    Simulation,
    StepBegan,
    TenantInfo,
    shown,
)
from secagg_embed.terms import Terms


def train(tenant: TenantInfo, arrays: dict[str, Any], number: int) -> tuple[dict[str, Any], int]:
    return {"w": arrays["w"] + np.float32(0.01)}, 1


def simulate(progress: Any) -> Simulation:
    start = {"w": np.zeros(50, np.float32)}
    return Simulation(tenants=6, train=train, start=start, terms=Terms(clip=0.1), progress=progress)


def test_every_step_and_every_answer_is_told_in_order() -> None:
    events: list[Event] = []
    (report,) = simulate(events.append).rounds(1, dropouts={"t001": Step.CONSISTENCY_CHECK})
    assert events[0] == RoundBegan(1, 6)
    assert events[-1] == RoundEnded(report)
    begun = [event for event in events if isinstance(event, StepBegan)]
    assert begun == [StepBegan(step, 5 if step > Step.MASKED_INPUT else 6) for step in Step]
    answered = [event for event in events if isinstance(event, Answered)]
    assert len(answered) == 4 * 6 + 2 * 5
    assert [event.left.tenant for event in events if isinstance(event, DroppedOut)] == ["t001"]


def test_lines_tell_steps_and_how_it_ended() -> None:
    told = io.StringIO()
    (report,) = simulate(Lines(told, every_s=0.0)).rounds(1)
    lines = told.getvalue().splitlines()
    assert lines[0] == "round 1 begins with 6 tenants"
    assert "  masked_input: 6 are asked" in lines
    assert "  masked_input: 6 of 6" in lines
    assert lines[-1] == f"round 1 opened after {report.wall_s:.1f} s"


def test_the_bar_ends_with_a_line() -> None:
    pytest.importorskip("rich")
    told = io.StringIO()
    (report,) = simulate(Bar(told)).rounds(1, dropouts=0.9, keep_going=True)
    said = f"round 1 ended with nothing opened after {report.wall_s:.1f} s"
    assert told.getvalue().strip().endswith(said)


def test_lines_are_shown_where_there_is_no_terminal() -> None:
    assert isinstance(shown(io.StringIO()), Lines)


def test_bytes_are_those_of_the_messages_and_little_more() -> None:
    (report,) = simulate(Lines(io.StringIO())).rounds(1)
    expected = list(traffic(report.plan).values())
    for step, exact in zip(report.steps, expected, strict=True):
        assert step.bytes_up / 6 == pytest.approx(exact.up, rel=0.1, abs=200), step
    for step, exact in zip(report.steps[1:], expected, strict=False):  # it ends the step before
        assert step.bytes_down / 6 == pytest.approx(exact.down, rel=0.1, abs=200), step
    assert report.bytes_up == sum(step.bytes_up for step in report.steps)
    assert report.tenants_cpu_s > report.coordinator_cpu_s > 0


def test_the_table_has_a_row_for_each_step() -> None:
    (report,) = simulate(Lines(io.StringIO())).rounds(1)
    rows = report.table().splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == [step.label for step in Step]
