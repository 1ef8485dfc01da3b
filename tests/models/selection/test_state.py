"""What a tenant remembers: kept privately, found again, and never a reason to stay away."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest

from secagg_models.selection.state import BandState, load_state, save_state


def remembered() -> BandState:
    state = BandState.fresh(np.array([11, 5, 99], np.uint64))
    state.trained[:] = (1, 2, 3)
    state.first[:2] = (0.5, 1.5)
    state.released[2] = True
    return state


def test_what_is_kept_comes_back_and_only_this_user_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "data" / "selection.npz"
    save_state(remembered(), path)
    found = load_state(path)
    assert found is not None
    assert found.trained.tolist() == [1, 2, 3]
    assert found.first[:2].tolist() == [0.5, 1.5]
    assert np.isnan(found.first[2])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["selection.npz"]


def test_windows_are_found_again_in_data_that_grew_or_shrank() -> None:
    carried = remembered().carried_to(np.array([99, 7, 11], np.uint64))
    assert carried.trained.tolist() == [3, 0, 1]
    assert carried.released.tolist() == [True, False, False]
    assert remembered().carried_to(np.zeros(0, np.uint64)).trained.tolist() == []
    assert BandState.fresh(np.zeros(0, np.uint64)).carried_to(carried.keys).trained.sum() == 0


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive", bytes(300)])
def test_a_memory_that_cannot_be_read_counts_as_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "selection.npz"
    path.write_bytes(content)
    assert load_state(path) is None
    assert load_state(tmp_path / "absent.npz") is None


def test_a_memory_with_other_arrays_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "selection.npz"
    save_state(remembered(), path)
    with np.load(path) as file:
        arrays = dict(file)
    for changes in (
        {"trained": arrays["trained"][:1]},
        {"first": arrays["first"].astype("f8")},
        {"rounds": np.zeros(2)},
    ):
        np.savez(path, **(arrays | changes))
        assert load_state(path) is None


def test_no_damage_to_a_memory_raises(tmp_path: Path) -> None:
    """A flipped bit may say: encrypted, another compression, a newer archive."""
    path = tmp_path / "selection.npz"
    save_state(remembered(), path)
    content = path.read_bytes()
    directory = content.index(b"PK\x01\x02")
    for place in range(directory, directory + 46):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        load_state(path)


def test_it_prints_nothing_of_itself() -> None:
    assert repr(remembered()) == "<BandState, redacted>"
