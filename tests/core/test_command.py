"""The dispatcher by itself: summaries without an import, exit codes, what is no missing extra."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint

import pytest

from secagg import cli
from secagg.errors import (
    ConfigError,
    MalformedMessage,
    PolicyRefused,
    RoundAborted,
    SecaggError,
    UsageError,
)


def point(module: str, name: str = "greet") -> EntryPoint:
    return EntryPoint(name, f"{module}:main [polite]", cli.COMMAND_GROUP)


@pytest.mark.parametrize(
    ("module", "summary"),
    [
        ("secagg.cli", cli.__doc__.splitlines()[0] if cli.__doc__ else ""),
        ("no_such_module", "(no summary)"),
        ("secagg.no_such_module", "(no summary)"),
        ("math", "(no summary)"),  # no Python source
    ],
)
def test_a_summary_is_read_from_the_source_and_never_imported(module: str, summary: str) -> None:
    assert cli.summary_of(point(module)) == summary


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (UsageError("x"), 2),
        (MalformedMessage("x"), 4),
        (RoundAborted("x"), 5),
        (PolicyRefused("f", "x"), 5),
        (SecaggError("x"), 1),
    ],
)
def test_every_error_has_its_documented_exit_code(error: Exception, code: int) -> None:
    assert cli.exit_code(error) == code


def run(argv: Sequence[str], monkeypatch: pytest.MonkeyPatch, *known: EntryPoint) -> int:
    monkeypatch.setattr(cli, "entry_points", lambda group: known)
    return cli.main(argv)


def test_a_missing_module_of_ours_is_a_bug_and_no_missing_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("secagg.no_such_module", "secagg_nothing", "greeting_that_is_absent.command"):
        with pytest.raises(ModuleNotFoundError):
            run(["greet"], monkeypatch, point(module))
    assert capsys.readouterr().err == ""


def test_an_unknown_command_is_answered_with_the_nearest_or_with_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = (point("secagg.cli", "plan"), point("secagg.cli", "tenant"))
    assert run(["tenent"], monkeypatch, *known) == 2
    assert capsys.readouterr().err == (
        "secagg: there is no command 'tenent'; did you mean 'tenant'?\n"
    )
    assert run(["xyz"], monkeypatch, *known) == 2
    assert capsys.readouterr().err == "secagg: there is no command 'xyz'; there are: plan, tenant\n"


class Command:
    """An entry point whose command is at hand."""

    def __init__(self, error: BaseException) -> None:
        self.name, self.module, self.extras, self.dist = "greet", "greeting", [], None
        self._error = error

    def load(self) -> cli.Command:
        def command(argv: list[str]) -> int:
            raise self._error

        return command


def test_a_reader_that_went_away_ends_the_command_quietly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    with open(os.path.join(tmp_path, "out"), "w+") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert run(["greet"], monkeypatch, Command(BrokenPipeError())) == 141  # type: ignore[arg-type]
        assert os.path.samestat(os.fstat(out.fileno()), os.stat(os.devnull))


def test_without_a_distribution_the_advice_is_to_install_all_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = ModuleNotFoundError("no", name="a_module_that_nobody_has")
    assert run(["greet"], monkeypatch, Command(absent)) == 3  # type: ignore[arg-type]
    assert capsys.readouterr().err.endswith("install it with: pip install 'secagg[all]'\n")
