"""What a vector file is made of: cases, and the operations that they name.

A case has a name, an operation with its input, and either its output or, under `refused`, the class
of the error and the number of the check in docs/protocol.md that refuses the input ("" where it is
the caller's own mistake, which no peer can make).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from secagg.errors import SecaggError

Case = dict[str, Any]
OPERATIONS: dict[str, Callable[..., Any]] = {}
_CHECKS = {
    "canonical.read": "C01",
    "ckks.check": "C42",
    "ckks.elements": "C25",
    "ckks.holds": "C42",
    "ckks.sum_of_shares": "C25",
    "ckks.unpack": "C44",
    "encoding.ring_bits_needed": "C29",
    "message.decode": "C01",
    "packing.unpack": "C17",
    "shamir.open": "C36",
    "suite.check_public_keys": "C06",
    "suite.open": "C11",
    "suite.open_pad": "C39",
}


def operation(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function an operation of the vectors."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        OPERATIONS[name] = function
        return function

    return register


def outcome(name: str, given: dict[str, Any]) -> Case:
    """What the code does with this input: `output`, or the class of the error that refuses it."""
    try:
        return {"output": OPERATIONS[name](**given)}
    except SecaggError as error:
        return {"refused": type(error).__name__}


def case(name: str, operation: str, check: str | None = None, **given: Any) -> Case:
    """One case; `check` is the number of the check that refuses it, if not the operation's."""
    found = outcome(operation, given)
    if "refused" in found:
        number = _CHECKS.get(operation, "") if check is None else check
        found = {"refused": {"error": found["refused"], "check": number}}
    return {"name": name, "operation": operation, "input": given, **found}


def shake(text: str, length: int) -> bytes:
    """Reproducible bytes: SHAKE-256 of the text."""
    return hashlib.shake_256(text.encode()).digest(length)


def stream(text: str) -> Callable[[int], bytes]:
    """Randomness whose draws are consecutive pieces of SHAKE-256 of the text."""
    place = 0

    def draw(length: int) -> bytes:
        nonlocal place
        place += length
        return shake(text, place)[place - length :]

    return draw
