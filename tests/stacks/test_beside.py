"""secagg beside a stack, in the environment that `pip install 'secagg[...]'` makes."""

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Of each extra, what its users import. It is loaded first: what cannot live beside it (a protobuf
# message of the same name, a runtime of another version) shows when ours follows.
STACKS = {
    "flower": (
        "flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy",
        "flwr.proto.grpcadapter_pb2_grpc", "flwr.simulation",
    ),
    "nvflare": (
        "nvflare.apis.impl.controller", "nvflare.client", "nvflare.collab",
        "nvflare.fuel.f3.drivers.grpc_driver",
    ),
    "ray": ("ray",),
}  # fmt: skip
STACK = {"flower": "flwr", "nvflare": "nvflare", "ray": "ray"}  # import name and distribution
PACKAGES = (
    "secagg", "secagg_wire", "secagg_tenant", "secagg_coordinator", "secagg_models",
    "secagg_owner", "secagg_embed", "secagg_demo",
)  # fmt: skip
# Where the name that is imported is not the distribution's.
DISTRIBUTED_AS = {
    "Crypto": "pycryptodome", "google": "protobuf", "grpc": "grpcio", "nacl": "pynacl",
    "grpc_health": "grpcio-health-checking", "grpc_status": "grpcio-status",
}  # fmt: skip
# Alembic runs it, in the middle of a migration.
NOT_FOR_IMPORT = {"secagg_coordinator.migrations.env"}

# Prints, for each of our modules that cannot be imported, what is not there, or the traceback. What
# says to its user which extra to install has the ModuleNotFoundError as its cause.
IMPORTER = """
import importlib, json, sys, traceback

def lacking(error):
    while error is not None:
        if isinstance(error, ModuleNotFoundError):
            return error.name
        error = error.__cause__

stack, ours = json.loads(sys.argv[1])
for name in stack:
    importlib.import_module(name)
failed = {}
for name in ours:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = lacking(error), traceback.format_exc()
print(json.dumps(failed))
"""

here = pytest.mark.parametrize("extra", [e for e, name in STACK.items() if find_spec(name)])


def _modules() -> Iterator[str]:
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        for source in sorted(folder.rglob("*.py")):
            parts = source.relative_to(folder.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if parts[-1] != "__main__" and name not in NOT_FOR_IMPORT:
                yield name


MODULES = list(_modules())


@pytest.fixture(scope="module")
def failed() -> Mapping[str, tuple[str | None, str]]:
    """Which of our modules a process cannot import that loaded the stack first."""
    stack = [name for extra, names in STACKS.items() if find_spec(STACK[extra]) for name in names]
    command = [sys.executable, "-I", "-c", IMPORTER, json.dumps([stack, MODULES])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: Mapping[str, tuple[str | None, str]] = json.loads(done.stdout.splitlines()[-1])
    return result


def _declared_by() -> Mapping[str, set[str]]:
    """Distributions, each with the extras that bring it; "" is the base."""
    extras = importlib.metadata.metadata("secagg").get_all("Provides-Extra") or []
    declared: dict[str, set[str]] = {}
    for requirement in map(Requirement, importlib.metadata.requires("secagg") or []):
        for extra in ("", *extras):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                declared.setdefault(canonicalize_name(requirement.name), set()).add(extra)
    return declared


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports_or_lacks_what_another_extra_brings(
    module: str, failed: Mapping[str, tuple[str | None, str]]
) -> None:
    if module not in failed:
        return
    lacking, traceback = failed[module]
    top_level = (lacking or "").partition(".")[0]
    distribution = canonicalize_name(DISTRIBUTED_AS.get(top_level, top_level))
    brought_by = _declared_by().get(distribution, set())
    installed = {extra for extra, name in STACK.items() if find_spec(name)}
    assert brought_by, traceback
    assert not brought_by & {"", "testing", *installed}, traceback
    if module.startswith("secagg_embed"):
        assert distribution in STACK.values(), "an adapter needs its own stack and no other extra"
    pytest.skip(f"{distribution} is not installed")


@here
def test_what_the_extra_declares_is_installed_in_the_versions_it_asks_for(extra: str) -> None:
    for requirement in map(Requirement, importlib.metadata.requires("secagg") or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            version = importlib.metadata.version(requirement.name)
            assert requirement.specifier.contains(version), f"{requirement}, {version}"


def test_no_package_lacks_what_it_requires() -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_tenants_make_their_folders_beside_flower_and_nvflare() -> None:
    if not (find_spec("flwr") or find_spec("nvflare")):
        pytest.skip("[ray] brings no [node]: a simulation makes its tenants' keys itself")
    command = [str(Path(sys.executable).with_name("secagg")), "keys", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
