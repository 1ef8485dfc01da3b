"""`secagg verify-transcript`: what it prints, and what it says when a file is not what it needs."""

import json
from functools import lru_cache
from pathlib import Path

import pytest

from secagg import transcript_cli
from secagg.errors import ConfigError, ProtocolError, Step
from secagg.messages import decode_message
from secagg.records import decode, encode
from secagg.testing import Silence, SimulatedNetwork, make_round
from secagg.transcript import Link, Transcript, TranscriptWriter, verify_transcript


@lru_cache(maxsize=1)
def finished() -> SimulatedNetwork:
    """A round of five in which t003 says nothing after its acknowledgement."""
    network = make_round(5, faults=[Silence("t003", Step.ACKNOWLEDGE)])
    assert network.run().result is not None
    return network


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    network = finished()
    (tmp_path / "transcript").write_bytes(network.aggregator.transcript)
    (tmp_path / "roster").write_bytes(network.tenants["t000"].roster.encode())
    return tmp_path


def command(at: Path, *more: str, roster: str = "roster") -> int:
    return transcript_cli.main([str(at / "transcript"), "--roster", str(at / roster), *more])


def test_without_uploads_it_says_over_whom_the_sum_was_opened_and_recomputes_nothing(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(stored, "--format", "json") == 0
    facts = json.loads(capsys.readouterr().out)
    plan = finished().aggregator.plan
    assert facts["survivors"] == facts["answered"] == ["t000", "t001", "t002", "t004"]
    assert (facts["dropouts"], facts["sum_recomputed"]) == (["t003"], False)
    assert facts["context"] == plan.context.hex()
    assert facts["model"] == plan.model_digest.hex()
    assert facts["roster"] == plan.roster_digest.hex()


def test_in_words_it_has_a_line_for_each_fact(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(stored) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "the transcript holds"
    assert "     survivors  t000, t001, t002, t004" in lines
    assert "      dropouts  t003" in lines
    assert "         round  1" in lines


def test_a_file_that_is_not_there_or_no_roster_is_a_configuration_error(stored: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent: No such file .*; give a file that can be read"):
        command(stored, roster="absent")
    with pytest.raises(ConfigError, match="is not the roster that you pinned"):
        command(stored, roster="transcript")


def test_what_does_not_hold_is_said_with_its_step_where_one_is_known(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray((stored / "transcript").read_bytes())
    data[-1] ^= 1
    (stored / "transcript").write_bytes(data)
    assert command(stored) == 4
    assert "does not hold in unmask: the hash chain is broken" in capsys.readouterr().err
    (stored / "transcript").write_bytes(b"nothing of the kind")
    assert command(stored) == 4
    assert "secagg: the transcript does not hold: malformed" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["nonsense", "share_keys", "a label of nobody"])
def test_a_link_that_was_put_in_is_blamed_on_its_own_step_or_the_one_before(kind: str) -> None:
    """C37."""
    network = finished()
    transcript = decode(Transcript, network.aggregator.transcript)
    agreed = next(
        place
        for place, link in enumerate(transcript.links)
        if type(decode_message(link.message)).__name__ == "AgreedView"
    )
    sent = next(one.data for one in network.sent if one.label == "share_keys")
    acknowledged = next(one.data for one in network.sent if one.label == "acknowledge")
    message, step = {
        "nonsense": (b"nonsense", Step.ACKNOWLEDGE),
        "share_keys": (sent, Step.SHARE_KEYS),
        "a label of nobody": (
            acknowledged.replace(b"\x0backnowledge", b"\x0backnowledgf"),
            Step.ACKNOWLEDGE,
        ),
    }[kind]
    links = list(transcript.links)
    links.insert(agreed + 1, Link(message, bytes(32)))
    spoilt = encode(Transcript(transcript.plan, transcript.roster, tuple(links)))
    with pytest.raises(ProtocolError, match="the hash chain is broken") as caught:
        verify_transcript(spoilt, network.tenants["t000"].roster)
    assert caught.value.step is step


def test_a_writers_digest_is_the_chain_so_far() -> None:
    network = finished()
    plan, roster = network.aggregator.plan, network.tenants["t000"].roster
    transcript = decode(Transcript, network.aggregator.transcript)
    writer = TranscriptWriter(plan, roster)
    digests = []
    for link in transcript.links:
        writer.append(link.message)
        digests.append(writer.digest)
    assert digests == [link.chain for link in transcript.links]
    assert writer.finish() == network.aggregator.transcript
