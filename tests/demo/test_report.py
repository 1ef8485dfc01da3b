"""The report says what was measured, with the promised keys, in one self-contained page."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from secagg_demo.page import render
from secagg_demo.report import write_json
from tests.demo.canned import LOST, NAMES, canned, canned_series

ROOT = Path(__file__).parents[2]
ROUND_KEYS = {
    "round", "scheme", "cohort", "survivors", "killed", "exact_sum", "upload_bytes_per_value",
    "uniformity_p", "seconds",
}  # fmt: skip
FIVE_ROWS = {
    "full_zero_shot", "emulator_zero_shot", "full_fine_tuned", "emulator_fine_tuned", "plug_in"
}  # fmt: skip
EVALUATION_KEYS = FIVE_ROWS | {
    "tenant", "base", "local_only", "local_only_on_all", "federated", "centralised"
}  # fmt: skip
SERIES_ROWS = {"zero_shot", "seasonal_naive", "full_fine_tuned", "federated"}
SERIES_KEYS = SERIES_ROWS | {"tenant", "base", "local_only", "local_only_on_all", "centralised"}
VOID = {"meta", "link", "br", "hr", "img", "input"}


@pytest.fixture(scope="module", params=["text", "timeseries"])
def finished(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    folder = tmp_path_factory.mktemp("finished")
    result = (canned if request.param == "text" else canned_series)(folder)
    report = write_json(result, folder)
    return folder, report, render(result, folder / "evidence")


@pytest.fixture(scope="module")
def of_text(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("text")
    return write_json(canned(folder), folder)


def test_time_series_have_rows_and_keys_of_their_own(tmp_path: Path) -> None:
    report = write_json(canned_series(tmp_path), tmp_path)
    assert report["task"] == "timeseries"
    assert report["series_rows"].keys() == SERIES_ROWS
    assert report["unit"] == "pinball"
    for row in report["evaluation"]:
        assert row.keys() == SERIES_KEYS
        assert row["base"] == row["zero_shot"]
    assert not {"five_rows", "protects", "texts", "mission"} & report.keys()
    assert report["helped"] == list(NAMES)
    assert len(report["federated_by_round"]) == 4
    assert (tmp_path / "series.json").exists()


def test_a_company_that_the_federation_does_not_help_is_named(tmp_path: Path) -> None:
    good = canned_series(tmp_path)
    assert good.comparison is not None
    worse, *rest = good.comparison.results
    worse = replace(worse, losses={**worse.losses, "federated": worse.losses["zero_shot"]})
    result = replace(good, comparison=replace(good.comparison, results=(worse, *rest)))
    assert write_json(result, tmp_path)["helped"] == list(NAMES[1:])
    page = render(result, tmp_path / "evidence")
    assert f"not better than the one as it was for {NAMES[0]}" in page


def test_the_promised_keys_are_there(of_text) -> None:
    report = of_text
    assert {"rounds", "evaluation", "parameters", "seconds", "five_rows"} <= report.keys()
    assert report["five_rows"].keys() == FIVE_ROWS
    for entry in report["rounds"]:
        assert entry.keys() >= ROUND_KEYS
        assert isinstance(entry["seconds"], dict)
    for row in report["evaluation"]:
        assert row.keys() == EVALUATION_KEYS
        assert (row["base"], row["federated"]) == (row["full_zero_shot"], row["plug_in"])


def test_the_report_is_json_without_infinities(finished) -> None:
    folder, report, _ = finished

    def refuse(name: str) -> None:
        raise AssertionError(name)

    text = (folder / "report.json").read_text()
    assert json.loads(text, parse_constant=refuse) == json.loads(json.dumps(report))


def test_the_killed_tenant_is_missing_among_the_survivors(finished) -> None:
    _, report, _ = finished
    second = report["rounds"][1]
    assert second["killed"] == [LOST]
    assert second["survivors"] == list(NAMES[:-1])
    assert second["exact_sum"] is True


def test_the_recovered_share_is_of_the_mean_gain(of_text) -> None:
    report = of_text
    assert report["recovered_share_of_centralised_gain"] == pytest.approx(0.27 / 0.3)
    assert report["recovered_share_of_full_fine_tuning_gain"] == pytest.approx(0.27 / 0.3)
    assert report["protects"] is True


def test_an_emulator_as_good_as_the_plug_in_is_said_not_to_protect(tmp_path: Path) -> None:
    good = canned(tmp_path)
    assert good.comparison is not None
    results = tuple(
        replace(r, losses={**r.losses, "emulator_fine_tuned": r.losses["plug_in"]})
        for r in good.comparison.results
    )
    result = replace(good, comparison=replace(good.comparison, results=results))
    assert write_json(result, tmp_path)["protects"] is False
    assert "does not hold" in render(result, tmp_path / "evidence")


def test_the_repositorys_own_check_accepts_the_evidence(finished) -> None:
    folder, _, _ = finished
    checked = subprocess.run(
        [sys.executable, ROOT / ".ci" / "check_demo.py", folder], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count("equal") == 3


def test_the_page_needs_nothing_else(finished) -> None:
    _, _, page = finished
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    without_metadata = re.sub(r"<metadata>.*?</metadata>", "", without_names, flags=re.DOTALL)
    assert "http://" not in without_metadata
    assert "https://" not in without_metadata
    assert "<script" not in page
    assert "<link" not in page


def test_the_page_is_well_formed(finished) -> None:
    _, _, page = finished
    stack: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in VOID:
                stack.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert stack, f"</{tag}> closes nothing"
            assert stack.pop() == tag

    Balance().feed(page)
    assert stack == []


def test_ids_of_plots_do_not_collide(finished) -> None:
    _, _, page = finished
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_names_from_outside_are_escaped(finished) -> None:
    _, _, page = finished
    assert "<odd>" not in page
    assert "&lt;odd&gt;&amp;" in page


def test_an_aborted_round_is_visible_and_opens_nothing(tmp_path: Path) -> None:
    result = canned(tmp_path, abort=True)
    report = write_json(result, tmp_path)
    assert report["outcome"] == "aborted"
    last = report["rounds"][-1]
    assert last["outcome"] == "aborted"
    assert last["exact_sum"] is None
    assert last["survivors"] == []
    assert last["killed"] == list(NAMES[-2:])
    assert last["reason"]
    assert report["evaluation"] == []
    assert "was aborted, and nothing was opened" in render(result, tmp_path / "evidence")
    assert not (tmp_path / "evidence" / "round-2" / "opened_sum.npy").exists()
