"""A folder of CSV files as series: what is read, and what is refused without quoting a value."""

import numpy as np
import pytest

from secagg.errors import ConfigError
from secagg_models.series.folder import export_series, series_of_file, series_of_folder
from secagg_models.series.stream import Series


def written(tmp_path, text: str):
    file = tmp_path / "demand.csv"
    file.write_text(text)
    return file


def test_what_is_exported_is_read_back_bit_for_bit(tmp_path):
    values = np.array([1 / 3, np.nan, -2.5e-30, 16777216, 0], np.float32)
    export_series([Series("b", values, 12), Series("a", values[::-1].copy())], tmp_path)
    a, b = series_of_folder(tmp_path)
    assert (a.name, a.season, b.name, b.season) == ("a", 1, "b", 12)
    assert b.values.tobytes() == values.tobytes()


@pytest.mark.parametrize(
    "text", ["1\n2\nNA\n", "1\n2\nna\n\n", "t,v\n0,1\n1,2\n2,\n", "# x\n0,1\n1,2\n2, nan\n"]
)
def test_header_time_column_and_comments_are_optional(tmp_path, text):
    read = series_of_file(written(tmp_path, text))
    np.testing.assert_array_equal(read.values, np.array([1, 2, np.nan], np.float32))


def test_an_hour_that_comes_twice_in_autumn_is_no_wrong_order(tmp_path):
    text = "t,v\n2021-10-31T02:30,1\n2021-10-31T02:00,2\n2021-11-01T00:00,3\n"
    assert len(series_of_file(written(tmp_path, text)).values) == 3


def test_a_line_is_what_ends_with_a_line_break(tmp_path):
    read = series_of_file(written(tmp_path, "t,v\nfirst\u2028half,1\nsecond\x0chalf,2\n"))
    np.testing.assert_array_equal(read.values, np.array([1, 2], np.float32))


def test_a_file_name_may_be_written_in_capitals(tmp_path):
    (tmp_path / "EXPORT.CSV").write_text("v\n1\n")
    assert [one.name for one in series_of_folder(tmp_path)] == ["EXPORT"]


def test_an_empty_line_between_values_is_a_missing_value(tmp_path):
    read = series_of_file(written(tmp_path, "v\n1\n\n2\n\n"))
    np.testing.assert_array_equal(read.values, np.array([1, np.nan, 2], np.float32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v\n1\nsecret\n", "line 3 ends with no number"),
        ("v\n1\ninf\n", "line 3 is not finite"),
        ("month;v\n1;2,5\n", "line 2 has semicolons"),
        ("v\n1\n1e99\n", "line 3 is larger than"),
        ("v\n\n", "it holds no value"),
        ("t,v\n,\n", "it holds no value"),
        ("# season: 0\n1\n2\n", "its season must be a whole number"),
        (f"# season: {10**20}\n1\n2\n", "its season must be a whole number"),
        ("t,v\n0,1,5\n1,2,5\n", "line 2 has 3 columns, the one before it 2"),
        ("0,1\n1,2,5\n", "line 2 has 3 columns, the one before it 2"),
        ("t,v\n0,1\n1\n", "line 3 has 1 columns, the one before it 2"),
        ("v\n1_000\n", "line 2 ends with no number"),
        ("v\n1\n-3.4028235e38\n", "line 3 is larger than"),
        ('v\n1\n"2\n3\n', "is a quotation mark left open"),
        ('v\n1\n"2\n' + "secret\n" * 30_000, "is a quotation mark left open"),
        ("day,v\n2021-03-02,1\n2021-03-01,2\n", "line 3 is older than the line before it"),
        ("month,v\n2021-03,1\n2021-02,2\n", "line 3 is older than the line before it"),
    ],
)
def test_what_is_no_series_is_refused_without_quoting_it(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        series_of_file(written(tmp_path, text))
    assert "secret" not in str(caught.value)


def test_a_folder_without_series_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        series_of_folder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"it holds no \.csv file"):
        series_of_folder(tmp_path)


def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    def forbidden(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", forbidden)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        series_of_folder(tmp_path)


@pytest.mark.parametrize("names", [("a", "a"), ("a/b",), ("",)])
def test_names_that_make_no_files_of_their_own_are_not_exported(tmp_path, names):
    with pytest.raises(ConfigError, match="must differ and be plain"):
        export_series([Series(name, np.ones(3, np.float32)) for name in names], tmp_path / "out")
    assert not (tmp_path / "out").exists()
