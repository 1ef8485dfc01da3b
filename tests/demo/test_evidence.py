"""Evidence can be recomputed by anybody: here with numpy and scipy alone, as README.txt says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import scipy
from scipy import stats

from secagg.packing import pack
from secagg.prg import word_dtype
from secagg_demo.evidence import README, BadEvidence, examine, round_folder
from secagg_demo.report import write_json
from secagg_demo.uniformity import against_uniform, unpack_words
from tests.demo.canned import LOST, NAMES, canned


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    write_json(canned(folder), folder)
    return folder


def test_the_readmes_own_code_recomputes_every_sum(finished, monkeypatch, capsys) -> None:
    monkeypatch.chdir(finished / "evidence")
    exec(_blocks()[0], {})
    assert capsys.readouterr().out.split("\n")[:3] == ["1 True", "2 True", "3 True"]


def test_the_readmes_own_code_gives_the_reported_p(finished, monkeypatch) -> None:
    monkeypatch.chdir(finished / "evidence")
    names: dict[str, object] = {"np": np, "json": json}
    first, second = (block.replace("TENANT", NAMES[0]) for block in _blocks()[1:])
    exec(first, names)
    names["scipy"] = scipy
    exec(second.replace("scipy.stats", "p = scipy.stats"), names)
    first_round = json.loads((finished / "report.json").read_text())["rounds"][0]
    assert first_round["uniformity_p"] == pytest.approx(names["p"])
    chi_square = first_round["uniformity"][NAMES[0]]["chi_square"]
    assert chi_square == pytest.approx(names["chi_square"])


def test_words_of_the_upload_are_what_the_core_packed() -> None:
    rng = np.random.default_rng(5)
    for bits in (8, 13, 23, 31, 40, 64):
        words = rng.integers(0, 1 << (bits - 1), 70_001, dtype=np.uint64)
        data = pack(words.astype(word_dtype(bits)), bits)
        assert np.array_equal(unpack_words(data, bits, len(words)), words)


def test_one_altered_level_makes_the_sum_inexact(finished, tmp_path) -> None:
    result = canned(tmp_path)
    path = round_folder(tmp_path / "evidence", 1) / "encoded" / f"{NAMES[0]}.npy"
    levels = np.load(path)
    levels[123] += 1
    np.save(path, levels)
    evidence = examine(tmp_path / "evidence", 1, result.rounds[0].survivors)
    assert evidence.exact_sum is False


def test_the_killed_tenant_has_no_upload_in_the_evidence(finished) -> None:
    uploads = {p.stem for p in (round_folder(finished / "evidence", 2) / "upload").iterdir()}
    assert uploads == set(NAMES) - {LOST}


def test_a_short_upload_is_named(finished, tmp_path) -> None:
    canned(tmp_path)
    path = round_folder(tmp_path / "evidence", 1) / "upload" / f"{NAMES[1]}.bin"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadEvidence, match=f"{NAMES[1]}.bin holds 1000 bytes"):
        examine(tmp_path / "evidence", 1, NAMES)


def test_uniform_words_pass_and_encoded_levels_do_not() -> None:
    rng = np.random.default_rng(1)
    uniform = rng.integers(0, 1 << 23, 250_000, dtype=np.uint64)
    assert against_uniform(uniform, 23).high_bits_p > 0.001
    levels = np.rint(rng.normal(0, 300, 250_000)).astype(np.int64)
    assert against_uniform(levels.astype(np.uint64) & np.uint64((1 << 23) - 1), 23).high_bits_p == 0


def test_p_values_of_uniform_words_are_uniform() -> None:
    rng = np.random.default_rng(2)
    p = [
        against_uniform(rng.integers(0, 1 << 20, 20_000, dtype=np.uint64), 20).low_bits_p
        for _ in range(200)
    ]
    assert stats.kstest(p, "uniform").pvalue > 0.001


def _blocks() -> list[str]:
    """The indented pieces of code in README.txt, in order."""
    steps = README[README.index("1. The sum") :]
    pieces = re.findall(r"(?:^    .*\n|^\n(?=    ))+", steps, re.MULTILINE)
    return ["\n".join(line[4:] for line in piece.splitlines()) for piece in pieces]
