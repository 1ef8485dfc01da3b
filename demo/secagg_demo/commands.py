"""One-shot `secagg` commands as children, run to their end; their JSON is read off their log."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from secagg_demo.federation import SECAGG, environment
from secagg_demo.processes import Child, Children, ProcessFailed


async def run(
    children: Children, name: str, *arguments: str | Path, accept: Collection[int] = (0,)
) -> Any:
    """Run `secagg ARGUMENTS... --format json`; what it printed.

    Raises:
        ProcessFailed: another exit status, or it printed no JSON; the message has its log's end.
    """
    command = [*SECAGG, *map(str, arguments), "--format", "json"]
    child = await children.start(name, command, environment())
    child.expected = frozenset(accept)
    status = await child.ended()
    if status not in accept:
        raise ProcessFailed(f"secagg {arguments[0]} {arguments[1]} failed; {child.tail()}")
    return _result(child)


def _result(child: Child) -> Any:
    for line in reversed(child.log.read_text(encoding="utf-8").splitlines()):
        with suppress(ValueError):
            value = json.loads(line)
            if not (isinstance(value, dict) and "event" in value):
                return value
    raise ProcessFailed(f"{child.name} printed no result; {child.tail()}")
