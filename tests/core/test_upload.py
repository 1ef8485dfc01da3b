"""An upload goes on where it stands, and stops where its round ends."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

import numpy as np
import pytest

from secagg.aggregator import Aggregator
from secagg.errors import StaleState, Step, UsageError
from secagg.intake import Accumulator
from secagg.masking import Masking
from secagg.participant import Participant
from secagg.prg import Words
from secagg.scheme import LeafPlace, ProtectionSecrets
from secagg.secret import RoundingSeed, SelfMaskSeed
from secagg.spool import MemorySpool
from secagg.testing import Silence, SteppedNetwork, cohort, make_round, make_tenants
from secagg.upload import Upload

NO_MASKS = ProtectionSecrets(SelfMaskSeed(bytes(32)), ())
LENGTH = 1_200_000  # nineteen leaves: more than are made and recorded at once


def uploading() -> Participant:
    """A participant that has submitted and uploaded nothing yet."""
    members = cohort(4)
    plan = members.plan(LENGTH, max_weight=1)
    tenants = make_tenants(members, plan, record_levels=False)
    network = SteppedNetwork(
        Aggregator(plan, members.roster, spool=MemorySpool()), tenants.values()
    )
    network.begin()
    while not any(envelope.label == "upload_header" for envelope in network.waiting):
        network.deliver(0)
    return tenants["t000"].running


def test_an_upload_does_not_begin_beyond_what_has_left() -> None:
    participant = uploading()
    with pytest.raises(UsageError, match="0 leaves have been uploaded"):
        next(participant.upload(300_000))
    assert len(list(participant.upload())) == 20
    assert next(participant.upload(300_000))


def test_nothing_of_an_upload_leaves_after_its_round_was_left() -> None:
    """C34: even from a stream that was begun before, beyond what its leaves had recorded."""
    participant = uploading()
    pieces = participant.upload()
    assert len(list(islice(pieces, 16))) == 16
    participant.abort("the operator says so")
    with pytest.raises(StaleState, match="not live"):
        next(pieces)
    with pytest.raises(UsageError, match="the round is over"):
        next(participant.upload())


def test_residuals_telescope_to_the_sum_of_the_contributions() -> None:
    """What quantising drops in one round and is added in the next one is not lost, only late."""
    plan = cohort(4).plan(100, clip=0.05, value_bits=4, max_weight=4)
    wanted, sent = np.zeros(100), np.zeros(100)
    residual = np.zeros(100, np.float32)
    for number in range(30):
        weight = 1 + number % 4
        delta = (0.02 * np.sin(np.arange(100) + number)).astype(np.float32)
        wanted += delta.astype(np.float64) * weight / 4
        delta += residual * np.float32(4 / weight)
        rounding = RoundingSeed(number.to_bytes(32))
        upload = Upload(plan, delta, weight, rounding, Masking().protector(plan, 0, NO_MASKS))
        upload.write_residual(residual)
        sent += plan.quantiser.decode(upload.encoded_levels())
        assert np.abs(wanted - sent - residual).max() < 1e-6
    assert np.abs(residual).max() < 0.05


def test_a_sum_that_threads_open_is_the_sum() -> None:
    """With dropouts; several leaves are under way at once."""
    plan = cohort(5).plan(400_000, max_weight=1)
    with ThreadPoolExecutor(4) as pool:
        network = make_round(
            plan=plan,
            faults=[Silence("t002", Step.ACKNOWLEDGE)],
            aggregator=partial(Aggregator, each=pool.map),
        )
        opened = network.run().opened
    assert np.array_equal(opened.level_sum, network.expected_levels(opened.survivors))


def test_a_thread_that_fails_fails_the_opening() -> None:
    class Fails:
        def open(self, words: Words, place: LeafPlace) -> None:
            raise MemoryError

    with ThreadPoolExecutor(2) as pool, pytest.raises(MemoryError):
        Accumulator(cohort(4).plan(200_000)).open(Fails(), ("t000",), pool.map)
