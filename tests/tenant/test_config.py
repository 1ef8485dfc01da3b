"""A tenant's policy in its file: the core's defaults, and one clear line for each mistake."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from secagg.errors import ConfigError
from secagg.policy import Policy
from secagg_tenant.config import Config, PolicyTable, check_text, load_config, required_files

PIN = "ab" * 32


def written(directory: Path, policy: str = "") -> Path:
    path = directory / "tenant.toml"
    path.write_text(
        f'coordinator = "localhost:8470"\nkeys = "keys"\ndata = "data"\n[policy]\n'
        f'roster_digest = "{PIN}"\n{policy}\n[training]\ntrainer = "vector"\n'
    )
    return path


def test_what_a_file_leaves_out_is_what_the_core_has_by_default(tmp_path: Path) -> None:
    policy = load_config(written(tmp_path)).policy.policy()
    assert policy == Policy(bytes.fromhex(PIN))
    assert policy.suites == ("x25519-mlkem768",)
    assert policy.complete_up_to == 256


def test_every_clause_of_the_core_can_be_set_in_the_file() -> None:
    assert {field.name for field in fields(Policy)} <= set(PolicyTable.model_fields)


def test_a_tenant_recomputes_some_leaves_unless_it_says_otherwise(tmp_path: Path) -> None:
    table = load_config(written(tmp_path)).policy
    assert (table.recompute, table.recompute_leaves, table.start_versions) == ("random", 8, ())
    text = f'recompute = "all"\nrecompute_leaves = 3\nstart_versions = ["{PIN}"]'
    table = load_config(written(tmp_path, text)).policy
    assert (table.recompute, table.recompute_leaves, table.start_versions) == ("all", 3, (PIN,))
    overridden = {"SECAGG_TENANT__POLICY__RECOMPUTE": "off"}
    assert load_config(written(tmp_path, text), overridden).policy.recompute == "off"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('suites = ["rsa"]', "policy.suites"),
        ('schemes = ["none"]', "policy.schemes"),
        ("complete_up_to = -1", "policy.complete_up_to"),
        ('recompute = "some"', "policy.recompute"),
        ("recompute = true", "policy.recompute"),
        ("recompute_leaves = 0", "policy.recompute_leaves"),
        ('start_versions = ["xyz"]', "policy.start_versions"),
    ],
)
def test_a_mistake_in_the_policy_names_its_key(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        load_config(written(tmp_path, text))


def test_an_allowed_downgrade_is_written_out(tmp_path: Path) -> None:
    text = 'suites = ["x25519-mlkem768", "x25519"]\ncomplete_up_to = 4'
    config: Any = load_config(written(tmp_path, text))
    assert isinstance(config, Config)
    policy = config.policy.policy()
    assert policy.suites == ("x25519-mlkem768", "x25519")
    assert policy.complete_up_to == 4


def series_file(directory: Path, model: str) -> Path:
    path = directory / "series.toml"
    path.write_text(
        f'coordinator = "localhost:8470"\nkeys = "keys"\ndata = "data"\n[policy]\n'
        f'roster_digest = "{PIN}"\n{model}\n[training]\ntrainer = "series"\nseries = "own"\n'
    )
    return path


def test_a_tenant_with_series_pins_the_forecaster_and_names_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needed where trainer = 'series'"):
        load_config(series_file(tmp_path, ""))
    config = load_config(series_file(tmp_path, f'[model]\nbase_digest = "{PIN}"'))
    assert required_files(config) == (tmp_path / "own",)
    with pytest.raises(ConfigError, match=r"own does not exist; training\.text, series or file"):
        check_text(config)


def test_a_forecaster_is_tuned_as_it_is_and_never_as_an_emulator(tmp_path: Path) -> None:
    model = f'[model]\nemulator = "emulator"\nowner_key = "{PIN}"'
    with pytest.raises(ConfigError, match="for trainer = 'lora'"):
        load_config(series_file(tmp_path, model))
