"""What a protected loop needs, counted: docs/tutorial-training-loop.md says so many lines."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial-training-loop.md"
_FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"  # <.*$")


def lines(block: int) -> list[str]:
    text = _FENCE.findall(PAGE.read_text(encoding="utf-8"))[block]
    return [line for line in text.splitlines() if line.strip()]


def body(program: list[str]) -> list[str]:
    """The lines of the loop over rounds."""
    start = next(i for i, line in enumerate(program) if line.startswith("for number in range"))
    rest = program[start + 1 :]
    end = next((i for i, line in enumerate(rest) if not line.startswith(" ")), len(rest))
    return [_MARK.sub("", line) for line in rest[:end]]


def test_an_unprotected_loop_has_sixty_lines_at_most() -> None:
    assert len(_FENCE.findall(PAGE.read_text(encoding="utf-8"))[0].splitlines()) <= 60


def test_lines_without_a_mark_are_those_of_the_unprotected_loop_in_their_order() -> None:
    left = iter(lines(0))
    unmarked = [line for line in lines(1) if not _MARK.search(line)]
    assert [line for line in unmarked if line not in left] == []


def test_lines_with_a_mark_are_new_and_as_many_as_the_page_says() -> None:
    marked = [_MARK.sub("", line) for line in lines(1) if _MARK.search(line)]
    assert set(marked).isdisjoint(lines(0))
    assert len(marked) == 20
    assert "twenty of them" in PAGE.read_text(encoding="utf-8")


def test_of_the_loop_four_lines_go_and_three_come() -> None:
    before, after = body(lines(0)), body(lines(1))
    assert (len(before), len(after)) == (4, 3)
    assert set(before).isdisjoint(after)
    assert "Of the loop, four lines went and three came." in PAGE.read_text(encoding="utf-8")
