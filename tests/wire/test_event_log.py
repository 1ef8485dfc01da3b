"""The log of a node."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from secagg_wire.event_log import EventLog


def test_a_log_file_is_its_owners_alone_and_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "tenant.jsonl"
    for name in ("joined", "left"):
        EventLog(level="info", file=path).event(name)
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == [
        "joined",
        "left",
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
