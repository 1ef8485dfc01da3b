"""What the wheel holds, and who may import whom in it."""

import os
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest

PACKAGES = {
    "secagg",
    "secagg_wire",
    "secagg_tenant",
    "secagg_coordinator",
    "secagg_models",
    "secagg_owner",
    "secagg_embed",
    "secagg_demo",
}
NOT_SHIPPED = {"secagg/ruff.toml"}


def _pyproject(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


def test_wheel_adds_only_our_distinct_top_level_names(installed_wheel: Path) -> None:
    names = {path.name for path in installed_wheel.iterdir() if path.suffix != ".dist-info"}
    assert names == PACKAGES


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_every_package_is_typed(installed_wheel: Path, package: str) -> None:
    assert (installed_wheel / package / "py.typed").is_file()


def test_wheel_holds_every_tracked_file_of_the_packages(
    installed_wheel: Path, repository: Path
) -> None:
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout: nothing to compare the wheel with")
    wheel_target = _pyproject(repository)["tool"]["hatch"]["build"]["targets"]["wheel"]
    missing = []
    for package in map(Path, wheel_target["packages"]):
        command = ["git", "ls-files", "--", str(package)]
        listed = subprocess.run(
            command, cwd=repository, check=True, capture_output=True, text=True
        ).stdout.split()
        present = {name for name in listed if (repository / name).exists()} - NOT_SHIPPED
        missing += [
            name
            for name in present
            if not (installed_wheel / Path(name).relative_to(package.parent)).is_file()
        ]
    assert not missing


def test_every_command_of_the_wheel_has_its_module(installed_wheel: Path) -> None:
    (entry_points,) = installed_wheel.glob("*.dist-info/entry_points.txt")
    parser = ConfigParser(delimiters=("=",))
    parser.read(entry_points)
    missing = []
    for command, value in parser["secagg.commands"].items():
        module = value.partition(":")[0].replace(".", "/")
        if not (installed_wheel / f"{module}.py").is_file():
            missing.append(f"{command} = {value}")
    assert not missing


def test_import_contracts_hold_on_the_wheel(
    installed_wheel: Path, repository: Path, tmp_path: Path
) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed_wheel)}
    where = subprocess.run(
        [sys.executable, "-c", "import secagg; print(secagg.__file__)"],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert Path(where.strip()).is_relative_to(installed_wheel)
    linted = subprocess.run(
        [
            *(sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"),
            *("--no-cache", "--no-logo", "--config", str(repository / "pyproject.toml")),
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_version_of_the_package_and_of_the_metadata_agree(repository: Path) -> None:
    import secagg

    declared = _pyproject(repository)["project"]["version"]
    assert getattr(secagg, "__version__", declared) == declared
