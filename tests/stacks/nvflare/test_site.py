"""Whose folder a site uses, and who decides that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from secagg.errors import ConfigError
from secagg_embed.folder import as_roster
from secagg_embed.nvflare.site import FOLDER, as_dxo, contribution, tenant_folder
from secagg_embed.tensors import layout_of, model_digest
from secagg_embed.terms import Terms
from tests.stacks.nvflare.local import workspace
from tests.stacks.nvflare.tenants import Federation, first_model


def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert tenant_folder("site-1", None) == tmp_path


def test_one_environment_can_serve_several_sites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site-7").mkdir()
    monkeypatch.setenv(FOLDER, str(tmp_path / "{site}"))
    assert tenant_folder("site-7", None) == tmp_path / "site-7"


def test_without_it_the_sites_own_configuration_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    space = workspace(tmp_path, "site-1")
    own = tmp_path / "site-1" / "local" / "secagg"
    with pytest.raises(ConfigError, match="secagg keys"):
        tenant_folder("site-1", space)
    own.mkdir()
    assert tenant_folder("site-1", space) == own


@pytest.mark.parametrize("name", ["", "..", "../other", "a/b", "site-1\n", "{site}"])
def test_a_name_leads_nowhere_else(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "{site}"))
    with pytest.raises(ConfigError):
        tenant_folder(name, None)


@pytest.mark.parametrize(
    ("steps", "weight"),
    [
        (7, 7),
        (7.9, 7),
        (np.int64(7), 7),
        (np.float32(7), 7),
        (100, 100),
        (10**30, 100),
        (1e99, 100),
    ],
)
def test_a_weight_is_any_number_of_steps_up_to_the_plans_largest(
    federation: Federation, steps: float, weight: int
) -> None:
    before = first_model()
    plan = Terms(1.0, max_weight=100).plan(
        as_roster(federation.roster), layout_of(before), model_digest(before), round_number=1
    )
    given = contribution(as_dxo((dict(before), steps), "examples"), before, plan, "examples")
    assert given.weight == weight
    assert not given.vector.any()
