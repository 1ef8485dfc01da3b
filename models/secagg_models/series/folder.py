"""A folder of CSV files as somebody's series: one file is one series, one line one value.

A file may begin with comment lines (`# season: 12` says the season) and one line of column names.
The last column holds the values; of a column before it, such as the time, nothing is kept. An empty
cell or line is a missing value. Lines stand in the order of time, oldest first, at even intervals.
What would be read as other numbers than those meant is refused: lines of unequal columns (a decimal
comma), dates that go back, fill values beyond every measurement.

Deliberately not here: resampling, gaps in the dates, several series a file.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from secagg.errors import ConfigError
from secagg_models.series.stream import Series

MAX_FILE_BYTES: Final = 64 << 20
MAX_VALUE: Final = 1e30
"""Nothing measured is larger: what is stands for a missing value, and its square overflows."""
MAX_SEASON: Final = 1 << 31
_MISSING: Final = frozenset({"", "na", "nan", "null"})
_DATE: Final = re.compile(r"\d{4}-\d\d(-\d\d)?")
_Rows = list[tuple[int, list[str]]]


def series_of_folder(folder: Path) -> list[Series]:
    """Every `*.csv` of a folder, by name. Raises: ConfigError for whatever cannot be read."""
    if not folder.is_dir():
        raise ConfigError(f"series folder {folder}: there is no such folder")
    try:
        files = sorted(
            path for path in folder.iterdir() if path.suffix.lower() == ".csv" and path.is_file()
        )
    except OSError as error:
        raise ConfigError(f"series folder {folder}: it cannot be read: {error.strerror}") from None
    if not files:
        raise ConfigError(f"series folder {folder}: it holds no .csv file")
    return [series_of_file(file) for file in files]


def series_of_file(file: Path) -> Series:
    """One CSV file. Errors name the line, never what stands in it."""
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"series {file}: over {MAX_FILE_BYTES >> 20} MiB; split it")
        lines = file.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "other bytes stand in it; save it as UTF-8"
        raise ConfigError(f"series {file}: it cannot be read as UTF-8: {why}") from None
    comments = [line for line in lines if line.startswith("#")]
    rows = _rows(file, lines)
    names = 1 if rows and _is_header(rows[0][1][-1]) else 0
    _refuse_other_dividers(file, rows, names)
    rows = rows[names:]
    _refuse_other_order(file, rows)
    values = np.array([_value(file, number, cells[-1]) for number, cells in rows], np.float32)
    if not np.isfinite(values).any():
        raise ConfigError(f"series {file}: it holds no value, or none in its last column")
    return Series(file.stem, values, _season(file, comments))


def export_series(series: Sequence[Series], folder: Path) -> None:
    """Inverse of `series_of_folder`, bit for bit: float32 has a shortest decimal of its own.

    Raises: ConfigError for names that make no files, or the same one.
    """
    names = [one.name for one in series]
    if len(set(names)) < len(names) or any(not name or Path(name).name != name for name in names):
        raise ConfigError("series names must differ and be plain: each is a file's name")
    folder.mkdir(parents=True, exist_ok=True)
    for one in series:
        cells = ["" if math.isnan(value) else str(value) for value in one.values]
        lines = [f"# season: {one.season}", "time,value"]
        lines += [f"{place},{cell}" for place, cell in enumerate(cells)]
        (folder / f"{one.name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _rows(file: Path, lines: Sequence[str]) -> _Rows:
    """The cells of each line that is no comment, with its number."""
    reader = csv.reader(lines, strict=True)
    try:
        rows = [(reader.line_num, cells or [""]) for cells in reader]
    except csv.Error:
        raise ConfigError(
            f"series {file}: line {reader.line_num} is no CSV; "
            "is a quotation mark left open before it?"
        ) from None
    return [(number, cells) for number, cells in rows if not cells[0].startswith("#")]


def _refuse_other_dividers(file: Path, rows: _Rows, names: int) -> None:
    """A decimal comma: "1;2,5" would be read as 5, and so would "1,2,5"."""
    wanted = "columns are divided by commas, and decimals begin with a point"
    for number, cells in rows[names:]:
        if any(";" in cell for cell in cells):
            raise ConfigError(f"series {file}: line {number} has semicolons; {wanted}")
    filled = [(number, len(cells)) for number, cells in rows if cells != [""]]
    for (_, before), (number, columns) in pairwise(filled):
        if columns != before:
            raise ConfigError(
                f"series {file}: line {number} has {columns} columns, the one before it {before}; "
                f"{wanted}"
            )


def _refuse_other_order(file: Path, rows: _Rows) -> None:
    """Dates are compared where the first column has ISO dates; the hour may go back in autumn."""
    dates = [
        (number, found[0])
        for number, cells in rows
        if len(cells) > 1 and (found := _DATE.match(cells[0].strip()))
    ]
    for (_, earlier), (number, date) in pairwise(dates):
        if date < earlier:
            raise ConfigError(
                f"series {file}: line {number} is older than the line before it; the oldest value "
                "stands first"
            )


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
        value = float(cell if "_" not in cell else "no number")
    except ValueError:
        raise ConfigError(f"series {file}: line {number} ends with no number") from None
    if not abs(value) <= MAX_VALUE:
        size = f"larger than {MAX_VALUE:.0e}" if math.isfinite(value) else "not finite"
        raise ConfigError(
            f"series {file}: line {number} is {size}; leave the cell empty if it is missing"
        )
    return float(np.float32(value))


def _season(file: Path, comments: Sequence[str]) -> int:
    for comment in comments:
        name, _, written = comment.lstrip("# ").partition(":")
        if name.strip().lower() == "season":
            if re.fullmatch(r"\s*\d{1,10}\s*", written) and 1 <= int(written) <= MAX_SEASON:
                return int(written)
            raise ConfigError(
                f"series {file}: its season must be a whole number from 1 to {MAX_SEASON}"
            )
    return 1
