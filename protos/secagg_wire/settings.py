"""A node's configuration: one TOML file, each value open to the environment.

With the prefix `SECAGG_TENANT__`, `SECAGG_TENANT__UPLOAD__MAX_BYTES_PER_SECOND=1000` overrides that
key in the table `[upload]`. Every mistake is one `ConfigError` that names the key. Relative paths
are relative to the file. No secret stands in such a file: private keys lie in the key directory.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo

from secagg.errors import ConfigError

_C = TypeVar("_C", bound="Table")
_BASE = "base"


class Table(BaseModel):
    """A table of the file: unknown keys are mistakes, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


def _anchored(path: Path, info: ValidationInfo) -> Path:
    base: Path = (info.context or {}).get(_BASE, Path())
    return base / path.expanduser()


def _digest(text: str) -> bytes:
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if len(data) != 32:
        raise ValueError("a SHA-256 digest has 64 hexadecimal digits")
    return data


FilePath = Annotated[Path, AfterValidator(_anchored)]
"""A path; a relative one starts from the folder of the file that names it."""
HexDigest = Annotated[str, AfterValidator(lambda text: _digest(text).hex())]
"""A SHA-256 digest in hexadecimal."""


def load(
    kind: type[_C], path: Path, prefix: str, environment: Mapping[str, str] = os.environ
) -> _C:
    """Read and check a configuration file.

    Raises:
        ConfigError: it cannot be read, is no TOML, or has a wrong or unknown value.
    """
    values = read_toml(path)
    for name, text in environment.items():
        if name.startswith(prefix):
            _override(values, name, name.removeprefix(prefix), text)
    try:
        return kind.model_validate(values, context={_BASE: path.resolve().parent})
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_mistake(error)}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The file's tables.

    Raises:
        ConfigError: it cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def first_mistake(error: ValidationError) -> str:
    """One line: which key, what is wrong, how many more mistakes there are."""
    mistake = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, mistake["loc"])) or "the file"
    more = error.error_count() - 1
    return f"{where}: {mistake['msg']}" + (f" (and {more} more)" if more else "")


def _override(values: dict[str, Any], name: str, key_path: str, text: str) -> None:
    *tables, key = key_path.lower().split("__")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{name}: {table!r} is a value in the file, not a table")
    values[key] = text
