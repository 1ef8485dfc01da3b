"""A tenant accepts a model version only if the sum that it was made from is that of the uploads."""

import asyncio
import json
import sqlite3
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from secagg.errors import ProtocolError
from secagg.ledger import Act, Entry
from secagg.messages import Quorum, Signed, Survivors, UploadCommitment, decode_message
from secagg.plan import RoundPlan
from secagg.records import decode, encode
from secagg.transcript import Transcript
from secagg_coordinator.store import Transaction
from secagg_tenant.recompute import require_own_part
from secagg_tenant.store import TenantStore, read_report
from secagg_wire.manifest import Origin
from secagg_wire.recomputation import Fetched
from secagg_wire.v1 import round_pb2
from secagg_wire.v1.round_service_pb2 import WatchRoundsResponse
from tests.coordinator.federation import (
    TENANTS,
    Enrolled,
    Federation,
    federation,
)
from tests.coordinator.recomputing import (
    claim_of,
    deviate,
    fetched,
    finished_round,
    invent,
    publish,
    with_round,
)
from tests.tenant.running import Node, all_joined, config_of, joined

LENGTH = 150_000


def plan_on(enrolled: Enrolled, number: int, digest: bytes, **changes: Any) -> RoundPlan:
    return enrolled.plan(LENGTH, number, **changes).next_round(number, model_digest=digest)


async def round_on(
    running: Federation, number: int, version: tuple[int, bytes], **changes: Any
) -> Any:
    """The status of a round that trained this version, once it has ended."""
    plan = plan_on(running.enrolled, number, version[1], **changes)
    return await running.ended(await running.open(plan, version[0]))


async def first_round(running: Federation, nodes: Iterable[Node]) -> Origin:
    """Version 1 is a beginning; round 1 trains it."""
    status = await round_on(running, 1, await publish(running, 1))
    assert status.outcome == round_pb2.ROUND_OUTCOME_OPENED, status.reason
    for node in nodes:
        await node.until("round_ended", round=1)
    return claim_of(status)


def versions_of(node: Node) -> list[str]:
    """By what this node has accepted its versions."""
    report = read_report(node.tenant.config.data / "tenant.sqlite")
    return [str(row["checked"]) for row in report["versions"]]


def files_of(node: Node) -> int:
    return len(list((node.tenant.config.data / "versions").rglob("notes.txt")))


def test_a_version_is_recomputed_once_by_each_before_it_is_trained(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with (
            federation(enrolled, tmp_path) as running,
            all_joined(running, tmp_path, policy={"recompute_leaves": 1}) as nodes,
        ):
            origin = await first_round(running, nodes.values())
            status = await round_on(running, 2, await publish(running, 2, origin))
            assert list(status.survivors) == list(TENANTS)
            for node in nodes.values():
                await node.until("round_ended", round=2)
                (done,) = node.heard("version_recomputed")
                assert (done["version"], done["round"], done["own_part"]) == (2, 1, True)
                assert (done["leaves"], done["of"]) in ((1, 4), (2, 4))
                assert versions_of(node) == ["beginning", f"{done['leaves']} of 4 leaves"]

    asyncio.run(scenario())


def test_an_invented_sum_is_refused_by_every_tenant_though_the_owner_took_it(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with (
            federation(enrolled, tmp_path) as running,
            all_joined(running, tmp_path) as nodes,
        ):
            origin = await first_round(running, nodes.values())
            before = {name: data_of(node) for name, node in nodes.items()}
            status = await round_on(running, 2, await publish(running, 2, origin))
            assert status.outcome == round_pb2.ROUND_OUTCOME_ABORTED
            assert {e.reason for e in status.excluded} == {"declined: PolicyRefused (recompute)"}
            for name, node in nodes.items():
                assert (await node.until("plan_refused", round=2))["clause"] == "recompute"
                refused = await node.until("version_refused", version=2)
                assert refused["error"] == "ProtocolError"
                assert "not that of the uploads" in refused["reason"]
                assert not node.heard("version_recomputed")
                assert versions_of(node) == ["beginning"]
                assert files_of(node) == 1
                assert data_of(node) == before[name]

    invent(monkeypatch)
    asyncio.run(scenario())


def data_of(node: Node) -> tuple[bytes, int]:
    """What the next contribution would depend on: the residual, and the rounds joined."""
    tenant = node.tenant
    return tenant.residual.path.read_bytes(), tenant.ledger.last_round(tenant.identity.public_key)


def test_without_recomputation_an_invented_sum_is_taken_as_documented(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            async with all_joined(running, tmp_path, policy={"recompute": "off"}) as nodes:
                origin = await first_round(running, nodes.values())
                version = await publish(running, 2, origin)
                status = await round_on(running, 2, version)
                assert list(status.survivors) == list(TENANTS)
                assert versions_of(nodes["ada"]) == ["off", "off"]
            # Who begins to recompute does so for what it had accepted unseen.
            async with joined(running, config_of(running, "ada", tmp_path)) as node:
                await node.until("connected")
                await running.open(plan_on(enrolled, 3, version[1]), version[0])
                assert (await node.until("plan_refused", round=3))["clause"] == "recompute"

    invent(monkeypatch)
    asyncio.run(scenario())


def test_a_tenant_that_was_told_another_sum_than_the_others_refuses(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Transaction.tell

    class TwoTongues(Transaction):
        """Tells ada another sum."""

        def tell(self, context: bytes, payload: bytes, recipients: Iterable[str]) -> None:
            event = WatchRoundsResponse.FromString(payload)
            others = [
                name for name in recipients if name != "ada" or not event.round_ended.sum_root
            ]
            honest(self, context, payload, others)
            if len(others) < len(list(recipients)):
                event.round_ended.sum_root = bytes(32)
                honest(self, context, event.SerializeToString(), ["ada"])

    async def scenario() -> None:
        async with (
            federation(enrolled, tmp_path) as running,
            all_joined(running, tmp_path) as nodes,
        ):
            origin = await first_round(running, nodes.values())
            status = await round_on(running, 2, await publish(running, 2, origin))
            assert list(status.survivors) == [name for name in TENANTS if name != "ada"]
            refused = await nodes["ada"].until("version_refused")
            assert "announced another sum" in refused["reason"]

    monkeypatch.setattr(Transaction, "tell", TwoTongues.tell)
    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sum_root": bytes(32)}, "announced another sum"),
        ({"transcript_sha256": bytes(32)}, "announced another sum"),
        ({"context": bytes(32)}, "no round has this context"),
    ],
    ids=["another sum", "another transcript", "another round"],
)
def test_a_version_that_names_what_the_coordinator_does_not_is_refused(
    enrolled: Enrolled, tmp_path: Path, changes: Any, words: str
) -> None:
    async def scenario() -> None:
        async with (
            federation(enrolled, tmp_path) as running,
            all_joined(running, tmp_path) as nodes,
        ):
            origin = await first_round(running, nodes.values())
            await publish(running, 2, replace(origin, **changes))
            for node in nodes.values():
                assert words in (await node.until("version_refused"))["reason"]
                assert versions_of(node) == ["beginning"]

    asyncio.run(scenario())


def test_a_version_from_nowhere_is_refused_once_this_tenant_has_contributed_unless_pinned(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            async with all_joined(running, tmp_path) as nodes:
                await first_round(running, nodes.values())
                version = await publish(running, 2)
                status = await round_on(running, 2, version)
                assert status.outcome == round_pb2.ROUND_OUTCOME_ABORTED
                for node in nodes.values():
                    refused = await node.until("plan_refused", round=2)
                    assert refused["clause"] == "start_versions"
            pinned = {"start_versions": (version[1].hex(),)}
            async with all_joined(running, tmp_path, policy=pinned) as nodes:
                status = await round_on(running, 3, version)
                assert list(status.survivors) == list(TENANTS)
                assert versions_of(nodes["ada"]) == ["beginning", "pinned"]

    asyncio.run(scenario())


def test_a_version_above_the_policys_size_is_not_fetched(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with (
            federation(enrolled, tmp_path) as running,
            all_joined(running, tmp_path, policy={"max_version_bytes": 8}) as nodes,
        ):
            version = await publish(running, 1)  # of 9 bytes
            status = await round_on(running, 1, version)
            assert status.outcome == round_pb2.ROUND_OUTCOME_ABORTED
            for node in nodes.values():
                refused = await node.until("plan_refused", round=1)
                assert refused["clause"] == "max_version_bytes"
                assert versions_of(node) == []
                assert files_of(node) == 0

    asyncio.run(scenario())


def test_another_beginning_is_accepted_as_long_as_nothing_was_contributed(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with (
            federation(enrolled, tmp_path) as running,
            all_joined(running, tmp_path) as nodes,
        ):
            await publish(running, 1)
            status = await round_on(running, 1, await publish(running, 2))
            assert list(status.survivors) == list(TENANTS)
            assert set(versions_of(nodes["ada"])) == {"beginning"}

    asyncio.run(scenario())


def test_a_version_from_an_older_round_than_the_newest_is_refused(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with (
            federation(enrolled, tmp_path) as running,
            all_joined(running, tmp_path) as nodes,
        ):
            origin = await first_round(running, nodes.values())
            await round_on(running, 2, await publish(running, 2, origin))
            for node in nodes.values():
                await node.until("round_ended", round=2)
            await publish(running, 3, origin)
            for node in nodes.values():
                refused = await node.until("version_refused", version=3)
                assert "round 2 has been opened since" in refused["reason"]

    asyncio.run(scenario())


def test_when_the_uploads_are_gone_the_version_is_refused(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with (
            federation(enrolled, tmp_path, retention={"hours": 0}) as running,
            all_joined(running, tmp_path) as nodes,
        ):
            origin = await first_round(running, nodes.values())
            running.coordinator.rounds.purge_uploads()
            await publish(running, 2, origin)
            for node in nodes.values():
                assert (await node.until("version_refused"))["error"] == "NoLongerKept"

    asyncio.run(scenario())


def test_who_was_not_in_the_cohort_cannot_check_and_refuses_unless_pinned(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            async with all_joined(running, tmp_path) as nodes:
                first = await publish(running, 1)
                status = await round_on(running, 1, first, cohort=TENANTS[1:])
                version = await publish(running, 2, claim_of(status))
                refused = await nodes["ada"].until("version_refused")
                assert refused["error"] == "UnknownTenant"
                await nodes["bob"].until("version_recomputed")
            pinned = config_of(
                running, "ada", tmp_path, policy={"start_versions": (version[1].hex(),)}
            )
            async with all_joined(running, tmp_path, without=("ada",)), joined(running, pinned):
                status = await round_on(running, 2, version)
                assert list(status.survivors) == list(TENANTS)

    asyncio.run(scenario())


def test_a_tenant_that_was_left_out_sees_that_it_is_not_in_the_sum(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with (
            federation(enrolled, tmp_path) as running,
            all_joined(running, tmp_path, without=("ada",)),
        ):
            slow = config_of(running, "ada", tmp_path, upload={"max_bytes_per_second": 50_000})
            first = await publish(running, 1)
            plan = plan_on(enrolled, 1, first[1])
            async with joined(running, slow) as node:
                await running.open(plan, first[0])
                await node.until("upload_progress")
            while len((await running.status(plan.context)).steps[-1].answered) < 4:
                await asyncio.sleep(0)
            await running.let_pass(plan.deadlines.masked_input_ms / 1000)
            status = await running.ended(plan.context)
            assert list(status.survivors) == list(TENANTS[1:])
            async with joined(running, config_of(running, "ada", tmp_path)) as node:
                await publish(running, 2, claim_of(status))
                assert (await node.until("version_recomputed"))["own_part"] is False

    asyncio.run(scenario())


def test_an_upload_that_this_tenant_did_not_make_is_told_to_its_operator(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            # Somebody with a copy of ada's keys takes part, on another machine.
            claim = await finished_round(running, enrolled.plan(100))
            async with joined(running, config_of(running, "ada", tmp_path)) as node:
                await node.until("connected")
                await publish(running, 1, claim)
                refused = await node.until("version_refused")
                assert "somebody else has this tenant's key" in refused["reason"]

    asyncio.run(scenario())


def test_a_draw_stands_until_its_own_leaves_have_come(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that is away whenever it dislikes the draw gets no other one."""
    asked: list[list[int]] = []

    async def fails_in_the_end(answers: Any) -> Any:
        asked.append([])
        async for answer in answers:
            if answer.HasField("claimed"):
                asked[-1].append(answer.number)
            if answer.number == 16:  # the last one, which is always asked for
                raise RuntimeError("a fault of the server")
            yield answer

    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            first = await publish(running, 1)
            plan = enrolled.plan(1 << 20).next_round(1, model_digest=first[1])
            config = config_of(running, "ada", tmp_path, policy={"recompute_leaves": 3})
            async with (
                all_joined(running, tmp_path, without=("ada",)),
                joined(running, config) as node,
            ):
                status = await running.ended(await running.open(plan, first[0]))
                await node.until("round_ended")
            version = await publish(running, 2, claim_of(status))  # the others look at it no more
            for number in range(2, 5):
                async with joined(running, config) as node:
                    await node.until("connected")
                    following = plan.next_round(number, model_digest=version[1])
                    await running.open(following, version[0])
                    given_up = await node.until("round_given_up", round=number)
                    assert given_up["error"] == "CallFailed"
                    assert versions_of(node) == ["beginning"]
                await running.coordinator.rounds.abort(following.context, "enough")
        assert len(asked) >= 3
        assert len(asked[0]) >= 2
        assert all(numbers == asked[0] for numbers in asked)

    server = deviate(monkeypatch)
    server.leaves = staticmethod(fails_in_the_end)  # type: ignore[assignment]
    asyncio.run(scenario())


# ---------------------------------------------------------------------- the own part, by its ledger


def test_the_own_part_must_be_what_the_ledger_has(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario(running: Federation, plan: RoundPlan, claim: Origin) -> None:
        found = await fetched(running, claim)
        commitment = UploadCommitment(bytes(32), found.verified.roots["ada"], 1)
        signed = own_survivors(found)
        assert require_own_part(found, entries(enrolled, plan, commitment, signed), "ada")
        other = replace(commitment, root=bytes(32))
        with pytest.raises(ProtocolError, match="another root"):
            require_own_part(found, entries(enrolled, plan, other, signed), "ada")
        elsewhere = replace(signed, members_digest=bytes(32))
        with pytest.raises(ProtocolError, match="another survivor set"):
            require_own_part(found, entries(enrolled, plan, commitment, elsewhere), "ada")

    with_round(enrolled, tmp_path, scenario)


def own_survivors(found: Fetched) -> Survivors:
    messages = [decode_message(link.message) for link in decode(Transcript, found.transcript).links]
    (quorum,) = (message for message in messages if isinstance(message, Quorum))
    return quorum.signatures[0].read(Survivors)


def entries(
    enrolled: Enrolled, plan: RoundPlan, commitment: UploadCommitment, survivors: Survivors
) -> list[Entry]:
    identity = enrolled.keys["ada"].identity()
    return [
        Entry(act, bytes(32), encode(Signed.create(plan, identity, body)))
        for act, body in (
            (Act.UPLOAD_COMMITTED, commitment),
            (Act.SIGNED_SURVIVORS, survivors),
        )
    ]


def test_a_database_of_the_version_before_keeps_what_it_had_accepted(tmp_path: Path) -> None:
    path = tmp_path / "tenant.sqlite"
    with sqlite3.connect(path) as database:
        database.executescript(BEFORE)
        database.execute("INSERT INTO version VALUES (?, 4, 1.0)", (bytes(32),))
        database.execute(
            "INSERT INTO round VALUES (?, '7', x'', 4, 'opened', '', 1.0, 2.0)", (bytes(32),)
        )
    database.close()
    for _ in range(2):
        store = TenantStore(path)
        assert store.checked(bytes(32)) == "before"
        assert store.checked(b"\1" * 32) is None
        assert store.announced(bytes(32)) is None
        assert store.newest_opened() == 7
        store.close()


BEFORE = """
CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE round (
    context BLOB PRIMARY KEY, number TEXT NOT NULL, plan BLOB NOT NULL,
    adapter_version INTEGER NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
    begun_at REAL NOT NULL, ended_at REAL
);
CREATE TABLE version (
    digest BLOB PRIMARY KEY, number INTEGER NOT NULL, fetched_at REAL NOT NULL
);
CREATE TABLE evaluation (
    digest BLOB NOT NULL, name TEXT NOT NULL, value REAL NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (digest, name)
);
CREATE TABLE audit (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, event TEXT NOT NULL, detail TEXT NOT NULL
);
PRAGMA user_version = 1;
"""


# ---------------------------------------------------------------------- what the operator types


async def secagg(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a real process."""
    command = [sys.executable, "-m", "secagg", *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, error = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()


def toml_of(running: Federation, name: str, data: Path) -> Path:
    path = data / f"{name}.toml"
    path.write_text(
        f'coordinator = "127.0.0.1:{running.coordinator.port}"\n'
        f'keys = "{running.enrolled.keys[name].directory}"\ndata = "{data / name}"\n'
        f'[policy]\nroster_digest = "{running.enrolled.roster.digest.hex()}"\n'
        '[training]\ntrainer = "vector"\n'
    )
    return path


@pytest.mark.processes
@pytest.mark.parametrize("invented", [False, True], ids=["honest", "invented"])
def test_the_operator_recomputes_a_round_and_reads_the_exit_code(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invented: bool
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            async with all_joined(running, tmp_path) as nodes:
                origin = await first_round(running, nodes.values())
            config = toml_of(running, "ada", tmp_path)
            recompute = ("tenant", "recompute", "--config", config)
            code, out, error = await secagg(*recompute, "1", "--all", "--format", "json")
            if invented:
                assert code == 4
                assert "secagg tenant: the claimed sum is not that of the uploads" in error
            else:
                assert code == 0, error
                facts = json.loads(out)
                assert (facts["leaves"], facts["of"], facts["own_part"]) == (4, 4, True)
                assert facts["sum_root"] == origin.sum_root.hex()
            code, _, error = await secagg(*recompute, "9")
            assert code == 2
            assert "heard no sum of a round 9" in error
            version = await publish(running, 2, origin)
            joining = asyncio.create_task(
                secagg("tenant", "join", "--config", config, "--rounds", "1")
            )
            async with all_joined(running, tmp_path, without=("ada",)):
                status = await round_on(running, 2, version)
            code, _, error = await joining
            assert code == (4 if invented else 0), error
            assert ("version_refused" in error) is invented
            assert (status.outcome == round_pb2.ROUND_OUTCOME_ABORTED) is invented

    if invented:
        invent(monkeypatch)
    asyncio.run(scenario())
