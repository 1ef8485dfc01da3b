"""The whole demonstration by its command's own function, with very little training."""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from secagg_demo.cli import _parser
from secagg_demo.show import show
from secagg_models.recipe import Recipe, SeriesRecipe
from secagg_models.series.forecaster import Forecaster, ForecasterShape, save_forecaster
from secagg_models.series.real import COMPANIES

pytestmark = [pytest.mark.slow, pytest.mark.processes]
ROOT = Path(__file__).parents[2]
TINY = Recipe(
    steps_per_round=2, batch=2, context=64, warmup_steps=1, lr=1e-3, full_lr=1e-3,
    test_windows=4,
)  # fmt: skip


def options(*arguments: str) -> argparse.Namespace:
    return _parser().parse_args([*arguments, "--format", "json"])


def test_five_tenants_three_rounds_one_killed_and_back(tmp_path: Path, capsys) -> None:
    out = tmp_path / "demo"
    assert show(options("--out", str(out)), TINY) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((out / "report.json").read_text())
    killed = report["rounds"][1]["killed"]
    assert len(killed) == 1
    assert [len(entry["survivors"]) for entry in report["rounds"]] == [5, 4, 5]
    assert killed[0] not in report["rounds"][1]["survivors"]
    assert all(entry["exact_sum"] for entry in report["rounds"])
    assert all(entry["transcript_holds"] for entry in report["rounds"])
    assert {row["tenant"] for row in report["evaluation"]} == set(report["rounds"][0]["cohort"])
    assert all(value > 0 for row in report["evaluation"] for value in list(row.values())[1:])
    assert (out / "report.html").stat().st_size > 100_000
    checked = subprocess.run([sys.executable, ROOT / ".ci" / "check_demo.py", out])
    assert checked.returncode == 0


def test_more_tenants_than_packages_share_them_by_file(tmp_path: Path, capsys) -> None:
    recipe = dataclasses.replace(TINY, packages=("networkx", "Pygments"))
    out = tmp_path / "demo"
    arguments = ("--tenants", "3", "--rounds", "1", "--kill", "0", "--out", str(out))
    assert show(options(*arguments), recipe) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rounds"][0]["survivors"] == ["networkx-1", "networkx-2", "pygments"]
    sources = [text["source"] for text in report["texts"]]
    assert "part 1 of 2 by file" in sources[0]
    listed = {t["tenant"]: t for t in json.loads((out / "texts.json").read_text())}
    paths = [
        {file["path"] for files in listed[name]["listing"].values() for file in files}
        for name in ("networkx-1", "networkx-2")
    ]
    assert not paths[0] & paths[1]


def test_a_kill_that_misses_the_quorum_ends_visibly_with_nothing_opened(
    tmp_path: Path, capsys
) -> None:
    out = tmp_path / "demo"
    arguments = ("--tenants", "3", "--rounds", "3", "--kill", "1", "--out", str(out))
    assert show(options(*arguments), TINY) == 5
    report = json.loads(capsys.readouterr().out)
    assert [entry["outcome"] for entry in report["rounds"]] == ["opened", "aborted"]
    assert report["rounds"][1]["exact_sum"] is None
    assert len(report["rounds"][1]["killed"]) == 1
    assert not (out / "evidence" / "round-2" / "opened_sum.npy").exists()
    assert "was aborted, and nothing was opened" in (out / "report.html").read_text()


def test_companies_with_time_series_go_through_the_same_rounds(tmp_path: Path, capsys) -> None:
    base, out = tmp_path / "forecaster", tmp_path / "demo"
    torch.manual_seed(3)
    save_forecaster(Forecaster(ForecasterShape(width=32, layers=2, intermediate=48)), base)
    recipe = SeriesRecipe(
        base=str(base), steps_per_round=2, batch=2, rank=4, warmup_steps=1, test_windows=8
    )
    arguments = ("--task", "timeseries", "--rounds", "2", "--out", str(out))
    assert show(options(*arguments), recipe) == 0
    report = json.loads(capsys.readouterr().out)
    assert [len(entry["survivors"]) for entry in report["rounds"]] == [5, 4]
    assert len(report["rounds"][1]["killed"]) == 1
    assert all(entry["exact_sum"] for entry in report["rounds"])
    assert all(entry["transcript_holds"] for entry in report["rounds"])
    assert [row["tenant"] for row in report["evaluation"]] == list(COMPANIES)
    assert all(value > 0 for row in report["evaluation"] for value in list(row.values())[1:])
    listed = json.loads((out / "series.json").read_text())
    names = [one["name"] for holding in listed for one in holding["listing"]]
    assert len(names) == len(set(names))
    checked = subprocess.run([sys.executable, ROOT / ".ci" / "check_demo.py", out])
    assert checked.returncode == 0
