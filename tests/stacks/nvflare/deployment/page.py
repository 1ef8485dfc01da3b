"""What docs/nvflare.md shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]
PAGE = ROOT / "docs" / "nvflare.md"
EXAMPLES = ROOT / "docs" / "examples" / "nvflare"


def blocks(language: str) -> list[str]:
    """The text of its blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)


def commands(program: str) -> list[list[str]]:
    """Its commands that call a program."""
    lines = "".join(blocks("console")).splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [command for command in words if command[0] == program]
