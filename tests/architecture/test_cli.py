"""The dispatcher's contract, shown with a command of another distribution on the path."""

from pathlib import Path

import pytest

from secagg.cli import main

PLUGIN = '''"""Greets, or fails as it is told.

Nothing of this belongs in the summary.
"""

from secagg.errors import ConfigError, RoundAborted, UsageError


def main(argv: list[str]) -> int:
    match argv:
        case ["config"]:
            raise ConfigError("plan.toml: threshold 2 is below 3;\\n lower f")
        case ["usage"]:
            raise UsageError("submitted twice")
        case ["interrupt"]:
            raise KeyboardInterrupt
        case ["bug"]:
            raise ZeroDivisionError
        case ["late-import"]:
            import a_module_that_nobody_has
    print("hello", *argv)
    return 7
'''

MISSING_EXTRA = (
    "secagg {}: the Python module 'a_module_that_nobody_has' is not installed; "
    "install it with: pip install 'greeting[polite]'\n"
)


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "greeting_command.py").write_text(PLUGIN)
    (tmp_path / "lacking_command.py").write_text("import a_module_that_nobody_has\n")
    metadata = tmp_path / "greeting-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[secagg.commands]\n"
        "greet = greeting_command:main [polite]\n"
        "lacking = lacking_command:main [polite]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_arguments_and_exit_code_pass_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["greet", "--help", "you"]) == 7
    assert capsys.readouterr().out == "hello --help you\n"


def test_help_lists_commands_with_the_first_docstring_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "Greets, or fails as it is told." in out
    assert "Nothing of this" not in out
    assert "(no summary)" in next(line for line in out.splitlines() if "lacking" in line)


@pytest.mark.parametrize(
    ("argv", "code", "line"),
    [
        (["gret"], 2, "secagg: there is no command 'gret'; did you mean 'greet'?\n"),
        (["greet", "config"], 2, "secagg greet: plan.toml: threshold 2 is below 3; lower f\n"),
        (["greet", "usage"], 2, "secagg greet: submitted twice\n"),
        (["greet", "interrupt"], 130, "secagg greet: interrupted\n"),
        *(
            (
                argv,
                3,
                MISSING_EXTRA.format(argv[0]),
            )
            for argv in (["lacking"], ["greet", "late-import"])
        ),
    ],
)
def test_failures_are_one_line_and_a_documented_exit_code(
    argv: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", line)


def test_no_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: secagg" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        main(["greet", "bug"])
