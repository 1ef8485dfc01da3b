"""The frame of experiments: processes, paired intervals, findings that do not hold, files."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from secagg.errors import ConfigError
from secagg_demo import experiment_cli
from secagg_demo.experiments import EXPERIMENTS, page
from secagg_demo.experiments.frame import (
    Finding,
    Interval,
    Job,
    Results,
    Summary,
    Table,
    above_zero,
    difference,
    find,
    interval,
)
from secagg_demo.experiments.run import Options, Ran, run, write
from secagg_demo.experiments.worker import plain
from secagg_demo.processes import ProcessFailed

_MEASURE = '''
import math
import sys

def measure(arguments, report):
    """Twice a seed, and something that is not finite."""
    print("a library that prints")
    report(1, 1)
    if arguments["seed"] == 13:
        raise ValueError("no figure for 13")
    return {"twice": 2 * arguments["seed"], "never": math.inf, "device": arguments["device"]}
'''


class Doubling:
    """The smallest experiment; its one claim does not hold."""

    NAME = "doubling"
    TITLE = "Doubling"
    QUESTION = "Is twice a seed less than the seed?"
    SIZES = ("quick", "default")
    SEEDS = 2

    @staticmethod
    def jobs(size: str, seeds: Sequence[int]) -> list[Job]:
        return [Job(f"double {seed}", "measured_here:measure", {"seed": seed}) for seed in seeds]

    @staticmethod
    def summarise(size: str, results: Results) -> Summary:
        found = interval([result["twice"] for result in results.values()])
        table = Table("Twice", ("arm", "value"), [("double", found)])
        finding = Finding("twice is less", found.high < 1, f"{found.mean:.1f}")
        plots = {
            "twice": page.intervals_plot({"double": found}, "value", "Twice"),
            "over time": page.curves_plot([1, 2], {"double": [found, found]}, ("x", "y"), "Twice"),
        }
        return Summary([table], [finding], plots, {"mean": found.mean, "worst": math.inf})


@pytest.fixture
def measured_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that the jobs' processes can import."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "measured_here.py").write_text(_MEASURE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))


@pytest.mark.usefixtures("measured_here")
def test_jobs_run_as_processes_and_what_does_not_hold_is_on_the_page(tmp_path: Path) -> None:
    summary, ran = run(Doubling(), Options("quick", 1, tmp_path, "cpu"))
    assert ran.cpu_s > 0
    stored = json.loads((tmp_path / "doubling.json").read_text())
    assert stored["jobs"]["double 1"] == {"twice": 2, "never": None, "device": "cpu"}
    written = (tmp_path / "doubling.md").read_text()
    assert "**DOES NOT HOLD**" in written
    assert "one seed: no interval" in written
    assert "secagg experiment doubling --size quick --seeds 1" in written
    assert "DOES NOT HOLD" in page.text(summary, ran)


@pytest.mark.usefixtures("measured_here")
def test_a_job_that_fails_ends_the_experiment_with_its_last_words(tmp_path: Path) -> None:
    class Unlucky(Doubling):
        @staticmethod
        def jobs(size: str, seeds: Sequence[int]) -> list[Job]:
            return Doubling.jobs(size, [13])

    with pytest.raises(ProcessFailed, match="no figure for 13"):
        run(Unlucky(), Options("quick", 1, tmp_path, "cpu"))
    assert not (tmp_path / "doubling.md").exists()


def test_files_hold_every_table_and_plot(tmp_path: Path) -> None:
    results = {f"double {seed}": {"twice": 2 * seed} for seed in (1, 2, 3)}
    summary = Doubling.summarise("quick", results)
    ran = Ran("secagg experiment doubling", "a machine", 1.0, 2.0, 3)
    write(Doubling(), Options("quick", 3, tmp_path), summary, ran, results)
    assert "4.000 [-0.969, 8.969]" in (tmp_path / "doubling.md").read_text()
    for name in ("doubling-twice.svg", "doubling-over-time.svg"):
        ElementTree.parse(tmp_path / name)
        assert name in (tmp_path / "doubling.md").read_text()
    stored = json.loads((tmp_path / "doubling.json").read_text())
    assert stored["tables"][0]["rows"][0][1]["mean"] == 4
    assert stored["figures"]["worst"] is None


def test_a_difference_is_paired_and_decides_only_with_its_whole_interval() -> None:
    low, high = [1.0, 5.0, 9.0], [1.5, 5.4, 9.6]
    found = difference(high, low)
    assert found.mean == pytest.approx(0.5)
    assert above_zero(found) is True
    assert above_zero(difference(low, high)) is False
    assert above_zero(interval([-1.0, 1.0])) is None


def test_sizes_seeds_tables_and_names_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no size 'large'"):
        run(Doubling(), Options("large", 1, tmp_path, "cpu"))
    with pytest.raises(ConfigError, match="1 or more"):
        run(Doubling(), Options("quick", 0, tmp_path, "cpu"))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="name a folder that can be written"):
        run(Doubling(), Options("quick", 1, tmp_path / "file", "cpu"))
    with pytest.raises(ConfigError, match="2 cells under 1"):
        Table("t", ["one"], [("a", "b")])
    with pytest.raises(ConfigError, match="no experiment 'doubling'"):
        find("doubling")


def test_only_json_values_leave_a_job() -> None:
    assert plain({"a": [1, math.nan, (True, None)]}) == {"a": [1, None, [True, None]]}
    with pytest.raises(TypeError, match="object"):
        plain({"a": object()})


@pytest.mark.parametrize(
    ("cell", "words"),
    [(1234567, "1,234,567"), (0.123456, "0.123"), (12.3456, "12.35"), (1e-7, "1e-07"),
     (math.nan, "none"), (Interval(1.0, 0.5, 1.5, 3), "1.000 [0.500, 1.500]")],
)  # fmt: skip
def test_cells_in_words(cell: float, words: str) -> None:
    assert page.in_words(cell) == words


def test_list_names_every_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment_cli.main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("five-rows", *EXPERIMENTS))


@pytest.mark.usefixtures("measured_here")
def test_the_command_prints_json_alone_on_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "secagg_demo.experiments.budgets", Doubling())
    options = ["--size", "quick", "--seeds", "2", "--device", "cpu", "--format", "json"]
    assert experiment_cli.main(["budgets", *options, "--out", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["findings"][0]["holds"] is False
    assert printed["tables"][0]["rows"][0][1]["count"] == 2
    assert (tmp_path / "doubling.md").exists()
