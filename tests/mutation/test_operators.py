"""The mutation tester's own tests: what it changes, what it leaves alone, what it cites."""

import ast

from tests.mutation.citations import checks_at, cited
from tests.mutation.operators import mutants

SOURCE = b'''"""A module."""

LIMIT = 3


def check(one: int, others: list[int] | None = None) -> list[int]:
    """No more than the limit (C05)."""
    if one > LIMIT or one in (others or []):
        raise ValueError(f"{one + 1} is over {LIMIT}")  # C06
    note(one)
    if one < 0 or not all(
        other for other in others or []
    ):
        raise ValueError
    return sorted(other for other in others or [] if other < one)
'''


def changes(source: bytes = SOURCE) -> set[tuple[str, str]]:
    return {(one.before, one.after) for one in mutants("module.py", source)}


def test_checks_clauses_boundaries_calls_filters_and_orders_are_changed() -> None:
    found = changes()
    for change in (
        ("3", "4"),
        ("one > LIMIT", "(one >= LIMIT)"),
        ("one in (others or [])", "(one not in (others or []))"),
        ("one > LIMIT or one in (others or [])", "((one > LIMIT))"),
        ("one > LIMIT or one in (others or [])", "((one > LIMIT) and (one in (others or [])))"),
        ('raise ValueError(f"{one + 1} is over {LIMIT}")', "pass"),
        ("note(one)", "pass"),
        ("other < one", "True"),
        ("sorted(other for other in others or [] if other < one)", "[]"),
    ):
        assert change in found


def test_messages_annotations_and_docstrings_are_left_alone() -> None:
    assert not any("is over" in before and after != "pass" for before, after in changes())
    assert not any("list[int]" in before or "No more" in before for before, _ in changes())


def test_every_mutant_is_a_module_with_its_lines_where_they_were() -> None:
    for mutant in mutants("module.py", SOURCE):
        mutated = mutant.apply(SOURCE)
        ast.parse(mutated)
        assert mutated != SOURCE
        assert mutated.count(b"\n") == SOURCE.count(b"\n")


def test_mutants_have_keys_of_their_own_that_outlive_changes_elsewhere() -> None:
    keys = [mutant.key for mutant in mutants("module.py", SOURCE)]
    assert len(set(keys)) == len(keys)
    moved = SOURCE.replace(b'"""A module."""', b'"""A module."""\n\nOTHER = 1')
    assert set(keys) <= {mutant.key for mutant in mutants("module.py", moved)}


def test_a_line_is_about_the_check_beside_it_and_else_about_its_functions() -> None:
    assert cited("C12 to C14, C21") == {"C12", "C13", "C14", "C21"}
    source = SOURCE.decode()
    assert checks_at(source, 9) == {"C06"}
    assert checks_at(source, 10) == {"C05"}
    assert checks_at(source, 3) == frozenset()
