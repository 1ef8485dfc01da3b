"""The process of one job: `python -m secagg_demo.experiments.worker JSON`.

    {"name": "lora 1", "function": "secagg_demo.experiments.budgets:measure", "arguments": {...}}

Events go to what was standard output; whatever a library prints goes to standard error, so that it
cannot be taken for one. The result comes back with the CPU seconds that it took.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any


def run(job: Mapping[str, Any], report: Any) -> Any:
    """Do one job: its function's result."""
    module, _, function = str(job["function"]).partition(":")
    return getattr(import_module(module), function)(job["arguments"], report)


def plain(value: Any) -> Any:
    """JSON values alone: what is not finite becomes null, a number of numpy's a Python one."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(name): plain(part) for name, part in value.items()}
        case Sequence():
            return [plain(part) for part in value]
        case _ if hasattr(value, "tolist"):
            return plain(value.tolist())
        case _:
            raise TypeError(f"{type(value).__name__} is no JSON value")


def main() -> None:
    """Read the job, do it, print the result."""
    import torch

    torch.set_num_threads(1)
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    said = 0.0

    def tell(event: Mapping[str, Any]) -> None:
        events.write(json.dumps(event, allow_nan=False) + "\n")
        events.flush()

    def report(done: int, of: int) -> None:
        nonlocal said
        if time.monotonic() - said > 0.2 or done >= of:  # a bar needs no more
            said = time.monotonic()
            tell({"event": "progress", "text": "measuring", "done": done, "of": of})

    result = run(json.loads(sys.argv[1]), report)
    tell({"event": "done", "result": plain(result), "cpu_s": round(time.process_time(), 2)})


if __name__ == "__main__":
    main()
