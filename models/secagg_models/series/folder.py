"""A folder of CSV files as somebody's series: one file is one series, one line one value.

A file may begin with comment lines (`# season: 12` says the season) and one line of column names.
The last column holds the values; a column before it, such as the time, is not read. An empty cell
or line is a missing value. Lines stand in the order of time, oldest first, at even intervals.

Deliberately not here: dates, resampling, several series a file.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from secagg.errors import ConfigError
from secagg_models.series.stream import Series

MAX_FILE_BYTES: Final = 64 << 20
_MISSING: Final = frozenset({"", "na", "nan", "null"})


def series_of_folder(folder: Path) -> list[Series]:
    """Every `*.csv` of a folder, by name. Raises: ConfigError for whatever cannot be read."""
    if not folder.is_dir():
        raise ConfigError(f"series folder {folder}: there is no such folder")
    files = sorted(path for path in folder.glob("*.csv") if path.is_file())
    if not files:
        raise ConfigError(f"series folder {folder}: it holds no .csv file")
    return [series_of_file(file) for file in files]


def series_of_file(file: Path) -> Series:
    """One CSV file. Errors name the line, never what stands in it."""
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"series {file}: over {MAX_FILE_BYTES >> 20} MiB; split it")
        lines = file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "other bytes stand in it"
        raise ConfigError(f"series {file}: it cannot be read as UTF-8: {why}") from None
    comments = [line for line in lines if line.startswith("#")]
    rows = [
        (number, cells or [""])
        for number, cells in enumerate(csv.reader(lines), 1)
        if not (cells and cells[0].startswith("#"))
    ]
    if rows and _is_header(rows[0][1][-1]):
        del rows[0]
    for number, cells in rows:
        if any(";" in cell for cell in cells):  # "1;2,5" would be read as 5
            raise ConfigError(
                f"series {file}: line {number} has semicolons; columns are divided by commas, and "
                "decimals begin with a point"
            )
    values = np.array([_value(file, number, cells[-1]) for number, cells in rows], np.float32)
    if not np.isfinite(values).any():
        raise ConfigError(f"series {file}: it holds no value")
    return Series(file.stem, values, _season(file, comments))


def export_series(series: Sequence[Series], folder: Path) -> None:
    """Inverse of `series_of_folder`, bit for bit: float32 has a shortest decimal of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in series:
        cells = ["" if math.isnan(value) else str(value) for value in one.values]
        lines = [f"# season: {one.season}", "time,value"]
        lines += [f"{place},{cell}" for place, cell in enumerate(cells)]
        (folder / f"{one.name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _is_header(cell: str) -> bool:
    if cell.strip().lower() in _MISSING:
        return False
    try:
        float(cell)
    except ValueError:
        return True
    return False


def _value(file: Path, number: int, cell: str) -> float:
    cell = cell.strip()
    if cell.lower() in _MISSING:
        return math.nan
    try:
        with np.errstate(over="ignore"):
            value = float(np.float32(float(cell)))
    except (ValueError, OverflowError):
        raise ConfigError(f"series {file}: line {number} ends with no number") from None
    if not math.isfinite(value):
        raise ConfigError(
            f"series {file}: line {number} is not finite; leave the cell empty if it is missing"
        )
    return value


def _season(file: Path, comments: Sequence[str]) -> int:
    for comment in comments:
        name, _, written = comment.lstrip("# ").partition(":")
        if name.strip().lower() == "season":
            if written.strip().isdecimal() and int(written) >= 1:
                return int(written)
            raise ConfigError(f"series {file}: its season must be a whole number from 1")
    return 1
