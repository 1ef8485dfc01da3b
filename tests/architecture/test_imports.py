"""What is loaded when, and which distributions a package may use at all."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import secagg

PUBLIC_NAMES: tuple[str, ...] = (
    "Aborted",
    "Aggregator",
    "ConfigError",
    "DeadlineExpired",
    "Deadlines",
    "Dispatch",
    "Entry",
    "Excluded",
    "FaultyCoordinator",
    "FaultyParticipant",
    "FaultyParticipantOrCoordinator",
    "Finished",
    "Identity",
    "IdentitySeed",
    "Layout",
    "Ledger",
    "MalformedMessage",
    "Member",
    "MemoryLedger",
    "MemorySpool",
    "Participant",
    "Persist",
    "Policy",
    "PolicyRefused",
    "ProtocolError",
    "Quantiser",
    "Result",
    "Roster",
    "RoundAborted",
    "RoundPlan",
    "SealKey",
    "SecaggError",
    "Send",
    "SpentInput",
    "Spool",
    "StaleState",
    "Step",
    "TensorSpec",
    "TooFewSurvivors",
    "UsageError",
    "Verified",
    "__version__",
    "verify_transcript",
)

NODE = {"alembic", "cryptography", "google", "grpc", "grpc_health", "grpc_status", "numpy"}
NODE |= {"pydantic", "rich", "sqlalchemy"}
TORCH = {"numpy", "peft", "safetensors", "torch", "transformers"}
# What a package may import beside the standard library and secagg's own packages: each name is a
# declared dependency. Contracts between our packages are import-linter's (pyproject.toml).
MAY_IMPORT = {
    "secagg": {"numpy", "cryptography", "Crypto", "blake3", "nacl"},
    "secagg/ckks": {"numpy", "cryptography", "Crypto", "tenseal", "numba"},
    "secagg/testing": {"numpy", "cryptography", "hypothesis"},
    "secagg_wire": NODE - {"alembic", "sqlalchemy"},
    "secagg_tenant": NODE | TORCH,
    "secagg_coordinator": NODE,
    "secagg_models": TORCH | {"scipy", "statsmodels"},
    "secagg_owner": NODE | TORCH | {"matplotlib"},
    "secagg_embed": {"numpy"},
    "secagg_embed/flower": {"numpy", "flwr"},
    "secagg_embed/nvflare": {"numpy", "nvflare"},
    "secagg_embed/simulation": {"numpy", "ray", "rich"},
    "secagg_demo": NODE | TORCH | {"matplotlib", "scipy"},
}
HEAVY = {"torch", "grpc", "tenseal", "google.protobuf", "transformers", "sqlalchemy", "numba"}


def test_public_names_are_frozen() -> None:
    assert tuple(getattr(secagg, "__all__", ())) == PUBLIC_NAMES


def test_import_secagg_adds_no_io_clock_or_randomness(
    installed_wheel: Path, repository: Path
) -> None:
    check = repository / ".ci" / "check_light_import.py"
    command = [sys.executable, str(check), str(installed_wheel)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("options", [["--help"], ["--version"], ["no-such-command"]])
def test_the_dispatcher_alone_loads_nothing_heavy(
    installed_wheel: Path, options: list[str]
) -> None:
    program = f"""
import sys
sys.path[:0] = [{str(installed_wheel)!r}]
from secagg.cli import main
try:
    main({options!r})
except SystemExit:
    pass
print("loaded:", *sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.rpartition("loaded:")[2].split())
    assert not loaded & HEAVY
    assert {name for name in loaded if name.startswith("secagg_")} == set()


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module.partition(".")[0]
            case _:
                pass


def _package(module: Path) -> str:
    apart = "/".join(module.with_suffix("").parts[:2])
    return apart if apart in MAY_IMPORT else module.parts[0]


def test_packages_import_only_their_declared_distributions(installed_wheel: Path) -> None:
    foreign: dict[str, set[str]] = {}
    for source in installed_wheel.rglob("*.py"):
        module = source.relative_to(installed_wheel)
        names = set(_imported(ast.parse(source.read_bytes())))
        names -= sys.stdlib_module_names | MAY_IMPORT[_package(module)]
        names = {name for name in names if name != "secagg" and not name.startswith("secagg_")}
        if names:
            foreign[str(module)] = names
    assert not foreign
