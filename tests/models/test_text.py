"""Text split by file, and windows drawn from it."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secagg.errors import ConfigError
from secagg_models import text

FILES = [text.SourceFile(f"pkg/m{i}.py", b"x = %d\n" % i) for i in range(200)]


def test_the_parts_share_no_file_and_lose_none() -> None:
    corpus = text.split_by_file("pkg", FILES)
    paths = [{f.path for f in corpus.part(split)} for split in text.SPLITS]
    assert set.union(*paths) == {f.path for f in FILES}
    assert sum(map(len, paths)) == len(FILES)
    assert 5 < len(corpus.test) < 40
    assert 5 < len(corpus.validation) < 40


@given(st.sets(st.integers(0, 199), min_size=60))
def test_a_file_stays_in_its_part_whatever_other_files_there_are(chosen: set[int]) -> None:
    whole = text.split_by_file("pkg", FILES)
    some = text.split_by_file("renamed", [FILES[i] for i in sorted(chosen, reverse=True)])
    for split in text.SPLITS:
        assert set(some.part(split)) <= set(whole.part(split))


def test_the_split_is_the_same_on_every_machine() -> None:
    test = [i for i in range(12) if text.split_of(f"pkg/m{i}.py", 0.1, 0.1) == "test"]
    assert test == [2, 5]


def test_too_few_files_for_a_part_are_refused() -> None:
    with pytest.raises(ConfigError, match="give it more files"):
        text.split_by_file("small", FILES[:2])


def test_a_folder_is_read_by_relative_path(tmp_path: Path) -> None:
    for file in FILES:
        target = tmp_path / file.path
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(file.content)
    assert text.corpus_of_folder(tmp_path, name="pkg") == text.split_by_file("pkg", FILES)


@pytest.mark.parametrize("case", ["absent", "empty"])
def test_a_folder_without_text_is_refused(tmp_path: Path, case: str) -> None:
    root = tmp_path / "absent" if case == "absent" else tmp_path
    with pytest.raises(ConfigError, match=r"no such folder|no file matches"):
        text.corpus_of_folder(root)


def test_a_package_is_read_by_its_own_record() -> None:
    corpus = text.corpus_of_package("Pygments")
    listing = corpus.listing()
    assert all(row["path"].startswith("pygments/") for row in listing["train"])  # type: ignore[union-attr]
    assert len(corpus.train) > 200
    assert len(listing["test"][0]["sha256"]) == 64  # type: ignore[arg-type]


def test_an_absent_package_says_how_to_get_it() -> None:
    with pytest.raises(ConfigError, match="pip install no-such-package-here"):
        text.corpus_of_package("no-such-package-here")


def test_the_standard_library_holds_no_vendored_package() -> None:
    paths = {f.path for split in text.SPLITS for f in text.standard_library().part(split)}
    assert "asyncio/events.py" in paths
    assert not any({"site-packages", "ensurepip"} & set(path.split("/")) for path in paths)


def test_windows_are_a_function_of_seed_step_and_name() -> None:
    stream = text.byte_stream("pkg", FILES)
    first = stream.windows_at(seed=1, step=2, batch=3, context=10)
    assert first.shape == (3, 11)
    assert torch.equal(first, stream.windows_at(1, 2, 3, 10))
    other = text.byte_stream("other", FILES)
    for different in (stream.windows_at(2, 2, 3, 10), stream.windows_at(1, 3, 3, 10)):
        assert not torch.equal(first, different)
    assert not torch.equal(first, other.windows_at(1, 2, 3, 10))


def test_held_out_windows_do_not_overlap_and_are_bounded() -> None:
    stream = text.TokenStream("n", torch.arange(1000, dtype=torch.int32).numpy(), 1.0)
    windows = stream.held_out_windows(limit=7, context=10)
    assert windows.shape == (7, 11)
    assert len(windows.unique()) == windows.numel()
    assert len(stream.held_out_windows(10**6, 10)) == 1000 // 11


def test_text_shorter_than_a_window_is_refused() -> None:
    stream = text.byte_stream("short", [text.SourceFile("a.py", b"pass")])
    with pytest.raises(ConfigError, match="fewer than one window"):
        stream.held_out_windows(4, 16)
    with pytest.raises(ConfigError, match="fewer than one window"):
        stream.windows_at(1, 1, 1, 16)


def test_bytes_are_numbered_as_transformers_byt5_does() -> None:
    from transformers import ByT5Tokenizer

    content = "naïve = 'é'\n"
    tokenizer = ByT5Tokenizer(extra_ids=0)
    stream = text.encode("n", [text.SourceFile("a.py", content.encode())], tokenizer)
    assert stream.ids.tolist() == tokenizer(content)["input_ids"]
    assert stream.bytes_per_token == 1
