"""Real processes over real TLS: coordinator and tenants by their commands, one killed by SIGKILL.

No model is trained: tenants submit vectors drawn from public seeds, so the sum is known here too.
Nothing waits for a fixed time: every wait is for a log event, with a deadline.
"""

import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from secagg_demo import nodes
from secagg_demo.console import Narrator
from secagg_demo.evidence import load_levels, round_folder
from secagg_demo.federation import Federation, Kill, listen
from secagg_demo.journal import Journal
from secagg_demo.processes import Children, ProcessFailed
from secagg_demo.results import RoundResult
from secagg_demo.site import COORDINATOR, OWNER, Site, enrol

pytestmark = pytest.mark.processes
TENANTS = ("ada", "bob", "cyd", "dan", "eve")
LENGTH = 40_000


def run_federation(
    root: Path, tenants: tuple[str, ...], rounds: int, kill: Kill | None
) -> tuple[Site, list[RoundResult], Federation]:
    return asyncio.run(_run_federation(root, tenants, rounds, kill))


async def _run_federation(
    root: Path, tenants: tuple[str, ...], rounds: int, kill: Kill | None
) -> tuple[Site, list[RoundResult], Federation]:
    site = Site.prepare(root)
    digest = enrol(site, tenants)
    narrator, journal = Narrator(Console(file=io.StringIO())), Journal()
    async with Children(site.logs, lambda c, e: listen(narrator, journal, c, e)) as children:
        federation = Federation(site, tenants, children, narrator, journal)
        port = await federation.start_coordinator(nodes.coordinator(site) | {"lease": FAST_LEASE})
        await federation.start_tenants(
            nodes.tenants(
                tenants, port=port,
                policy={"roster_digest": digest, "max_colluders": (len(tenants) - 1) // 3},
                training={
                    name: {"trainer": "vector", "seed": seed} for seed, name in enumerate(tenants)
                },
                slow=() if kill is None else kill.victims, slow_bytes_per_second=60_000,
            )
        )  # fmt: skip
        owner = await federation.start_owner(nodes.vector_owner(port, rounds, LENGTH))
        results = await federation.run_rounds(rounds, kill)
        status = await owner.ended()
        assert status == (0 if results[-1].outcome == "opened" else 5)
    return site, results, federation


# A killed tenant is missed sooner than in the demonstration; a loaded machine still renews in time.
FAST_LEASE = {"seconds": 4.0, "grace_seconds": 0.5, "join_grace_seconds": 60.0}


@pytest.fixture(scope="module")
def killed_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Site, list[RoundResult], Federation]:
    """Three rounds of five tenants; one is killed in the second one's upload."""
    return run_federation(tmp_path_factory.mktemp("killed"), TENANTS, 3, Kill(2, ("eve",)))


def test_a_tenant_killed_in_mid_upload_costs_its_own_input_only(killed_once) -> None:
    _, results, _ = killed_once
    assert [entry.outcome for entry in results] == ["opened"] * 3
    assert [entry.killed for entry in results] == [(), ("eve",), ()]
    assert [entry.survivors for entry in results] == [TENANTS, TENANTS[:-1], TENANTS]
    assert [(e.tenant, e.step) for e in results[1].excluded] == [("eve", "masked_input")]


def test_the_opened_sum_is_what_the_survivors_drew(killed_once) -> None:
    site, results, _ = killed_once
    for entry in results:
        number = entry.evidence.round_number
        folder = round_folder(site.evidence, number)
        opened = np.load(folder / "opened_sum.npy", allow_pickle=False)
        levels = sum(load_levels(folder, tenant) for tenant in entry.survivors)
        assert np.array_equal(opened, levels)
        drawn = sum(
            np.random.default_rng([TENANTS.index(t), number]).uniform(-0.5, 0.5, LENGTH)
            for t in entry.survivors
        )
        # Each value is rounded to a neighbouring level, never further, and error feedback adds at
        # most one level of the round before.
        off = np.abs(opened / 32767 - drawn).max() * 32767
        assert off <= 2 * len(entry.survivors) + 1


def test_every_round_leaves_evidence_that_holds(killed_once) -> None:
    site, results, _ = killed_once
    for entry in results:
        assert entry.evidence.exact_sum is True
        assert entry.transcript_holds is True
        assert entry.evidence.upload_bytes_per_value == pytest.approx(23 / 8, abs=0.001)
        assert set(entry.seconds) == {
            "advertise_keys", "share_keys", "acknowledge", "masked_input", "consistency_check",
            "unmask",
        }  # fmt: skip
        folder = round_folder(site.evidence, entry.evidence.round_number)
        uploads = {path.stem for path in (folder / "upload").iterdir()}
        assert uploads == set(entry.survivors)


def test_uploads_look_uniform_and_what_they_hide_does_not(killed_once) -> None:
    _, results, _ = killed_once
    for entry in results:
        for held in entry.evidence.held:
            assert held.upload.high_bits_p > 1e-6
            assert held.upload.low_bits_p > 1e-6
            assert held.encoded.high_bits_p < 1e-100


def test_no_process_is_left_behind(killed_once) -> None:
    _, _, federation = killed_once
    assert all(not child.running for child in federation.running.values())


def test_tls_private_keys_stay_in_their_own_folders(killed_once) -> None:
    site, _, _ = killed_once
    seeds = {p.relative_to(site.root).parts[1] for p in site.root.rglob("identity.seed")}
    assert seeds == {COORDINATOR, OWNER, *TENANTS}
    for path in site.root.rglob("identity.seed"):
        assert path.stat().st_mode & 0o077 == 0


def test_too_few_survivors_end_in_a_visible_abort_with_nothing_opened(tmp_path: Path) -> None:
    tenants = TENANTS[:3]
    site, results, _ = run_federation(tmp_path, tenants, 3, Kill(2, ("cyd",)))
    assert [entry.outcome for entry in results] == ["opened", "aborted"]
    assert results[1].reason
    assert results[1].evidence.exact_sum is None
    assert not (round_folder(site.evidence, 2) / "opened_sum.npy").exists()


def test_a_child_that_ends_unasked_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    site = Site.prepare(tmp_path)
    enrol(site, TENANTS[:3])

    async def start() -> None:
        async with Children(site.logs) as children:
            federation = Federation(
                site, TENANTS[:3], children, Narrator(Console(file=io.StringIO())), Journal()
            )
            await federation.start_coordinator({"keys": "keys", "data": "data", "colour": "blue"})

    with pytest.raises(ProcessFailed, match=r"coordinator ended before.*(?s:.)*colour"):
        asyncio.run(start())
