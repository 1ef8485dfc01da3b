"""How long this process has spent in Shamir's scheme: dealing shares and rebuilding secrets.

Counted are all public functions and methods of `secagg.shamir`, and for scheme `ckks` those of
`secagg.ckks.sharing` (vectors dealt, checked, added and opened), but those that turn shares into
bytes and bytes into shares. They are wrapped where they are defined and wherever another module of
the core has them under a name of its own; what one calls within another counts once.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

from secagg import shamir
from secagg.plan import Scheme

_NOT_COUNTED = {"parse_share", "pack_elements", "parse_elements", "encode_check", "parse_check"}


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds = 0.0
        self.counted: list[ModuleType] = []
        self._depth = 0

    def timed(self, act: Callable[..., Any]) -> Callable[..., Any]:
        """The act, counted unless another one that counts has called it."""

        @functools.wraps(act)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            before = time.process_time()
            try:
                return act(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.process_time() - before

        return counted


_stopwatch = _Stopwatch()


def count_shamir(scheme: Scheme) -> None:
    """Count from now on, in this process and in those that it forks."""
    for module in _modules(scheme):
        if module in _stopwatch.counted:
            continue
        _stopwatch.counted.append(module)
        wrapped = {act: _stopwatch.timed(act) for act in _functions(module)}
        for owner in (module, *_classes(module)):
            _replace(owner, wrapped)
        for name, other in list(sys.modules.items()):
            if name.startswith("secagg."):
                _replace(other, wrapped)


def _modules(scheme: Scheme) -> tuple[ModuleType, ...]:
    if scheme != "ckks":
        return (shamir,)
    from secagg.ckks import sharing

    return shamir, sharing


def shamir_cpu_s() -> float:
    """CPU seconds of this process so far."""
    return _stopwatch.seconds


def _classes(module: ModuleType) -> Iterator[type]:
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__:
            yield value


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    for owner in (module, *_classes(module)):
        for name, value in vars(owner).items():
            ours = isinstance(value, FunctionType) and value.__module__ == module.__name__
            if ours and name not in _NOT_COUNTED and (name == "__init__" or name[0] != "_"):
                yield value


def _replace(owner: object, wrapped: dict[FunctionType, Callable[..., Any]]) -> None:
    for name, value in list(vars(owner).items()):
        if isinstance(value, FunctionType) and value in wrapped:
            setattr(owner, name, wrapped[value])
