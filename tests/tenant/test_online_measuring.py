"""A tenant notices drift in what comes, and judges versions on its own windows; all of it local."""

from __future__ import annotations

import math
import shutil
import stat
from pathlib import Path

import pytest
import torch

from secagg.errors import ConfigError
from secagg_models import updates
from secagg_models.base import Base
from secagg_models.online import windows as online_windows
from secagg_models.series.batch import SeriesBatch
from tests.tenant.forecasts import QUIET, Company, disturbed, start, trained_base, write


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return trained_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def company(base: Base, tmp_path: Path) -> Company:
    write(tmp_path / "series", QUIET)
    return Company.open(base, tmp_path)


def test_new_values_are_looked_at_once_and_what_stays_the_same_raises_no_alarm(
    company: Company,
) -> None:
    like = company.version(start(company.base), 1)
    first = company.measuring.look(like, None)
    assert (first.fresh, first.measured) == (64, 64)
    assert company.measuring.look(like, None).fresh == 0
    for length in (QUIET + 40, QUIET + 80):
        write(company.folder / "series", length)
        look = company.measuring.look(like, None)
        assert (look.fresh, look.alarms) == (20, ())


def test_a_change_in_the_data_raises_an_alarm_even_after_a_restart(
    company: Company,
) -> None:
    like = company.version(start(company.base), 1)
    company.measuring.look(like, None)
    again = Company.open(company.base, company.folder)
    write(company.folder / "series", QUIET + 80, drift_from=QUIET)
    look = again.measuring.look(like, None)
    assert look.fresh == 40
    assert [alarm.direction for alarm in look.alarms] == ["worse"]


def test_the_same_number_of_windows_is_measured_with_and_without_drift(
    company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    original = online_windows.window_losses

    def counting(*arguments: object) -> object:
        measured.append(len(arguments[1]))  # type: ignore[arg-type]
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("secagg_tenant.measuring.window_losses", counting)
    like = company.version(start(company.base), 1)
    seen = []
    for length, drift in ((QUIET, None), (QUIET, None), (QUIET + 80, QUIET)):
        write(company.folder / "series", length, drift)
        company.measuring.look(like, None)
        seen.append(tuple(measured))
        measured.clear()
    assert seen == [(64, 16)] * 3


def test_a_harmful_version_is_rejected_and_one_that_changes_nothing_is_approved(
    company: Company,
) -> None:
    neutral = company.version(start(company.base), 1)
    harmful = company.version(disturbed(start(company.base), 3.0), 2)
    assert company.measuring.compare(None, neutral).verdict == "approved"
    found = company.measuring.compare(neutral, harmful)
    assert found.verdict == "rejected"
    assert found.figures["held_out_loss"] > found.held_out.before
    # The other way round it is an improvement.
    assert company.measuring.compare(harmful, neutral).verdict == "approved"


def test_the_memory_stays_what_it_was_when_the_data_move_on(company: Company) -> None:
    version = company.version(start(company.base), 1)
    before = company.measuring.compare(None, version)
    write(company.folder / "series", QUIET + 120, drift_from=QUIET)
    company.trainer.reread()
    after = company.measuring.compare(None, version)
    assert after.memory == before.memory
    assert after.held_out.before > before.held_out.before


def test_a_new_model_is_no_drift(company: Company) -> None:
    """Losses jump when another version serves; the reference goes with them."""
    good = company.version(start(company.base), 1)
    bad = company.version(disturbed(start(company.base), 10.0), 2)
    company.measuring.look(good, None)
    write(company.folder / "series", QUIET + 80)
    look = company.measuring.look(good, bad)
    assert (look.fresh, look.alarms) == (40, ())


def test_what_is_kept_is_readable_by_this_tenant_alone(company: Company) -> None:
    company.measuring.look(company.version(start(company.base), 1), None)
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (company.folder / "online").iterdir()
    }
    assert modes == {"memory.npz": 0o600, "watch.json": 0o600}


def test_data_that_cannot_be_read_are_an_error_and_the_old_ones_stay(company: Company) -> None:
    like = company.version(start(company.base), 1)
    before = company.trainer.held_out(like, 4)
    shutil.rmtree(company.folder / "series")
    with pytest.raises(ConfigError, match="no such folder"):
        company.measuring.look(like, None)
    after = company.trainer.held_out(like, 4)
    assert isinstance(before, SeriesBatch)
    assert isinstance(after, SeriesBatch)
    assert torch.equal(before.values.nan_to_num(-9), after.values.nan_to_num(-9))


def test_new_data_that_cannot_be_trained_on_leave_the_training_as_it_was(company: Company) -> None:
    """A round given up for a file that came would tell of it."""
    like = company.version(start(company.base), 1)
    company.measuring.look(like, None)
    before = company.trainer._stream("train")
    (company.folder / "series" / "new.csv").write_text("1\n" * 20)
    with pytest.raises(ConfigError, match="too few"):
        company.measuring.look(like, None)
    assert company.trainer._stream("train") is before


def test_a_watch_that_cannot_be_read_names_the_cure(company: Company) -> None:
    like = company.version(start(company.base), 1)
    company.measuring.look(like, None)
    (company.folder / "online" / "watch.json").write_text("{}")
    with pytest.raises(ConfigError, match="remove it"):
        company.measuring.look(like, None)


def test_a_version_whose_forecasts_are_no_numbers_is_rejected(company: Company) -> None:
    beginning = start(company.base)
    largest = {
        name: 1.5e38 * tensor.sign() for name, tensor in disturbed(beginning, 1).trained.items()
    }
    broken = company.version(updates.next_round(beginning, largest, 1.0), 1)
    assert company.measuring.compare(None, broken).verdict == "rejected"
    assert company.trainer.evaluate(broken) == {"validation_pinball": math.inf}


def test_where_the_newest_values_are_missing_nothing_is_approved(company: Company) -> None:
    neutral = company.version(start(company.base), 1)
    company.measuring.look(neutral, None)
    for file in (company.folder / "series").iterdir():
        lines = file.read_text().splitlines()
        dead = [line.partition(",")[0] + "," for line in lines[-60:]]
        file.write_text("\n".join(lines[:-60] + dead) + "\n")
    company.trainer.reread(neutral)
    with pytest.raises(ConfigError, match="the newest values are missing"):
        company.measuring.compare(None, neutral)
    assert company.trainer.evaluate(neutral) == {}


def test_values_that_are_missing_are_no_drift(company: Company) -> None:
    like = company.version(start(company.base), 1)
    company.measuring.look(like, None)
    write(company.folder / "series", QUIET + 200)
    for file in (company.folder / "series").iterdir():
        lines = file.read_text().splitlines()
        dead = [line.partition(",")[0] + "," for line in lines[-200:]]
        file.write_text("\n".join(lines[:-200] + dead) + "\n")
    look = company.measuring.look(like, None)
    assert (look.fresh, look.alarms) == (64, ())


def test_a_memory_too_small_to_decide_by_begins_again_when_there_is_more(
    base: Base, tmp_path: Path
) -> None:
    write(tmp_path / "series", 48)
    company = Company.open(base, tmp_path)
    neutral = company.version(start(company.base), 1)
    found = company.measuring.compare(None, neutral)
    assert (found.memory.windows, found.verdict) == (2, "undecided")
    assert "on 2 windows (under 8 decide nothing)" in found.reason
    write(company.folder / "series", QUIET)
    company.trainer.reread(neutral)
    assert company.measuring.compare(None, neutral).verdict == "approved"


def test_a_memory_of_another_base_is_refused_with_the_cure(company: Company) -> None:
    like = company.version(start(company.base), 1)
    company.measuring.look(like, None)
    for foreign in (torch.zeros(9, 5, dtype=torch.int64), SeriesBatch(torch.zeros(9, 48), 32, 32)):
        online_windows.save_windows(company.folder / "online" / "memory.npz", foreign)
        with pytest.raises(ConfigError, match=r"remove .*online to begin anew"):
            company.measuring.look(like, None)
