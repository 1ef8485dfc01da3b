"""What the caller asked for, checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from secagg.errors import ConfigError
from secagg.plan import SCHEMES, Scheme

TaskName = Literal["text", "timeseries"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
LEAST_TENANTS = 3
KILL_ROUND = 2


@dataclass(frozen=True, slots=True)
class Settings:
    """The command's options. `seed` rules data and training; keys and masks are always fresh."""

    task: TaskName = "text"
    tenants: int = 5
    rounds: int = 3
    kill: int = 1
    seed: int = 0
    scheme: Scheme = "masking"
    out: Path = Path("build/demo")
    port: int = 0

    def __post_init__(self) -> None:
        clauses = (
            (
                self.tenants >= LEAST_TENANTS,
                f"--tenants is {LEAST_TENANTS} or more: a sum over fewer hides nothing",
            ),
            (self.task in TASKS, f"--task is one of {', '.join(TASKS)}"),
            (self.scheme in SCHEMES, f"--scheme is one of {', '.join(SCHEMES)}"),
            (self.rounds >= 1, "--rounds is 1 or more"),
            (0 <= self.kill <= self.tenants, "--kill is between 0 and the number of tenants"),
            (0 <= self.seed < 1 << 32, "--seed is between 0 and 2^32 - 1"),
            (0 <= self.port < 1 << 16, "--port is between 0 (any free one) and 65535"),
        )
        for holds, clause in clauses:
            if not holds:
                raise ConfigError(clause)

    @property
    def victims(self) -> int:
        """How many tenants are killed: none where there is no second round to kill them in."""
        return self.kill if self.rounds >= KILL_ROUND else 0
