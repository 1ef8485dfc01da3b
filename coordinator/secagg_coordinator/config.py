"""The coordinator's configuration: one TOML file, each value open to the environment.

`SECAGG_COORDINATOR__LISTEN__PORT=9000` overrides `port` in the table `[listen]`. Every mistake is
one `ConfigError` that names the key. Relative paths are relative to the file. No secret stands in
the file: private keys lie in the key directory, which only the coordinator's user can read.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secagg.errors import ConfigError

ENVIRONMENT_PREFIX = "SECAGG_COORDINATOR__"
_GIB = 1 << 30
_Positive = Annotated[float, Field(gt=0)]
_Count = Annotated[int, Field(gt=0)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Listen(_Table):
    """Where to listen; port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8470


class Lease(_Table):
    """How soon a silent tenant counts as gone, and how long a step still waits for it then.

    `join_grace_seconds` is the grace of the first step, in which tenants may still be starting.
    """

    seconds: _Positive = 6.0
    grace_seconds: Annotated[float, Field(ge=0)] = 4.0
    join_grace_seconds: Annotated[float, Field(ge=0)] = 30.0


class Limits(_Table):
    """Quotas. Uploads are bounded per tenant and round, the spool over all of them."""

    upload_bytes: _Count = 8 * _GIB
    spool_bytes: _Count = 64 * _GIB
    model_bytes: _Count = 64 * _GIB
    concurrent_uploads: _Count = 8
    open_rounds: _Count = 1


class Retention(_Table):
    """How long an ended round's uploads are kept, for the transcript."""

    hours: Annotated[float, Field(ge=0)] = 168.0


class Log(_Table):
    """JSON lines on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(_Table):
    """The whole file. `data` holds the database, the spool and the model versions.

    After SIGTERM a running round has `drain_seconds` to end.

    `evidence`, where it is set, receives what anybody needs to recompute a round: the plan, the
    transcript, the uploads as received, the opened sum. The coordinator sees all of it anyway.
    """

    keys: Path
    data: Path
    evidence: Path | None = None
    listen: Listen = Listen()
    lease: Lease = Lease()
    limits: Limits = Limits()
    retention: Retention = Retention()
    log: Log = Log()
    drain_seconds: Annotated[float, Field(ge=0)] = 30.0


def load(path: Path, environment: Mapping[str, str] = os.environ) -> Config:
    """Read and check a configuration file.

    Raises:
        ConfigError: it cannot be read, is no TOML, or has a wrong or unknown value.
    """
    values = _read(path)
    for name, text in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX):
            _override(values, name, text)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_mistake(error)}") from None
    return _anchored(config, path.resolve().parent)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _override(values: dict[str, Any], name: str, text: str) -> None:
    *tables, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{name}: {table!r} is a value in the file, not a table")
    values[key] = text


def _first_mistake(error: ValidationError) -> str:
    mistake = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, mistake["loc"]))
    more = error.error_count() - 1
    return f"{where}: {mistake['msg']}" + (f" (and {more} more)" if more else "")


def _anchored(config: Config, base: Path) -> Config:
    paths = {
        name: base / value
        for name in ("keys", "data", "evidence")
        if (value := getattr(config, name)) is not None
    }
    return config.model_copy(update=paths)
