"""Real time series that come inside installed libraries, each in exactly one of two roles.

PRETRAINING series may be seen by the shipped forecaster; HELD_OUT series never are, and some of
those are what the companies of the demonstration own. A series carries where it comes from, under
which terms, how often it is sampled, and its season (1 where there is none, or where the publisher
has already taken it out: a seasonal-naive forecast of an adjusted series is the naive one).

Only data files of the libraries are read: none of their code is imported or run, and a series that
stands as a literal in a source file is parsed, never executed. Deliberately not here: series that a
library would download, and any cleaning; what is missing in the file is NaN.
"""

from __future__ import annotations

import ast
import csv
import gzip
import importlib.util
import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from secagg.errors import ConfigError

Role = Literal["pretraining", "held-out"]
Values = NDArray[np.float32]

_PUBLIC: Final = "public domain, by statsmodels' note"
_NOAA: Final = "public domain (NOAA), by vega_datasets' note"
_BLS: Final = "public domain (US Bureau of Labor Statistics), by vega_datasets' note"
_FIGURES: Final = "published figures, in pmdarima (MIT)"
_SAMPLE: Final = "sample data of matplotlib (matplotlib licence)"


@dataclass(frozen=True, slots=True, eq=False)
class RealSeries:
    """One channel: float32 values in their unit, NaN where the file has none, oldest first."""

    name: str
    values: Values
    season: int
    frequency: str
    unit: str
    source: str
    licence: str
    role: Role

    @property
    def dataset(self) -> str:
        """The data set that the channel belongs to: channels of one are not independent."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class _Dataset:
    """One file of a library, how it is read, and what holds for all its channels."""

    name: str
    package: str
    path: str
    read: Callable[[bytes], dict[str, Values]]
    season: int
    frequency: str
    unit: str
    licence: str
    role: Role

    def series(self) -> list[RealSeries]:
        source = f"{self.package}: {self.path}"
        channels = self.read(_content(self.package, self.path))
        return [
            RealSeries(
                f"{self.name}.{channel}" if channel else self.name, values, self.season,
                self.frequency, self.unit, source, self.licence, self.role,
            )
            for channel, values in channels.items()
        ]  # fmt: skip


def pretraining_series() -> list[RealSeries]:
    """Every real series that the shipped forecaster may have seen."""
    return _series_of(_PRETRAINING)


def held_out_series() -> list[RealSeries]:
    """Every real series that the shipped forecaster has never seen."""
    return _series_of(_HELD_OUT)


def company_series(company: str) -> list[RealSeries]:
    """The held-out series that one company of the demonstration owns."""
    if company not in COMPANIES:
        raise ConfigError(f"company {company!r}: there is none; use one of {', '.join(COMPANIES)}")
    owned = COMPANIES[company]
    return _series_of([dataset for dataset in _HELD_OUT if dataset.name in owned])


def _series_of(datasets: Sequence[_Dataset]) -> list[RealSeries]:
    return [series for dataset in datasets for series in dataset.series()]


def _content(package: str, path: str) -> bytes:
    """One file of an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder) / path
        if file.is_file():
            return file.read_bytes()
    raise ConfigError(
        f"series of {package}: {path} is not installed; pip install 'secagg[series]' matplotlib"
    )


def _number(cell: str) -> float:
    cell = cell.strip()
    return float(cell) if cell else float("nan")


def _column(cells: Sequence[str]) -> Values:
    return np.array([_number(cell) for cell in cells], np.float32)


def _rows(content: bytes) -> list[dict[str, str]]:
    lines = content.decode("utf-8-sig").splitlines()
    while lines and lines[0].startswith("#"):
        del lines[0]
    return list(csv.DictReader(lines))


def _columns(*names: str) -> Callable[[bytes], dict[str, Values]]:
    """The named columns of a CSV file; one alone is the whole data set."""

    def read(content: bytes) -> dict[str, Values]:
        rows = _rows(content)
        return {
            name.lower() if len(names) > 1 else "": _column([row[name] for row in rows])
            for name in names
        }

    return read


def _every_column(content: bytes) -> dict[str, Values]:
    """All columns of a CSV file but the first, which is the date, less rows of gaps alone."""
    rows = [row for row in _rows(content) if any(list(row.values())[1:])]
    names = list(rows[0])[1:]
    return {name.strip("^").lower(): _column([row[name] for row in rows]) for name in names}


def _months_of_years(content: bytes) -> dict[str, Values]:
    """A table of one year a row and one month a column, read along the rows."""
    lines = content.decode().splitlines()[1:]
    cells = [cell for line in lines if line for cell in line.split(",")[1:]]
    return {"": _column(cells)}


def _prices_by_symbol(content: bytes) -> dict[str, Values]:
    cells: dict[str, list[str]] = {}
    for row in _rows(content):
        cells.setdefault(row["symbol"].lower(), []).append(row["price"])
    return {symbol: _column(column) for symbol, column in cells.items()}


def _years_by_country(content: bytes) -> dict[str, Values]:
    """One row a country, one column a year; countries without a single figure are left out."""
    found = {}
    for row in _rows(content):
        values = _column([cell for name, cell in row.items() if name.isdigit()])
        if np.isfinite(values).any():
            found[row["Country Code"].lower()] = values
    return found


def _literal_array(content: bytes) -> dict[str, Values]:
    """The one array literal of a module's source: `name = np.array([...])`."""
    for node in ast.walk(ast.parse(content)):
        match node:
            case ast.Call(func=ast.Attribute(attr="array"), args=[ast.List() as numbers]):
                return {"": np.array(ast.literal_eval(numbers), np.float32)}
            case _:
                continue
    raise ConfigError("series: the module holds no array literal; pin the library's version")


def _lines_of_numbers(content: bytes) -> dict[str, Values]:
    return {"": np.array(gzip.decompress(content).split(), np.float32)}


def _quotes_in_archive(content: bytes) -> dict[str, Values]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        member = archive.extractfile("msft.csv")
        rows = _rows(member.read() if member else b"")
    return {name.lower(): _column([row[name] for row in rows]) for name in ("Close", "Volume")}


def _quotes_in_record_array(content: bytes) -> dict[str, Values]:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        quotes = archive["price_data"]
    return {name: quotes[name].astype(np.float32) for name in ("adj_close", "volume")}


def _electrodes(content: bytes) -> dict[str, Values]:
    table = np.frombuffer(content, "<f8").reshape(800, 4)
    return {f"{place}": table[:, place].astype(np.float32) for place in range(4)}


def _samples(content: bytes) -> dict[str, Values]:
    return {"": np.frombuffer(content, "<f4").copy()}


_MACRO: Final = (
    "realgdp", "realcons", "realinv", "realgovt", "realdpi", "cpi", "m1", "tbilrate", "unemp",
    "pop", "infl", "realint",
)  # fmt: skip
_EMPLOYMENT: Final = (
    "mining_and_logging", "construction", "durable_goods", "nondurable_goods", "wholesale_trade",
    "retail_trade", "transportation_and_warehousing", "utilities", "information",
    "financial_activities", "professional_and_business_services",
    "education_and_health_services", "leisure_and_hospitality", "other_services", "government",
)  # fmt: skip
_DATA: Final = "datasets"
_MPL: Final = "mpl-data/sample_data"

_PRETRAINING: Final = (
    _Dataset("sf-temps", "vega_datasets", "_data/sf-temps.csv", _columns("temp"),
             24, "hourly", "degrees Fahrenheit", _NOAA, "pretraining"),
    _Dataset("stocks", "vega_datasets", "_data/stocks.csv", _prices_by_symbol,
             1, "monthly", "US dollars", "in vega_datasets (MIT)", "pretraining"),
    _Dataset("market", "matplotlib", f"{_MPL}/Stocks.csv", _every_column,
             1, "monthly", "US dollars or index points", _SAMPLE, "pretraining"),
    _Dataset("goog", "matplotlib", f"{_MPL}/goog.npz", _quotes_in_record_array,
             1, "trading days", "US dollars or shares", _SAMPLE, "pretraining"),
    _Dataset("eeg", "matplotlib", f"{_MPL}/eeg.dat", _electrodes,
             1, "as sampled", "as published", _SAMPLE, "pretraining"),
    _Dataset("membrane", "matplotlib", f"{_MPL}/membrane.dat", _samples,
             1, "as sampled", "as published", _SAMPLE, "pretraining"),
    _Dataset("msft", "pmdarima", f"{_DATA}/data/msft.tar.gz", _quotes_in_archive,
             1, "trading days", "US dollars or shares", _FIGURES, "pretraining"),
    _Dataset("heartrate", "pmdarima", f"{_DATA}/heartrate.py", _literal_array,
             1, "every half second", "beats per minute", _FIGURES, "pretraining"),
    _Dataset("interest-inflation", "statsmodels", f"{_DATA}/interest_inflation/E6.csv",
             _columns("Dp", "R"), 4, "quarterly", "ratio", "in statsmodels (BSD-3-Clause)",
             "pretraining"),
    _Dataset("denmark", "statsmodels", f"{_DATA}/danish_data/data.csv", _every_column,
             4, "quarterly", "logarithms and ratios", _PUBLIC, "pretraining"),
    _Dataset("fertility", "statsmodels", f"{_DATA}/fertility/fertility.csv", _years_by_country,
             1, "yearly", "births per woman", "World Bank terms of use", "pretraining"),
)  # fmt: skip

_HELD_OUT: Final = (
    _Dataset("elnino", "statsmodels", f"{_DATA}/elnino/elnino.csv", _months_of_years,
             12, "monthly", "degrees Celsius", _PUBLIC, "held-out"),
    _Dataset("co2", "statsmodels", f"{_DATA}/co2/co2.csv", _columns("co2"),
             52, "weekly", "parts per million", _PUBLIC, "held-out"),
    _Dataset("sunspots", "statsmodels", f"{_DATA}/sunspots/sunspots.csv", _columns("SUNACTIVITY"),
             11, "yearly", "mean sunspot number", _PUBLIC, "held-out"),
    _Dataset("sunspots-monthly", "pmdarima", f"{_DATA}/data/sunspots.txt.gz", _lines_of_numbers,
             132, "monthly", "mean sunspot number", _FIGURES, "held-out"),
    _Dataset("taylor", "pmdarima", f"{_DATA}/taylor.py", _literal_array,
             48, "half-hourly", "megawatts", _FIGURES, "held-out"),
    _Dataset("elec-equip", "statsmodels", f"{_DATA}/elec_equip/elec_equip.csv",
             _columns("STS.M.I7.W.TOVT.NS0016.4.000"), 12, "monthly", "index", _PUBLIC,
             "held-out"),
    _Dataset("airpassengers", "pmdarima", f"{_DATA}/airpassengers.py", _literal_array,
             12, "monthly", "thousand passengers", _FIGURES, "held-out"),
    _Dataset("wineind", "pmdarima", f"{_DATA}/wineind.py", _literal_array,
             12, "monthly", "bottles", _FIGURES, "held-out"),
    _Dataset("ausbeer", "pmdarima", f"{_DATA}/ausbeer.py", _literal_array,
             4, "quarterly", "megalitres", _FIGURES, "held-out"),
    _Dataset("woolyrnq", "pmdarima", f"{_DATA}/woolyrnq.py", _literal_array,
             4, "quarterly", "tonnes", _FIGURES, "held-out"),
    _Dataset("seattle-temps", "vega_datasets", "_data/seattle-temps.csv", _columns("temp"),
             24, "hourly", "degrees Fahrenheit", _NOAA, "held-out"),
    _Dataset("seattle-weather", "vega_datasets", "_data/seattle-weather.csv",
             _columns("temp_max", "temp_min", "wind", "precipitation"), 365, "daily",
             "degrees Celsius, metres per second, millimetres", _NOAA, "held-out"),
    _Dataset("macrodata", "statsmodels", f"{_DATA}/macrodata/macrodata.csv", _columns(*_MACRO),
             1, "quarterly, seasonally adjusted", "US dollars, index or per cent", _PUBLIC,
             "held-out"),
    _Dataset("us-employment", "vega_datasets", "_data/us-employment.csv", _columns(*_EMPLOYMENT),
             1, "monthly, seasonally adjusted", "thousand jobs", _BLS, "held-out"),
    _Dataset("austres", "pmdarima", f"{_DATA}/austres.py", _literal_array,
             4, "quarterly", "thousand residents", _FIGURES, "held-out"),
    _Dataset("lynx", "pmdarima", f"{_DATA}/lynx.py", _literal_array,
             10, "yearly", "lynx trapped", _FIGURES, "held-out"),
    _Dataset("nile", "statsmodels", f"{_DATA}/nile/nile.csv", _columns("volume"),
             1, "yearly", "10^8 cubic metres", _PUBLIC, "held-out"),
)  # fmt: skip

# Who owns what in the demonstration: five companies that share no data set.
COMPANIES: Final = {
    "climate": ("elnino", "co2"),
    "energy": ("taylor", "elec-equip"),
    "retail": ("airpassengers", "wineind", "ausbeer", "woolyrnq"),
    "weather": ("seattle-temps", "seattle-weather"),
    "astronomy": ("sunspots", "sunspots-monthly"),
}
