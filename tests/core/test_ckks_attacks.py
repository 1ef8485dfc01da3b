"""Attacks on CKKS keys that live longer than a sum, as the scripts of docs/attacks run them."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ATTACKS = Path(__file__).resolve().parents[2] / "docs" / "attacks"


@pytest.fixture
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    name = request.param
    spec = spec_from_file_location(name, ATTACKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", ["shared_key"], indirect=True)
def test_one_client_with_the_shared_key_opens_another_clients_ciphertext(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main()
    assert "4096 of 4096 levels are exactly those of client 0" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["published_sums"], indirect=True)
def test_two_published_sums_under_a_standing_key_are_the_key(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main()
    assert "it is the secret key, word for word: True" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["one_time_keys"], indirect=True)
def test_with_one_time_keys_the_same_attackers_are_left_with_the_sum(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main()
    assert "S opens the sum, as it should" in capsys.readouterr().out
