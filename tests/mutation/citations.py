"""Which numbered checks of docs/protocol.md a line of code and a test are about.

Code cites a check's number beside the line that makes it, or in the docstring of the function;
tests cite it in their docstrings, their ids or a comment. The number beside the line counts before
the docstring's, and a docstring's single number before its range.
"""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

_NUMBER = re.compile(r"\bC(\d\d)(?: to C(\d\d))?\b")
LAST_CHECK = 45


def cited(text: str) -> frozenset[str]:
    """Every number in a text, ranges written out."""
    found: set[str] = set()
    for match in _NUMBER.finditer(text):
        first = int(match[1])
        found |= {f"C{number:02}" for number in range(first, int(match[2] or first) + 1)}
    return frozenset(found)


@lru_cache(maxsize=8)
def _places(source: str) -> tuple[tuple[int, int, int, frozenset[str]], ...]:
    """(rank, first line, last line, checks): comments within statements, then docstrings."""
    lines = source.splitlines()
    places: list[tuple[int, int, int, frozenset[str]]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if doc := ast.get_docstring(node):
                places.append((2, node.lineno, node.end_lineno or node.lineno, cited(doc)))
        elif isinstance(node, ast.stmt):
            first, last = node.lineno, node.end_lineno or node.lineno
            own = lines[max(first - 2, 0) : last]
            if first > 1 and not lines[first - 2].lstrip().startswith("#"):
                own = own[1:]
            comments = " ".join(line.partition("#")[2] for line in own)
            places.append((1, first, last, cited(comments)))
    kept = [place for place in places if place[3]]
    return tuple(sorted(kept, key=lambda place: (place[0], place[2] - place[1])))


def checks_at(source: str, line: int) -> frozenset[str]:
    """The checks that a line of code is about; empty where nothing near it says so."""
    for _, first, last, checks in _places(source):
        if first <= line <= last:
            return checks
    return frozenset()


def checks_of_tests(root: Path) -> dict[str, frozenset[str]]:
    """By `file::function` of every test that cites one."""
    citing: dict[str, frozenset[str]] = {}
    for path in sorted(root.glob("tests/**/test_*.py")):
        source = path.read_text()
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
                text = "\n".join(source.splitlines()[first - 1 : node.end_lineno])
                if checks := cited(text):
                    citing[f"{path.relative_to(root).as_posix()}::{node.name}"] = checks
    return citing
