"""A tenant that answers each request in a process of its own, and what it refuses."""

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from secagg.errors import ConfigError, MalformedMessage, SpentInput, Step, UsageError
from secagg.plan import RoundPlan
from secagg_embed import (
    Contribution,
    CoordinatedRound,
    Party,
    Reply,
    Requests,
    TenantFolder,
    Terms,
    make_tenants,
    reply_to,
    run_round,
)
from secagg_embed.folder import FolderRounds
from secagg_embed.party import examples_in, weight_in
from secagg_embed.plain import refusing
from secagg_embed.wire import UNABLE, Declined, Said
from tests.embed.conftest import MODEL, NAMES, Federation, InMemory, is_mean


def declined(reply: bytes) -> str:
    head = Reply.decode(reply).read()
    assert isinstance(head, Declined)
    return head.reason


def until(coordinated: CoordinatedRound, federation: Federation, step: Step) -> Requests:
    """The requests of the exchange of `step`."""
    requests = coordinated.begin()
    while coordinated.step < step:
        for name, reply in federation.ask(requests):
            coordinated.take(name, reply)
        requests = coordinated.close()
    return requests


@pytest.mark.parametrize("step", list(Step))
def test_the_same_request_gets_the_same_bytes_in_another_process(
    federation: Federation, step: Step
) -> None:
    coordinated = federation.round()
    requests = until(coordinated, federation, step)
    first = federation.answer("bob", requests["bob"])
    assert federation.answer("bob", requests["bob"]) == first
    for name, reply in federation.ask(requests):
        coordinated.take(name, reply)
    while following := coordinated.close():
        for name, reply in federation.ask(following):
            coordinated.take(name, reply)
    assert is_mean(coordinated, federation)


def test_training_happens_once_however_often_it_is_asked_for(federation: Federation) -> None:
    coordinated = federation.round()
    requests = until(coordinated, federation, Step.MASKED_INPUT)
    trained: list[int] = []
    for _ in range(3):
        with federation.party("ada") as party:
            assert party.expects_training(requests["ada"]) is (not trained)
            party.answer(
                requests["ada"],
                lambda plan: trained.append(1) or federation.contribution("ada", plan),  # type: ignore[func-returns-value]
            )
    assert trained == [1]


def test_a_request_repeated_during_the_training_waits_for_its_reply(federation: Federation) -> None:
    """As in a server with threads, whose client lost its patience and asked again."""
    coordinated = federation.round()
    requests = until(coordinated, federation, Step.MASKED_INPUT)
    trained: list[int] = []
    replies: list[bytes] = []

    with federation.party("ada") as party:

        def ask() -> None:
            replies.append(party.answer(requests["ada"], contribute).encode())

        again = threading.Thread(target=ask)

        def contribute(plan: RoundPlan) -> Contribution:
            trained.append(1)
            if len(trained) == 1:
                again.start()
                again.join(timeout=0.2)  # time in which it could train as well
            return federation.contribution("ada", plan)

        ask()
        again.join()
    assert trained == [1]
    assert replies[0] == replies[1]


def test_the_rounds_key_is_destroyed_with_the_answer(federation: Federation) -> None:
    """Not with the coordinator's word on the ending, which may never come."""
    coordinated = federation.round()
    requests = until(coordinated, federation, Step.UNMASK)
    for name, request in requests.items():
        assert list((federation.folders[name] / "rounds").glob("*.key"))
        federation.answer(name, request)
        assert not list((federation.folders[name] / "rounds").glob("*.key"))


def test_nothing_is_trained_and_nothing_left_behind_after_the_round(federation: Federation) -> None:
    for _ in range(2):
        run_round(federation.round(), federation.ask)
    for folder in federation.folders.values():
        kept = {path.name for path in (folder / "rounds").iterdir()}
        assert kept == {"CACHEDIR.TAG"}


def test_training_without_a_contribution_is_the_callers_mistake(federation: Federation) -> None:
    coordinated = federation.round()
    requests = until(coordinated, federation, Step.MASKED_INPUT)
    with federation.party("ada") as party, pytest.raises(UsageError, match="time to train"):
        party.answer(requests["ada"])
    assert coordinated.take("ada", federation.answer("ada", requests["ada"]))


def test_a_training_that_fails_leaves_the_round_and_is_raised(federation: Federation) -> None:
    coordinated = federation.round()
    requests = until(coordinated, federation, Step.MASKED_INPUT)

    def broken(plan: object) -> Contribution:
        raise RuntimeError("patient 4711 has no diagnosis")

    with federation.party("ada") as party, pytest.raises(RuntimeError):
        party.answer(requests["ada"], broken)
    told = refusing(requests["ada"])
    assert declined(told) == UNABLE
    assert coordinated.take("ada", told)
    assert "no longer" in declined(federation.answer("ada", requests["ada"]))
    for name in NAMES[1:]:
        coordinated.take(name, federation.answer(name, requests[name]))
    while following := coordinated.close():
        for name, reply in federation.ask(following):
            coordinated.take(name, reply)
    assert coordinated.outcome().survivors == NAMES[1:]


@pytest.mark.parametrize("bad", [np.full(15, np.nan, np.float32), np.zeros(3, np.float32)])
def test_a_vector_that_cannot_be_protected_leaves_the_round(
    federation: Federation, bad: np.ndarray
) -> None:
    coordinated = federation.round()
    requests = until(coordinated, federation, Step.MASKED_INPUT)
    with federation.party("ada") as party, pytest.raises(UsageError):
        party.answer(requests["ada"], lambda plan: Contribution(bad))
    assert "no longer" in declined(federation.answer("ada", requests["ada"]))


def test_an_update_that_has_left_before_is_not_told_of(federation: Federation) -> None:
    first = federation.round()
    run_round(first, federation.ask)
    coordinated = federation.round()
    requests = until(coordinated, federation, Step.MASKED_INPUT)
    with federation.party("ada") as party, pytest.raises(SpentInput):
        party.answer(requests["ada"], lambda plan: federation.contribution("ada", first.plan))
    assert declined(refusing(requests["ada"])) == UNABLE


def test_a_full_disk_leaves_the_round(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinated = federation.round()
    requests = until(coordinated, federation, Step.MASKED_INPUT)
    with federation.party("ada") as party:
        monkeypatch.setattr(FolderRounds, "keep_reply", full_disk)
        with pytest.raises(OSError, match="no space"):
            party.answer(requests["ada"], lambda plan: federation.contribution("ada", plan))
    assert not list((federation.folders["ada"] / "rounds").glob("*.key"))
    assert "no longer" in declined(federation.answer("ada", requests["ada"]))


def full_disk(*_: object) -> None:
    raise OSError("no space left")


def test_a_number_far_ahead_of_the_clock_is_declined(federation: Federation) -> None:
    """One such offer would be the last that this identity could ever take."""
    federation.number = 2**32 - 2
    reply = federation.answer("ada", federation.round().begin()["ada"])
    assert "more than a day after the Unix clock" in declined(reply)
    federation.number = 0
    assert run_round(federation.round(), federation.ask).survivors == NAMES


def test_a_stray_file_among_the_rounds_is_left_alone(federation: Federation) -> None:
    for name in ("x.key", "README", f"{'ab' * 32}.plan.new"):
        (federation.folders["ada"] / "rounds").mkdir(exist_ok=True)
        (federation.folders["ada"] / "rounds" / name).write_bytes(b"")
    assert run_round(federation.round(), federation.ask).survivors == NAMES


def test_another_round_ends_the_one_before(federation: Federation) -> None:
    first = federation.round()
    requests = until(first, federation, Step.SHARE_KEYS)
    second = federation.round()
    run_round(second, federation.ask)
    assert is_mean(second, federation)
    assert "no longer" in declined(federation.answer("ada", requests["ada"]))


def test_a_round_number_that_was_used_is_declined(federation: Federation) -> None:
    run_round(federation.round(), federation.ask)
    federation.number = 0
    coordinated = federation.round()
    reply = federation.answer("ada", coordinated.begin()["ada"])
    assert "round_number" in declined(reply)


def test_the_tenants_own_policy_decides(federation: Federation) -> None:
    (federation.folders["ada"] / "policy.toml").write_text("max_clip = 0.5\nmin_survivors = 4\n")
    coordinated = federation.round()
    assert "max_clip" in declined(federation.answer("ada", coordinated.begin()["ada"]))
    run_round(coordinated := federation.round(), federation.ask)
    assert coordinated.outcome().survivors == NAMES[1:]
    assert "max_clip" in coordinated.declined["ada"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_klip = 1", "no clause is named"),
        ("max_colluders = 'two'", "a int is needed"),
        ("max_colluders = true", "a int is needed"),
        ("model_digests = ['xyz']", "hexadecimal"),
        ("schemes = 'ckks'", "a list is needed"),
        ("schemes = ['mask']", "choose of"),
        ("suites = []", "choose of"),
        ("layout_digests = ['ab']", "64 digits each"),
        ("max_colluders = -1", "cannot be below 0"),
        ("max_clip = nan", "cannot be below 0"),
        ("clip = ", "policy.toml"),
        ("roster_digest = '00'", "no clause is named"),
    ],
)
def test_a_policy_that_cannot_be_read_is_no_policy(
    federation: Federation, text: str, said: str
) -> None:
    (federation.folders["ada"] / "policy.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        federation.party("ada")


def test_a_policy_file_has_every_clause(federation: Federation) -> None:
    (federation.folders["ada"] / "policy.toml").write_text(
        f"schemes = ['ckks']\nmodel_digests = ['{'ab' * 32}']\nmax_weight = 7\nmax_clip = 2\n"
    )
    policy = TenantFolder(federation.folders["ada"]).policy()
    assert policy.schemes == ("ckks",)
    assert policy.model_digests == {b"\xab" * 32}
    assert (policy.max_weight, policy.max_clip) == (7, 2.0)


def test_a_folder_is_one_process_at_a_time(federation: Federation) -> None:
    with federation.party("ada"), pytest.raises(UsageError, match="in use"):
        federation.party("ada")


def test_a_folder_without_keys_says_what_makes_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="secagg keys init"):
        Party.open(tmp_path)


def test_the_keys_of_another_role_are_refused(federation: Federation) -> None:
    about = federation.folders["ada"] / "identity.json"
    about.write_text(about.read_text().replace("tenant", "coordinator"))
    with pytest.raises(ConfigError, match="a tenant's are needed"):
        federation.party("ada")


def test_a_copied_back_folder_cannot_say_something_else(federation: Federation) -> None:
    """Restored from a backup of an earlier step: the coordinator hears the same, or nothing."""
    coordinated = federation.round()
    requests = until(coordinated, federation, Step.SHARE_KEYS)
    backup = federation.folders["ada"].with_name("backup")
    shutil.copytree(federation.folders["ada"], backup)
    first = federation.answer("ada", requests["ada"])
    (backup / "rounds").rename(backup / "lost")  # no backup holds keys of rounds
    shutil.rmtree(federation.folders["ada"])
    backup.rename(federation.folders["ada"])
    assert federation.answer("ada", requests["ada"]) != first
    assert "no longer" in declined(federation.answer("ada", requests["ada"]))


def test_garbage_changes_nothing(federation: Federation) -> None:
    coordinated = federation.round()
    requests = until(coordinated, federation, Step.ACKNOWLEDGE)
    for garbage in (b"", b"\x01", b"\x01\x00\x00\x00\x05Offer", requests["bob"][:-1]):
        with pytest.raises(MalformedMessage):
            federation.answer("bob", garbage)
    head = Reply.decode(federation.answer("bob", requests["bob"])).read()
    assert isinstance(head, Said)


def test_nothing_secret_shows() -> None:
    federation = InMemory()
    plan = federation.round().plan
    assert repr(federation.party("ada")) == "Party('ada')"
    assert repr(federation.contribution("ada", plan)) == "Contribution(<15 values>)"


def test_much_clipping_is_said_at_the_tenant_and_nowhere_else(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    federation.terms = Terms(clip=0.1, max_weight=50)
    coordinated = federation.round()
    requests = until(coordinated, federation, Step.MASKED_INPUT)
    caplog.clear()
    reply = federation.answer("eve", requests["eve"])
    assert "beyond the round's clip of 0.1" in caplog.text
    assert b"clip" not in reply


def test_an_update_that_vanishes_in_rounding_is_said_at_the_tenant(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    federation.terms = Terms(clip=1.0, max_weight=10**9)
    coordinated = federation.round()
    requests = until(coordinated, federation, Step.MASKED_INPUT)
    federation.answer("eve", requests["eve"])
    assert "eve: this update is below the round's resolution" in caplog.text


# ---------------------------------------------------------------------------- tensors in, delta out


def test_reply_to_sends_what_training_changed(federation: Federation) -> None:
    coordinated = federation.round()

    def ask(requests: Requests) -> list[tuple[str, bytes]]:
        replies = []
        for name, request in requests.items():
            step = np.float32(0.01 * (NAMES.index(name) + 1))
            after = {key: array + step for key, array in MODEL.items()}
            with federation.party(name) as party:
                given = lambda plan, after=after: (after, 10_000)  # noqa: E731
                replies.append((name, reply_to(party, request, given, MODEL)))
        return replies

    result = run_round(coordinated, ask)
    assert result.total_weight == 5 * 50  # a weight above the plan's largest counts as it
    after = coordinated.applied(MODEL)
    for name, array in MODEL.items():
        assert np.abs(after[name] - array - 0.03).max() < 1e-4


def test_another_model_than_the_plans_is_not_trained(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    coordinated = federation.round()
    requests = until(coordinated, federation, Step.MASKED_INPUT)
    other = {name: array + 1 for name, array in MODEL.items()}
    trained: list[int] = []
    with federation.party("ada") as party:
        told = reply_to(party, requests["ada"], lambda plan: trained.append(1), other)  # type: ignore[arg-type, return-value]
    assert declined(told) == UNABLE
    assert "shows this tenant another model" in caplog.text
    assert trained == []


def test_training_in_place_is_noticed(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    """Before and after would be the same arrays, and the update nothing."""
    coordinated = federation.round()
    requests = until(coordinated, federation, Step.MASKED_INPUT)
    mine = {name: array.copy() for name, array in MODEL.items()}

    def train(plan: object) -> tuple[dict[str, np.ndarray], int]:
        for array in mine.values():
            array += 1
        return mine, 10

    with federation.party("ada") as party:
        assert declined(reply_to(party, requests["ada"], train, mine)) == UNABLE
    assert "train on a copy" in caplog.text


def test_other_settings_than_the_others_have_are_not_trained_with(federation: Federation) -> None:
    """A rate of 0.1 for one tenant and 0 for the rest, and the sum would be that one's update."""
    federation.number += 1
    coordinated = federation.terms.round(
        federation.roster, MODEL, round_number=federation.number, settings=b"rate 0.01"
    )
    requests = until(coordinated, federation, Step.MASKED_INPUT)
    after = {name: array + 1 for name, array in MODEL.items()}
    for settings, taken in ((b"rate 0.01", Said), (b"rate 0.1", Declined), (b"", Declined)):
        name = NAMES[len(settings) % 5]
        with federation.party(name) as party:
            told = reply_to(party, requests[name], lambda plan: (after, 1), MODEL, settings)
        assert isinstance(Reply.decode(told).read(), taken)


@pytest.mark.parametrize("wrong", ["exception", "NaN", "shape"])
def test_what_goes_wrong_in_a_training_is_for_this_tenants_log_alone(
    federation: Federation, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    """Whoever chooses the model chooses for which data a training fails: why must not be told."""
    coordinated = federation.round()
    requests = until(coordinated, federation, Step.MASKED_INPUT)

    def train(plan: RoundPlan) -> tuple[dict[str, np.ndarray], int]:
        match wrong:
            case "exception":
                raise RuntimeError("patient 4711 has no diagnosis")
            case "NaN":
                return {name: array * np.float32("nan") for name, array in MODEL.items()}, 10
            case _:
                return {name: array[:1] for name, array in MODEL.items()}, 10

    with federation.party("ada") as party:
        told = reply_to(party, requests["ada"], train, MODEL)
    assert declined(told) == UNABLE
    assert "has left it" in caplog.text
    assert ("Traceback" in caplog.text) == (wrong == "exception")  # where it lies in your code


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "train returned NoneType"),
        (dict(MODEL), "train returned dict"),
        ((torch.nn.Linear(4, 3), 10), "arrays maps every name"),
        ((dict(MODEL), 10, {"loss": 0.1}), "train returned tuple"),
        *(
            ((dict(MODEL), examples), "no whole number of 1 or more")
            for examples in (None, "10", 0, -3, 2.5, float("nan"), float("inf"), np.zeros(2))
        ),
    ],
)
def test_what_is_no_trained_model_is_said_in_one_line_at_the_tenant(
    federation: Federation, caplog: pytest.LogCaptureFixture, returned: Any, said: str
) -> None:
    requests = until(federation.round(), federation, Step.MASKED_INPUT)
    with federation.party("ada") as party:
        told = reply_to(party, requests["ada"], lambda plan: returned, MODEL)
    assert declined(told) == UNABLE
    assert said in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("examples", [10, np.int64(10), 10.0, torch.tensor(10), np.array(10)])
def test_examples_may_be_counted_by_whatever_counts(examples: Any) -> None:
    assert examples_in(examples) == 10


@pytest.mark.parametrize(
    ("reported", "weight"),
    [(7, 7), (7.9, 7), (np.float32(7), 7), (10**400, 100), (float("inf"), 100), (1, 1)]
    + [(none, None) for none in (0, 0.9, -3, True, "12", None, [1], float("nan"))],
)
def test_a_metric_is_a_weight_up_to_the_plans_largest(reported: Any, weight: int | None) -> None:
    assert weight_in(reported, 100) == weight


def test_a_closed_party_says_so_and_closes_twice(federation: Federation) -> None:
    request = federation.round().begin()["ada"]
    with federation.party("ada") as party:
        party.close()
        with pytest.raises(UsageError, match="closed"):
            party.answer(request)
    with federation.party("ada") as again:
        again.answer(request)


def test_a_folder_that_cannot_be_opened_is_not_held(federation: Federation) -> None:
    """The ledger's lock would else stay with the process, and say that it is in use."""
    rounds = federation.folders["ada"] / "rounds"
    rounds.write_text("a file")
    with pytest.raises(ConfigError, match="has to be a folder"):
        federation.party("ada")
    rounds.unlink()
    with federation.party("ada") as party:
        assert party.tenant == "ada"


def test_no_folder_is_said_to_be_none() -> None:
    with pytest.raises(ConfigError, match="None is no folder"):
        Party.open(None)  # type: ignore[arg-type]


def test_folders_of_new_tenants_know_one_another(tmp_path: Path) -> None:
    folders = make_tenants(tmp_path, ("a", "b", "c"), committee=("a", "b"))
    rosters = {TenantFolder(folder).roster().digest for folder in folders.values()}
    assert len(rosters) == 1
    assert TenantFolder(folders["a"]).roster().committee == ("a", "b")
    for name, folder in folders.items():
        assert TenantFolder(folder).identity().tenant == name


def test_the_same_tenants_again_are_the_same_folders(tmp_path: Path) -> None:
    folders = make_tenants(tmp_path, ("a", "b", "c"))
    keys = [(folder / "identity.seed").read_bytes() for folder in folders.values()]
    assert make_tenants(str(tmp_path), ("a", "b", "c")) == folders
    assert [(folder / "identity.seed").read_bytes() for folder in folders.values()] == keys
    for others in (("a", "b"), ("a", "b", "d"), ("a", "b", "c", "d")):
        with pytest.raises(ConfigError, match="the same names again"):
            make_tenants(tmp_path, others)


@pytest.mark.parametrize("names", ["abc", 3, (), ("a", "a", "b"), ("a", "b", "c d"), (1, None, "")])
def test_names_that_cannot_be_make_no_folder(tmp_path: Path, names: Any) -> None:
    with pytest.raises(ConfigError):
        make_tenants(tmp_path, names)
    assert list(tmp_path.iterdir()) == []
