"""The package's front: its public names, and the command that it is run as."""

import runpy
import sys

import pytest

import secagg


def test_public_names_are_loaded_when_they_are_asked_for_and_listed_before() -> None:
    vars(secagg).pop("Participant", None)
    assert {"Participant", "verify_transcript", "__version__"} <= set(dir(secagg))
    assert dir(secagg) == sorted(dir(secagg))
    assert secagg.Participant.__module__ == "secagg.participant"
    assert vars(secagg)["Participant"] is secagg.Participant


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'secagg' has no attribute 'Backdoor'"):
        _ = secagg.Backdoor


def test_the_package_runs_as_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["secagg", "--version"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("secagg", run_name="__main__")
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"secagg {secagg.__version__}\n"
