"""What the mod and the strategy refuse, and what their users read then."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg, Strategy

from secagg.errors import ConfigError, RoundAborted, SecaggError, TooFewSurvivors
from secagg.identity import Identity, Member, Roster
from secagg.transcript import verify_transcript
from secagg_embed import Party, hello
from secagg_embed.flower import SecaggMod, SecureAggregation, Terms, secagg_mod
from secagg_embed.flower.mod import FAILED
from secagg_embed.flower.records import RECORD, UPLOAD, with_replies, with_requests
from secagg_embed.wire import UNABLE, Reply
from tests.stacks.flower.local import (
    MODEL,
    NAMES,
    NODES,
    RUN_CONFIG,
    Federation,
    LocalGrid,
    arrays_of,
    client_app,
    plain_train,
)


def run(federation: Federation, grid: LocalGrid, **given: object) -> None:
    federation.strategy(given.pop("inner", FedAvg()), grid, **given).start(
        grid, arrays_of(MODEL), num_rounds=1
    )


def error_of(federation: Federation, grid: LocalGrid, **given: object) -> str:
    """What the run's user reads: the error and its notes."""
    with pytest.raises(SecaggError) as caught:
        run(federation, grid, **given)
    return "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


# ---------------------------------------------------------------------------- what leaves a tenant


def test_a_plain_server_gets_no_update_and_reads_why(federation: Federation) -> None:
    grid = federation.grid()
    FedAvg(fraction_evaluate=0.0).start(grid, arrays_of(MODEL), num_rounds=1)
    assert len(grid.replied) == len(NAMES)
    for reply in grid.replied:
        assert reply.has_error()
        assert "asks for an unprotected update" in str(reply.error.reason)


def test_only_our_records_leave_and_no_bytes_of_an_array_or_a_metric(
    federation: Federation,
) -> None:
    said: list[bytes] = []

    def train(message: Message, context: Context) -> Message:
        reply = plain_train(message, context)
        said.extend(array.numpy().tobytes() for array in reply.content["arrays"].values())
        return reply

    grid = federation.grid(app=client_app(train))
    run(federation, grid, inner=FedAvg(fraction_evaluate=0.0))
    assert len(said) == len(MODEL) * len(NAMES)
    for reply in grid.replied:
        assert set(reply.content) <= {RECORD, UPLOAD}
        sent = reply.content[RECORD]["heads"]
        uploads = [array.data for array in reply.content.get(UPLOAD, {}).values()]
        everything = b"".join([*sent, *uploads])
        assert not any(update in everything for update in said if len(update) > 8)
    assert sum(UPLOAD in reply.content for reply in grid.replied) == len(NAMES)


def test_an_evaluation_that_returns_arrays_is_refused(federation: Federation) -> None:
    app = client_app()
    app._registered_funcs.clear()
    app.train(mods=[secagg_mod])(plain_train)
    app.evaluate(mods=[secagg_mod])(plain_train)
    grid = federation.grid(app=app)
    run(federation, grid)
    evaluated = [r for r in grid.replied if r.metadata.message_type == "evaluate"]
    assert len(evaluated) == len(NAMES)
    assert all("arrays leave inside the sum alone" in str(r.error.reason) for r in evaluated)


def test_of_an_error_in_training_nothing_leaves_but_that_there_was_one(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    def train(message: Message, context: Context) -> Message:
        raise ValueError("could not convert string to float: 'patient 4711'")

    grid = federation.grid(apps={"bob": client_app(train), "eve": client_app(train)})
    text = error_of(federation, grid)
    assert f"bob: it declined: {UNABLE}" in text
    assert "ValueError" not in text
    assert "4711" not in text
    assert "raise ValueError" in caplog.text  # this tenant's own log, in the process that trained
    everything = b"".join(
        b"".join(reply.content[RECORD]["heads"]) for reply in grid.replied if reply.has_content()
    )
    assert b"4711" not in everything


# ---------------------------------------------------------------------------- what is trained


def returning(arrays: Callable[[], ArrayRecord], metrics: MetricRecord | None = None) -> object:
    def train(message: Message, context: Context) -> Message:
        records = {"arrays": arrays(), "metrics": metrics or MetricRecord({"num-examples": 1})}
        return Message(RecordDict(records), reply_to=message)

    return client_app(train)


def other_shape() -> ArrayRecord:
    return arrays_of({**MODEL, "head.bias": np.zeros(4, np.float32)})


def other_names() -> ArrayRecord:
    return arrays_of({**MODEL, "tail.bias": np.zeros(4, np.float32)})


def other_dtype() -> ArrayRecord:
    return arrays_of({**MODEL, "head.bias": np.zeros(3, np.float64)})


@pytest.mark.parametrize(
    ("app", "words"),
    [
        (returning(other_shape), "head.bias: (3,) float32 in the round, (4,) float32 given"),
        (returning(other_names), "tail.bias"),
        (returning(other_dtype), "head.bias: (3,) float32 in the round, (3,) float64 given"),
        (returning(lambda: arrays_of(MODEL), MetricRecord({"loss": 1.0})), "num-examples"),
        (returning(lambda: arrays_of(MODEL), MetricRecord({"num-examples": 0})), "at least 1"),
        (client_app(lambda message, context: None), "the app returned a NoneType"),  # type: ignore[arg-type, return-value]
    ],
)
def test_a_train_function_that_returns_something_else_is_told_what(
    federation: Federation, app: object, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In the tenant's own log; the coordinator learns that there is no update."""
    text = error_of(federation, federation.grid(app=app))
    assert words in caplog.text.partition("declined")[0]
    assert words not in text
    assert UNABLE in text


def test_a_metric_that_is_summed_and_not_reported_is_named(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    assert UNABLE in error_of(federation, federation.grid(), metrics={"perplexity": 10.0})
    assert "reported no number 'perplexity'" in caplog.text


def test_weights_and_metrics_beyond_their_bounds_count_as_these_and_their_tenants_are_told(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    grid = federation.grid()
    strategy = federation.strategy(
        FedAvg(), grid, terms=Terms(clip=1.0, max_weight=10), metrics={"train_loss": 0.25}
    )
    result = strategy.start(grid, arrays_of(MODEL), num_rounds=1)
    assert result.train_metrics_clientapp[1]["train_loss"] == pytest.approx(0.25, abs=1e-3)
    assert "above the round's largest weight of 10" in caplog.text
    assert "the metric 'train_loss' is not within +-0.25" in caplog.text


def test_an_update_that_left_before_does_not_leave_again(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that is repeated with the same seeds from the same model, say."""
    run(federation, federation.grid())
    assert UNABLE in error_of(federation, federation.grid())
    assert "one that left in an earlier round" in caplog.text


# ---------------------------------------------------------------------------- what is agreed


class Partial(FedAvg):
    """Tells one tenant another learning rate than the others."""

    def configure_train(self, *args: object) -> list[Message]:
        messages = list(super().configure_train(*args))
        first = messages[0]
        first.content = RecordDict({**first.content, "config": ConfigRecord({"lr": 0.1})})
        return messages


def test_a_strategy_that_asks_each_node_something_else_is_refused(federation: Federation) -> None:
    text = error_of(federation, federation.grid(), inner=Partial())
    assert "asks different things of different nodes" in text


class Meddling(LocalGrid):
    """Changes what reaches one tenant on its way."""

    def _deliver(self, message: Message) -> None:
        if message.metadata.dst_node_id in (NODES["bob"], NODES["eve"]):
            self.meddle(message)
        super()._deliver(message)

    def meddle(self, message: Message) -> None:
        raise NotImplementedError


def other_config(message: Message) -> None:
    if "config" in message.content:
        message.content["config"]["lr"] = 0.0


def other_model(message: Message) -> None:
    if "arrays" in message.content:
        message.content["arrays"]["head.bias"] = Array(np.ones(3, np.float32))


def another_record(message: Message) -> None:
    if "arrays" in message.content:
        message.content["more"] = MetricRecord({"x": 1})


@pytest.mark.parametrize("meddle", [other_config, other_model, another_record])
def test_a_tenant_that_is_asked_something_else_than_the_others_does_not_train(
    federation: Federation, meddle: Callable[[Message], None]
) -> None:
    trained: list[int] = []

    def train(message: Message, context: Context) -> Message:
        trained.append(context.node_id)
        return plain_train(message, context)

    grid = federation.grid(app=client_app(train))
    grid.__class__ = Meddling
    grid.meddle = meddle  # type: ignore[attr-defined]
    text = error_of(federation, grid)
    assert "asks something else of this tenant than of the others" in text
    assert set(trained) == {NODES[name] for name in ("ada", "cyd", "dee")}


def test_the_group_of_a_message_tells_the_app_nothing(federation: Federation) -> None:
    """A server may write another one for each node, and an app may take its round from it."""
    groups: set[str] = set()

    def train(message: Message, context: Context) -> Message:
        groups.add(message.metadata.group_id)
        return plain_train(message, context)

    def meddle(message: Message) -> None:
        message.metadata.group_id = str(message.metadata.dst_node_id)

    grid = federation.grid(app=client_app(train))
    grid.__class__ = Meddling
    grid.meddle = meddle  # type: ignore[attr-defined]
    run(federation, grid)
    assert groups == {""}


def test_a_run_configuration_that_the_plan_does_not_name_is_refused_with_its_cure(
    federation: Federation,
) -> None:
    text = error_of(federation, federation.grid(), run_config=None)
    assert "SecureAggregation(..., run_config=context.run_config)" in text
    grid = federation.grid()
    grid.run_config = {**RUN_CONFIG, "learning-rate": 0.0}
    assert "asks something else" in error_of(federation, grid)


def test_an_evaluation_that_fails_tells_that_it_did_and_not_what(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    def evaluate(message: Message, context: Context) -> Message:
        raise ValueError("row 17: patient 4711")

    app = client_app()
    app._registered_funcs.clear()
    app.train(mods=[secagg_mod])(plain_train)
    app.evaluate(mods=[secagg_mod])(evaluate)
    grid = federation.grid(app=app)
    run(federation, grid)
    evaluated = [r for r in grid.replied if r.metadata.message_type == "evaluate"]
    assert len(evaluated) == len(NAMES)
    assert {str(reply.error.reason) for reply in evaluated} == {f"secagg: {FAILED}"}
    assert "patient 4711" in caplog.text


# ---------------------------------------------------------------------------- who takes part


def test_a_tenant_that_is_busy_when_it_is_greeted_takes_part_in_the_next_round(
    federation: Federation, tmp_path: Path
) -> None:
    grid = federation.grid()
    held = [Party.open(federation.folders["eve"])]

    def train(message: Message, context: Context) -> Message:
        if held:
            held.pop().close()
        return plain_train(message, context)

    grid.apps = dict.fromkeys(grid.apps, client_app(train))
    federation.strategy(
        FedAvg(fraction_evaluate=0.0), grid, transcripts=tmp_path / "transcripts"
    ).start(grid, arrays_of(MODEL), num_rounds=2)
    roster = federation.home("ada").roster()
    kept = sorted((tmp_path / "transcripts").iterdir())
    seen = [verify_transcript(path.read_bytes(), roster).survivors for path in kept]
    assert seen == [("ada", "bob", "cyd", "dee"), NAMES]


def test_a_node_without_a_folder_and_one_of_nobody_take_no_part(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    grid = federation.grid()
    grid.apps = {**grid.apps, 7: client_app()}
    grid.configs = {**grid.configs, 7: {}, NODES["eve"]: {"secagg-folder": "/nowhere"}}
    run(federation, grid)
    assert "node 7 takes no part: secagg: this node has no tenant's folder" in caplog.text
    assert f"node {NODES['eve']} takes no part" in caplog.text


def test_two_nodes_of_one_tenant_are_one_tenant(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    grid = federation.grid()
    grid.apps = {**grid.apps, 7: client_app()}
    grid.configs = {**grid.configs, 7: dict(grid.configs[NODES["bob"]])}
    run(federation, grid)
    assert "is bob, as another node is" in caplog.text
    assert sorted(grid.letters[node] for node in (7, NODES["bob"])) == [2, 8]


def test_a_stranger_is_asked_twice_and_then_costs_nobody_an_exchange(
    federation: Federation,
) -> None:
    grid = federation.grid()
    grid.configs = {**grid.configs, NODES["eve"]: {}}
    strategy = federation.strategy(FedAvg(fraction_evaluate=0.0), grid)
    strategy.start(grid, arrays_of(MODEL), num_rounds=3)
    assert grid.letters[NODES["eve"]] == 2
    assert grid.exchanges == 2 + 3 * 6 + 1


def test_an_app_without_the_mod_is_named(federation: Federation) -> None:
    text = error_of(federation, federation.grid(app=client_app(mods=())))
    assert "0 of the nodes that the strategy chose are tenants" in text
    assert "app needs @app.train(mods=[secagg_mod])" in text


def test_a_foreign_roster_is_a_visible_failure(federation: Federation, tmp_path: Path) -> None:
    strangers = [Identity.generate(name, os.urandom) for name in NAMES]
    foreign = Roster.create(tuple(map(Member.create, strangers)))
    text = error_of(federation, federation.grid(), roster=foreign)
    assert "another roster, or not this tenant's key" in text
    with pytest.raises(ConfigError, match=r"give the roster\.bin"):
        federation.strategy(FedAvg(), federation.grid(), roster=tmp_path / "nothing.bin")


def test_no_node_is_a_visible_failure(federation: Federation) -> None:
    class Nobody(FedAvg):
        def configure_train(self, *args: object) -> list[Message]:
            return list(super().configure_train(*args))[:2]

    with pytest.raises(RoundAborted, match="2 of the nodes"):
        run(federation, federation.grid(), inner=Nobody())


def test_a_policy_that_refuses_is_quoted(federation: Federation) -> None:
    for name in ("bob", "eve"):
        (federation.folders[name] / "policy.toml").write_text("max_clip = 0.5\n")
    with pytest.raises(TooFewSurvivors) as caught:
        run(federation, federation.grid())
    notes = "\n".join(caught.value.__notes__)
    assert "bob: it declined: policy clause 'max_clip' refuses this plan" in notes


# ---------------------------------------------------------------------------- strategies


AVERAGES = ("FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedProx", "FedYogi")


def made(kind: type[Strategy]) -> Strategy:
    """An instance without what its constructor demands: only its type counts here."""
    return kind.__new__(kind)


@pytest.mark.parametrize("name", sorted(set(flower.__all__) - {"Result", "Strategy"}))
def test_every_strategy_of_flower_averages_or_is_refused(federation: Federation, name: str) -> None:
    inner = made(getattr(flower, name))
    if name in AVERAGES:
        federation.strategy(inner, federation.grid())
    else:
        with pytest.raises(ConfigError, match=name):
            federation.strategy(inner, federation.grid())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"terms": {"clip": 1.0}}, "terms is a dict; give Terms"),
        ({"run_config": object()}, "give context.run_config"),
        ({"metrics": ["train_loss"]}, "metrics is a list"),
        ({"metrics": {"train_loss": "10"}}, "its bound is '10'"),
        ({"metrics": {"train_loss": 0}}, "above 0"),
        ({"transcripts": "/dev/null"}, "cannot make the folder"),
        ({"roster": None}, "give the roster.bin"),
    ],
)
def test_what_cannot_work_is_refused_where_the_strategy_is_made(
    federation: Federation, given: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        federation.strategy(FedAvg(), federation.grid(), **given)


def test_a_model_that_has_diverged_is_named_before_anybody_is_asked(
    federation: Federation,
) -> None:
    grid = federation.grid()
    broken = {**MODEL, "head.bias": np.full(3, np.nan, np.float32)}
    with pytest.raises(ConfigError, match=r"NaN or infinite values in \['head.bias'\]"):
        federation.strategy(FedAvg(), grid).start(grid, arrays_of(broken), num_rounds=1)
    assert not any(UPLOAD in reply.content for reply in grid.replied)


def test_another_mod_before_ours_is_told_of(federation: Federation) -> None:
    """It meets messages that are no training, and none of them has a model."""
    noise = LocalDpMod(1.0, 0.1, 1.0, 1e-5)
    text = error_of(federation, federation.grid(app=client_app(mods=[noise, secagg_mod])))
    assert "mods=[secagg_mod]), before any other mod" in text
    assert "LocalDpMod expects exactly one ArrayRecord" in text


def test_another_mod_after_ours_changes_what_the_training_returns(federation: Federation) -> None:
    noise = LocalDpMod(1.0, 0.1, 1.0, 1e-5)
    grid = federation.grid(app=client_app(mods=[secagg_mod, noise]))
    strategy = federation.strategy(FedAvg(fraction_evaluate=0.0), grid)
    result = strategy.start(grid, arrays_of(MODEL), num_rounds=1)
    assert not np.array_equal(result.arrays["head.bias"].numpy(), MODEL["head.bias"])


def test_what_is_no_strategy_is_refused(federation: Federation) -> None:
    with pytest.raises(ConfigError, match="int is no strategy"):
        SecureAggregation(3, roster=federation.roster_file, terms=Terms(clip=1.0))  # type: ignore[arg-type]


# ---------------------------------------------------------------------------- records


@pytest.mark.parametrize(
    "record",
    [
        ConfigRecord({"version": 2, "requests": [b"x"]}),
        ConfigRecord({"version": 1, "requests": b"x"}),
        ConfigRecord({"version": 1, "requests": ["x"]}),
        ConfigRecord({"version": 1, "requests": []}),
        ConfigRecord({"version": 1}),
        MetricRecord({"version": 1, "requests": [1]}),
        ArrayRecord({"version": Array(np.zeros(1))}),
        ConfigRecord({"version": 1, "requests": [b"no request of ours"]}),
    ],
)
def test_records_of_ours_that_cannot_be_read_are_an_error_and_no_crash(
    federation: Federation, record: RecordDict
) -> None:
    grid = federation.grid()
    message = Message(RecordDict({RECORD: record}), NODES["bob"], "train")
    reply = grid._answer(NODES["bob"], message)
    assert reply.error.code == 6
    assert str(reply.error.reason).startswith("secagg: ")


def test_another_version_is_said_to_be_one(federation: Federation) -> None:
    grid = federation.grid()
    record = ConfigRecord({"version": 2, "requests": [hello(bytes(32))]})
    message = Message(RecordDict({RECORD: record}), NODES["bob"], "train")
    reply = grid._answer(NODES["bob"], message)
    assert "both sides need the same version of secagg" in str(reply.error.reason)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({RECORD: ConfigRecord({"version": 1, "heads": [b""]})}),
        RecordDict({RECORD: ConfigRecord({"version": 1, "heads": ["x"]})}),
        RecordDict({RECORD: MetricRecord({"version": 1})}),
        RecordDict({**with_replies({}, [Reply(b"x")]), UPLOAD: MetricRecord({"0": 1})}),
        with_replies({}, [Reply(b"nothing", b"and an upload")]),
        with_requests({}, [b"a request for an answer"]),
    ],
)
def test_a_tenant_that_answers_nonsense_is_a_dropout(
    federation: Federation, content: RecordDict
) -> None:
    nonsense = client_app()
    nonsense._registered_funcs["train.default"] = lambda message, context: Message(
        content
        if grid.letters[NODES["bob"]] > 1
        else secagg_mod(message, context, plain_train).content,
        reply_to=message,
    )
    grid = federation.grid(apps={"bob": nonsense})
    run(federation, grid)


def test_the_folder_is_the_tenants_own_word(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = federation.folders["bob"].parent
    context = Context(1, 1, {"partition-id": "bob"}, RecordDict(), {"secagg-folder": "/theirs"})
    with pytest.raises(ConfigError, match="SECAGG_FOLDER"):
        secagg_mod.party(context)
    monkeypatch.setenv("SECAGG_FOLDER", f"{root}/{{partition-id}}")
    with secagg_mod.party(context) as party:
        assert party.tenant == "bob"
    with SecaggMod(folder=root / "eve").party(context) as party:
        assert party.tenant == "eve"
