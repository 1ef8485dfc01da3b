"""The database: migrations from nothing, one announcement each, whole transactions or none."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect

from secagg.errors import ConfigError, Step, UsageError
from secagg_coordinator import schema
from secagg_coordinator.records import ExclusionRecord, Opened, StepRecord, UploadRecord
from secagg_coordinator.store import EVENT_PAGE, Store, exclusive

CONTEXT, OTHER = b"\1" * 32, b"\2" * 32


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path)


def begin(store: Store, context: bytes = CONTEXT, number: int = 1) -> None:
    with store.writing() as transaction:
        transaction.begin_round(context, plan=b"plan", round_number=number, adapter_version=3)


def test_migrations_from_nothing_make_exactly_the_tables_that_the_code_uses(
    store: Store, tmp_path: Path
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'coordinator.sqlite'}")
    with engine.connect() as connection:
        difference = compare_metadata(MigrationContext.configure(connection), schema.metadata)
        names = set(inspect(connection).get_table_names()) - {"alembic_version"}
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
    engine.dispose()
    assert difference == []
    assert names == set(schema.metadata.tables)
    assert mode == "wal"


def test_migrating_twice_changes_nothing(store: Store, tmp_path: Path) -> None:
    begin(store)
    store.close()
    assert Store.open(tmp_path).highest_round_number() == 1


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "coordinator.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(ConfigError, match="cannot open the database"):
        Store.open(tmp_path)


def test_a_second_coordinator_on_the_same_data_is_refused(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path),
        pytest.raises(ConfigError, match="another coordinator"),
        exclusive(tmp_path),
    ):
        pass
    with exclusive(tmp_path):
        pass


def test_an_announcement_stands_once_per_round(store: Store) -> None:
    begin(store)
    with store.writing() as transaction:
        transaction.announce(CONTEXT, "U1", b"a")
        transaction.announce(CONTEXT, "U1", b"a")
    with pytest.raises(UsageError, match="U1"), store.writing() as transaction:
        transaction.announce(CONTEXT, "U1", b"b")


def test_a_failing_transaction_leaves_nothing(store: Store) -> None:
    begin(store)

    def fails() -> None:
        with store.writing() as transaction:
            transaction.tell(CONTEXT, b"hello", ["ada"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert store.last_event_id("ada") == 0


def test_events_come_in_order_and_in_pages(store: Store) -> None:
    begin(store)
    with store.writing() as transaction:
        for number in range(EVENT_PAGE + 5):
            transaction.tell(CONTEXT, str(number).encode(), ["ada", "bob"])
    first = store.events_after("ada", 0)
    second = store.events_after("ada", first[-1].event_id)
    payloads = [int(event.payload) for event in first + second]
    assert payloads == list(range(EVENT_PAGE + 5))
    ids = [event.event_id for event in first + second]
    assert ids == sorted(set(ids))
    assert store.last_event_id("ada") == ids[-1]


def test_an_ended_round_forgets_its_events_and_ids_are_not_used_again(store: Store) -> None:
    begin(store)
    with store.writing() as transaction:
        transaction.tell(CONTEXT, b"offer", ["ada"])
    before = store.last_event_id("ada")
    with store.writing() as transaction:
        transaction.abort_round(CONTEXT, "enough")
        transaction.tell(CONTEXT, b"ended", ["ada"])
    (event,) = store.events_after("ada", 0)
    assert event.payload == b"ended"
    assert event.event_id > before


def test_a_round_comes_back_with_all_that_belongs_to_it(store: Store) -> None:
    opened = Opened(("ada",), 7, 2, b"\6" * 32, b"\x08" * 32)
    begin(store)
    with store.writing() as transaction:
        transaction.record_submission(CONTEXT, "ada", "advertise_keys", b"\3" * 32)
        transaction.record_submission(CONTEXT, "ada", "upload_header", b"\4" * 32)
        transaction.record_submission(CONTEXT, "ada", "upload_commitment", b"\5" * 32)
        transaction.record_step(CONTEXT, StepRecord(Step.ADVERTISE_KEYS, 1.5, 10, 20))
        transaction.record_exclusion(CONTEXT, ExclusionRecord("bob", Step.SHARE_KEYS, "first"))
        transaction.record_exclusion(CONTEXT, ExclusionRecord("bob", Step.UNMASK, "second"))
        for size in (5, 9):
            transaction.record_upload(CONTEXT, UploadRecord("ada", size, size == 9))
        transaction.finish_round(CONTEXT, opened, b"\7" * 32)
    record = store.round(CONTEXT)
    assert record is not None
    assert record.outcome == "opened"
    assert record.opened == opened
    assert record.answered == {Step.ADVERTISE_KEYS: ("ada",), Step.MASKED_INPUT: ("ada",)}
    assert record.exclusions == (ExclusionRecord("bob", Step.SHARE_KEYS, "first"),)
    assert record.uploads == (UploadRecord("ada", 9, True),)
    assert record.steps == (StepRecord(Step.ADVERTISE_KEYS, 1.5, 10, 20),)
    assert store.round(OTHER) is None


def test_rounds_are_listed_newest_first_and_running_ones_are_found(store: Store) -> None:
    begin(store, CONTEXT, 1)
    begin(store, OTHER, 2)
    with store.writing() as transaction:
        transaction.abort_round(CONTEXT, "x")
    assert [record.round_number for record in store.rounds()] == [2, 1]
    assert [record.round_number for record in store.rounds(1)] == [2]
    assert store.running() == (OTHER,)
    assert store.highest_round_number() == 2


def test_disputes_outlive_their_round(store: Store) -> None:
    with store.writing() as transaction:
        transaction.record_disputes({"ada": 1, "bob": 2})
        transaction.record_disputes({"ada": 3})
    assert store.disputes() == {"ada": 3, "bob": 2}
