"""The command: one clear line and exit code 2 for what cannot work; real processes for the rest."""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from secagg_coordinator.cli import main
from secagg_wire.tls import channel_credentials
from secagg_wire.v1 import owner_service_pb2 as owner_pb
from secagg_wire.v1 import owner_service_pb2_grpc as owner_grpc
from secagg_wire.v1 import round_pb2
from tests.coordinator.federation import CALL_S, Enrolled

PROGRAM = (sys.executable, "-m", "secagg", "coordinator")


def configuration(enrolled: Enrolled, directory: Path, **values: Any) -> Path:
    lines = {"keys": str(enrolled.keys["hub"].directory), "data": str(directory / "data")} | values
    listen = lines.pop("listen", {"port": 0})
    path = directory / "coordinator.toml"
    tables = [f"{key} = {json.dumps(value)}" for key, value in lines.items()]
    tables += ["[listen]", *(f"{key} = {json.dumps(value)}" for key, value in listen.items())]
    path.write_text("\n".join(tables) + "\n")
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("secagg coordinator:")]
    assert len(lines) == 1
    assert "Traceback" not in error
    return lines[0]


def test_a_port_in_use_is_one_clear_line(
    enrolled: Enrolled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = configuration(enrolled, tmp_path, listen={"port": port})
        line = refused(capsys, "serve", "--config", config)
    assert f"127.0.0.1:{port}" in line
    assert "in use" in line


def test_an_unreadable_key_is_one_clear_line(
    enrolled: Enrolled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys"
    shutil.copytree(enrolled.keys["hub"].directory, keys)
    (keys / "tls.key").chmod(0o644)
    config = configuration(enrolled, tmp_path, keys=str(keys))
    assert "chmod 600" in refused(capsys, "serve", "--config", config)
    (keys / "tls.key").unlink()
    assert "tls.key" in refused(capsys, "serve", "--config", config)


def test_keys_of_somebody_else_are_one_clear_line(
    enrolled: Enrolled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configuration(enrolled, tmp_path, keys=str(enrolled.keys["ada"].directory))
    assert "not of a coordinator" in refused(capsys, "serve", "--config", config)


def test_a_data_directory_that_cannot_be_written_is_one_clear_line(
    enrolled: Enrolled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    for name in ("data", "evidence"):
        config = configuration(enrolled, tmp_path, **{name: str(tmp_path / "file" / "below")})
        assert "cannot write" in refused(capsys, "serve", "--config", config)


def test_a_bad_configuration_is_one_clear_line(
    enrolled: Enrolled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configuration(enrolled, tmp_path, surprise=1)
    assert "surprise" in refused(capsys, "serve", "--config", config)
    assert "cannot read" in refused(capsys, "serve", "--config", tmp_path / "none.toml")
    open_to_all = configuration(enrolled, tmp_path, listen={"host": "0.0.0.0", "port": 0})
    line = refused(capsys, "serve", "--insecure-loopback", "--config", open_to_all)
    assert "127.0.0.1 alone" in line


def test_rounds_of_a_coordinator_that_never_ran_are_one_clear_line(
    enrolled: Enrolled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configuration(enrolled, tmp_path)
    assert "no coordinator's database" in refused(capsys, "round", "list", "--config", config)
    assert "no coordinator runs" in refused(capsys, "tenants", "--config", config)


@contextmanager
def serving(config: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A coordinator process, and the port that it wrote down."""
    ready = config.with_name("ready.json")
    ready.unlink(missing_ok=True)
    os.mkfifo(ready)
    command = (*PROGRAM, "serve", "--config", str(config), "--ready-file", str(ready))
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    reader = os.open(ready, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert select.select([reader], [], [], 30)[0], "the coordinator did not come up"
        yield process, json.loads(os.read(reader, 1000))["port"]
    finally:
        os.close(reader)
        process.kill()
        process.communicate()


def owner_call(enrolled: Enrolled, port: int) -> tuple[grpc.Channel, Any]:
    credentials = channel_credentials(enrolled.keys["ona"])
    channel = grpc.secure_channel(f"127.0.0.1:{port}", credentials)
    return channel, owner_grpc.OwnerServiceStub(channel)


@pytest.mark.processes
def test_a_killed_coordinator_marks_its_round_aborted_and_goes_on(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    config, plan = configuration(enrolled, tmp_path), enrolled.plan(20)
    with serving(config) as (process, port):
        channel, owner = owner_call(enrolled, port)
        with channel:
            owner.OpenRound(owner_pb.OpenRoundRequest(plan=plan.encode()), timeout=CALL_S)
        process.kill()
        process.wait()
    with serving(config) as (process, port):
        channel, owner = owner_call(enrolled, port)
        with channel:
            request = owner_pb.GetRoundRequest(context=plan.context)
            status = owner.GetRound(request, timeout=CALL_S).status
            assert status.outcome == round_pb2.ROUND_OUTCOME_ABORTED
            assert status.reason == "coordinator restarted"
            following = owner_pb.OpenRoundRequest(plan=plan.next_round(2).encode())
            owner.OpenRound(following, timeout=CALL_S)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)  # do not wait for the round
        _, log = process.communicate(timeout=30)
        assert process.returncode == 0
    events = [json.loads(line)["event"] for line in log.splitlines() if line.startswith("{")]
    assert events[-1] == "stopped"
    assert "round ended" in events


@pytest.mark.processes
def test_the_operator_lists_shows_and_aborts_rounds(
    enrolled: Enrolled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, plan = configuration(enrolled, tmp_path), enrolled.plan(20)

    def output(*arguments: str) -> str:
        assert main([*arguments, "--config", str(config)]) == 0
        return capsys.readouterr().out

    with serving(config) as (_, port):
        channel, owner = owner_call(enrolled, port)
        with channel:
            owner.OpenRound(owner_pb.OpenRoundRequest(plan=plan.encode()), timeout=CALL_S)
        assert "another coordinator runs" in refused(capsys, "serve", "--config", config)
        (row,) = json.loads(output("round", "list", "--format", "json"))
        assert (row["round_number"], row["outcome"]) == (1, "running")
        assert row["context"] == plan.context.hex()
        aborted = output("round", "abort", "1", "--reason", "wrong model")
        assert "aborted: advertise_keys: wrong model" in aborted
        arguments = ["round", "abort", "1", "--reason", "a\tb", "--config", str(config)]
        assert main(arguments) == 1  # the coordinator's refusal, as for every other command
        assert "printable" in capsys.readouterr().err
        tenants = json.loads(output("tenants", "--format", "json"))
        assert [row["live"] for row in tenants] == [False] * 5
        assert output("tenants").count("silent") == 5
    status = json.loads(output("round", "show", plan.context.hex()[:12], "--format", "json"))
    assert status["outcome"] == "aborted"
    assert set(status["seconds"]) == {"advertise_keys"}
    assert "wrong model" in output("round", "show", "1")
    assert "wrong model" in output("round", "list")
    assert "0 rounds are called" in refused(capsys, "round", "show", "99", "--config", config)
    line = refused(capsys, "round", "abort", "1", "--config", config)
    assert "no coordinator runs" in line


@pytest.mark.processes
def test_only_the_coordinators_user_can_reach_its_socket(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    with serving(configuration(enrolled, tmp_path)):
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
