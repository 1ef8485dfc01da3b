"""The measurement of simulated rounds measures one, and its table has what was measured."""

from pathlib import Path

from benchmarks.stacks.simulation import Case, markdown, run


def test_a_case_is_measured_and_told(tmp_path: Path) -> None:
    facts = run(Case("process", 5, 40, 2), tmp_path / "pids")
    assert len(facts["digests"]) == 2
    assert facts["peak_bytes"] > facts["workers_peak_bytes"] == 0
    table = markdown({"machine": "a machine", "ray": "no Ray", "cases": {"one": facts}})
    assert "| 5 | 40 | 5 | in process |" in table
    assert "the sums were the same" not in table, "there is nothing beside it"
    other = facts | {"executor": "ray", "workers_peak_bytes": 1 << 20}
    both = markdown({"machine": "a", "ray": "Ray", "cases": {"one": facts, "two": other}})
    assert "the sums were the same" in both
