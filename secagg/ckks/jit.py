"""Compiles this package's inner loops with numba.

numpy alone walks memory once for every operation, and a transform of 8192 residues has about a
hundred of them; the compiled loop stays in cache and uses the widest vectors that the machine has.
Kernels release the GIL, check no bounds and never raise: their callers hand them arrays of the
right shapes. With NUMBA_DISABLE_JIT=1 they are ordinary Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from secagg.errors import ConfigError

try:
    import numba
except ImportError as error:
    raise ConfigError(
        "scheme ckks needs packages that are not installed; run: pip install 'secagg[ckks]'"
    ) from error

_F = TypeVar("_F", bound=Callable[..., Any])


def kernel(function: _F) -> _F:
    """`function`, compiled when it is first called; kept on disk where there is a place for it."""
    try:
        compiled = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no writable folder to keep it in
        compiled = numba.njit(nogil=True, error_model="numpy")(function)
    return cast(_F, compiled)
