"""Rules that no linter states: where secrets leave, and what the core never does."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

# Every module that may turn a secret into bytes. An addition is a decision to review; a name that
# no longer calls `.expose()` has to go.
MAY_EXPOSE = {
    "secagg/ckks/scheme.py",
    "secagg/identity.py",
    "secagg/masking.py",
    "secagg/participant.py",
    "secagg/participant_steps.py",
    "secagg/prg.py",
    "secagg/records.py",
    "secagg/shamir.py",
    "secagg/suite.py",
    "secagg/testing/ckks_deviations.py",
}


def _modules_with(root: Path, found: Callable[[ast.AST], bool], pattern: str) -> Iterator[str]:
    for source in sorted(root.glob(pattern)):
        if any(map(found, ast.walk(ast.parse(source.read_bytes())))):
            yield source.relative_to(root).as_posix()


def _is_expose_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "expose"


def _catches_everything(node: ast.AST) -> bool:
    if not isinstance(node, ast.ExceptHandler):
        return False
    if isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None:
        return False  # it cleans up and lets everything through
    caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    return any(
        kind is None or (isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException"))
        for kind in caught
    )


def _is_numpy_random(node: ast.AST) -> bool:
    match node:
        case ast.Attribute(value=ast.Name(id="np" | "numpy"), attr="random"):
            return True
        case ast.ImportFrom(module=str(module)):
            return module.partition(".")[0] == "random" or module.startswith("numpy.random")
        case ast.Import(names=names):
            return any(alias.name in ("random", "numpy.random") for alias in names)
        case _:
            return False


def test_only_listed_modules_expose_secrets(installed_wheel: Path) -> None:
    exposing = set(_modules_with(installed_wheel, _is_expose_call, "secagg*/**/*.py"))
    assert exposing == MAY_EXPOSE


def test_core_never_catches_everything(installed_wheel: Path) -> None:
    assert not list(_modules_with(installed_wheel, _catches_everything, "secagg/**/*.py"))


def test_core_uses_no_generator_that_is_not_cryptographic(installed_wheel: Path) -> None:
    using = _modules_with(installed_wheel, _is_numpy_random, "secagg/**/*.py")
    assert not [module for module in using if not module.startswith("secagg/testing")]
