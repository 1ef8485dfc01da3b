"""An owner uses a sum only when it is that of the uploads."""

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secagg.errors import ProtocolError
from secagg.result import Result
from secagg_coordinator.archive import Archive
from secagg_coordinator.records import Opened
from secagg_owner.state import OwnerFiles
from secagg_wire.refusals import NoLongerKept
from tests.coordinator.federation import TENANTS, Enrolled, Federation, federation
from tests.coordinator.recomputing import invent
from tests.owner.test_owner_rounds import config_of, own
from tests.tenant.running import all_joined


async def rounds(running: Federation, directory: Path, **table: Any) -> list[dict[str, Any]]:
    async with all_joined(running, directory):
        return await own(config_of(running, directory, **table))


def run(enrolled: Enrolled, directory: Path, **table: Any) -> list[dict[str, Any]]:
    async def scenario() -> list[dict[str, Any]]:
        async with federation(enrolled, directory) as running:
            return await rounds(running, directory, **table)

    return asyncio.run(scenario())


def test_every_leaf_of_an_honest_sum_is_recomputed_by_default(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    (result,) = run(enrolled, tmp_path)
    assert (result["outcome"], result["recomputed_leaves"]) == ("opened", 2)
    assert len(bytes.fromhex(result["sum_root"])) == 32


@pytest.mark.parametrize("mode", ["all", "random"])
def test_an_invented_sum_is_refused_and_nothing_is_stepped(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    invent(monkeypatch)
    for number in (1, 2):
        with pytest.raises(ProtocolError, match="not that of the uploads"):
            run(enrolled, tmp_path, recompute=mode, on_abort="next")
        folder = tmp_path / f"owner/rounds/{number}"
        result = json.loads((folder / "result.json").read_text())
        assert (result["outcome"], result["survivors"]) == ("refused", list(TENANTS))
        assert "not that of the uploads" in result["reason"]
        assert not (folder / "opened_sum.npy").exists()
        assert len(np.load(folder / "refused_sum.npy")) == 400
        assert (folder / "transcript.bin").exists()
    state = OwnerFiles(tmp_path / "owner").read_state()
    assert (state.rounds_done, state.in_flight, state.origin) == (0, 0, None)


def test_without_recomputation_an_invented_sum_is_taken_as_documented(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invent(monkeypatch)
    (result,) = run(enrolled, tmp_path, recompute="off")
    assert (result["outcome"], result["recomputed_leaves"]) == ("opened", 0)


class SaysOneSendsAnother(Archive):
    """Announces the root of one sum and hands out another."""

    def write_sum(self, result: Result) -> Opened:
        announced = super().write_sum(result)
        sent = super().write_sum(replace(result, level_sum=-result.level_sum))
        return replace(sent, sum_root=announced.sum_root)


def test_a_sum_that_is_not_the_announced_one_is_refused_even_without_recomputation(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invent(monkeypatch, SaysOneSendsAnother)
    with pytest.raises(ProtocolError, match="announced by its root"):
        run(enrolled, tmp_path, recompute="off")
    result = json.loads((tmp_path / "owner/rounds/1/result.json").read_text())
    assert result["outcome"] == "refused"


def test_uploads_that_are_gone_leave_the_round_in_flight(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgets(Archive):
        def write_sum(self, result: Result) -> Opened:
            for upload in (tmp_path / "data/spool").rglob("*.bin"):
                upload.unlink()
            return super().write_sum(result)

    invent(monkeypatch, Forgets)
    with pytest.raises(NoLongerKept):
        run(enrolled, tmp_path)
    assert OwnerFiles(tmp_path / "owner").read_state().in_flight == 1
    # The operator's decision, not the program's: take the sum unseen.
    (result,) = run(enrolled, tmp_path, recompute="off")
    assert result["round"] == 1


@pytest.mark.processes
def test_an_invented_sum_is_exit_code_4_and_one_clear_line(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invent(monkeypatch)

    async def scenario() -> tuple[int | None, str]:
        async with federation(enrolled, tmp_path) as running, all_joined(running, tmp_path):
            path = tmp_path / "owner.toml"
            path.write_text(
                f'coordinator = "127.0.0.1:{running.coordinator.port}"\n'
                f'keys = "{enrolled.keys["ona"].directory}"\ndata = "owner"\n'
                '[model]\nkind = "vector"\nlength = 400\n'
            )
            command = (sys.executable, "-m", "secagg", "owner", "run", "--config", str(path))
            process = await asyncio.create_subprocess_exec(
                *command, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
            )
            _, error = await process.communicate()
            return process.returncode, error.decode()

    code, error = asyncio.run(scenario())
    assert code == 4, error
    lines = [line for line in error.splitlines() if not line.startswith("{")]
    assert lines == [line for line in lines if line.startswith("secagg owner: the claimed sum")]
    assert len(lines) == 1
    events = [json.loads(line)["event"] for line in error.splitlines() if line.startswith("{")]
    assert events[-1] == "sum_refused"
