"""The log takes ids, counts, lengths and digests, and nothing else gets into it."""

import io
import json
from typing import Any

import pytest

from secagg.secret import Seed
from secagg_coordinator import log


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    log.configure("info", stream)
    log.event("round opened", context=bytes(32), n=5, names=("a", "b\nc"), note="x" * 1000)
    (line,) = lines(stream)
    assert line["event"] == "round opened"
    assert line["level"] == "info"
    assert line["context"] == "00" * 32
    assert (line["n"], line["names"], len(line["note"])) == (5, ["a", "b\nc"], 400)
    assert line["time"].endswith("Z")


@pytest.mark.parametrize(
    "value",
    [bytes(33), {"a": 1}, [1], object(), (b"x",), Seed(bytes(32))],
    ids=lambda v: type(v).__name__,
)
def test_what_could_hold_a_secret_is_refused(value: Any) -> None:
    stream = io.StringIO()
    log.configure("info", stream)
    with pytest.raises(TypeError, match="'field'"):
        log.event("x", field=value)
    assert stream.getvalue() == ""


def test_a_failure_shows_where_and_never_the_message() -> None:
    stream = io.StringIO()
    log.configure("info", stream)
    try:
        raise ValueError("the secret is xyzzy")
    except ValueError as error:
        log.failure("call failed", error, call="X")
    (line,) = lines(stream)
    assert line["error"] == "ValueError"
    assert "test_log.py" in line["frames"][-1]
    assert "xyzzy" not in stream.getvalue()


def test_a_failure_of_the_disk_says_what_the_system_said() -> None:
    stream = io.StringIO()
    log.configure("info", stream)
    log.failure("round failed", OSError(28, "No space left on device"))
    assert lines(stream)[0]["system"] == "No space left on device"


def test_levels_below_the_configured_one_are_silent() -> None:
    stream = io.StringIO()
    log.configure("error", stream)
    log.event("x")
    assert stream.getvalue() == ""
