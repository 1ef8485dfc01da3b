"""`secagg config check` names a scheme whose packages are missing, else nothing about schemes."""

from pathlib import Path

import pytest

from secagg_wire import config_cli
from secagg_wire.config_cli import check
from tests.coordinator.federation import Enrolled


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Enrolled:
    return Enrolled.create(tmp_path_factory.mktemp("federation"))


def tenant_file(enrolled: Enrolled, folder: Path, schemes: str) -> Path:
    path = folder / "tenant.toml"
    path.write_text(
        f'coordinator = "localhost:8470"\nkeys = "{enrolled.keys["ada"].directory}"\n'
        f'data = "data"\n[policy]\nroster_digest = "{enrolled.roster.digest.hex()}"\n{schemes}'
        '[training]\ntrainer = "vector"\n'
    )
    return path


def owner_file(enrolled: Enrolled, folder: Path, scheme: str) -> Path:
    path = folder / "owner.toml"
    path.write_text(
        f'coordinator = "localhost:8470"\nkeys = "{enrolled.keys["ona"].directory}"\n'
        f'data = "data"\n[model]\nkind = "vector"\nlength = 9\n[round]\nscheme = "{scheme}"\n'
    )
    return path


def about_schemes(path: Path) -> list[tuple[str, str]]:
    return [(one.level, one.message) for one in check(path) if one.subject == "schemes"]


def test_nothing_is_said_where_the_packages_are_here(enrolled: Enrolled, tmp_path: Path) -> None:
    assert about_schemes(tenant_file(enrolled, tmp_path, "")) == []
    assert about_schemes(owner_file(enrolled, tmp_path, "ckks")) == []


def test_missing_packages_are_an_owners_error_and_a_tenants_warning(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_cli, "find_spec", lambda name: None)
    ((level, message),) = about_schemes(tenant_file(enrolled, tmp_path, ""))
    assert (level, "will be declined" in message) == ("warning", True)
    ((level, message),) = about_schemes(owner_file(enrolled, tmp_path, "ckks"))
    assert (level, "pip install 'secagg[ckks]'" in message) == ("error", True)
    masking = 'schemes = ["masking"]\n'
    assert about_schemes(tenant_file(enrolled, tmp_path, masking)) == []
    assert about_schemes(owner_file(enrolled, tmp_path, "auto")) == []
