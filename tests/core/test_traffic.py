"""Counted bytes are those of the messages of real rounds, nobody being silent."""

import pytest

from secagg.aggregator import Aggregator
from secagg.errors import Step
from secagg.plan import RoundPlan
from secagg.plan_cli import plan_for
from secagg.spool import MemorySpool
from secagg.testing import Cohort, Envelope, SimulatedNetwork, cohort, make_tenants
from secagg.testing.network import UPLOAD_CHUNK
from secagg.traffic import everybodys_bytes, traffic

UP = {
    "advertise_keys": Step.ADVERTISE_KEYS,
    "share_keys": Step.SHARE_KEYS,
    "acknowledge": Step.ACKNOWLEDGE,
    "consistency_check": Step.CONSISTENCY_CHECK,
    "unmask": Step.UNMASK,
}
DOWN = {
    "key_directory": Step.ADVERTISE_KEYS,
    "share_delivery": Step.SHARE_KEYS,
    "agreed_view": Step.ACKNOWLEDGE,
    "survivor_set": Step.MASKED_INPUT,
    "quorum": Step.CONSISTENCY_CHECK,
}


def run(members: Cohort, plan: RoundPlan) -> SimulatedNetwork:
    aggregator = Aggregator(plan, members.roster, spool=MemorySpool())
    network = SimulatedNetwork(aggregator, make_tenants(members, plan).values())
    assert network.run().result is not None
    return network


def size(sent: list[Envelope], label: str) -> int:
    return sum(len(one.data) for one in sent if one.label == label)


def compare(plan: RoundPlan, network: SimulatedNetwork, tenant: int, *, holds: bool = True) -> None:
    counted = traffic(plan, holds=holds)
    sent = [one for one in network.sent if one.tenant == plan.cohort[tenant]]
    for label, step in UP.items():
        assert counted[step].up == size(sent, label), label
    for label, step in DOWN.items():
        assert counted[step].down == size(sent, label), label
    uploaded = sum(
        size(sent, label) for label in ("upload_header", UPLOAD_CHUNK, "upload_commitment")
    )
    assert counted[Step.MASKED_INPUT].up == uploaded


@pytest.mark.parametrize("suite", ["x25519-mlkem768", "x25519"])
def test_the_bytes_are_those_of_a_masked_round(suite) -> None:
    """Largest messages, of the tenant with the median index."""
    plan = cohort(7).plan(100, max_weight=1, suite=suite)
    assert traffic(plan) == traffic(plan_for(7, None, 16, 100, 1, suite=suite))
    compare(plan, run(cohort(7), plan), 3)


@pytest.mark.parametrize("suite", ["x25519-mlkem768", "x25519"])
@pytest.mark.parametrize("packing", ["coefficients", "slots"])
def test_the_bytes_are_those_of_an_encrypted_round(suite, packing) -> None:
    plan = cohort(8).plan(5000, max_weight=1, suite=suite, scheme="ckks", packing=packing)
    planned = plan_for(8, None, 16, 5000, 1, suite=suite, scheme="ckks", packing=packing)
    assert traffic(plan) == traffic(planned)
    network = run(cohort(8), plan)
    for tenant in range(8):
        compare(plan, network, tenant)
    up = sum(one.up for one in traffic(plan).values())
    assert everybodys_bytes(plan).up == 8 * up


def test_the_bytes_are_those_inside_and_outside_a_committee() -> None:
    members = cohort(66, committee=8)
    plan = members.plan(100, scheme="ckks", max_weight=1)
    assert plan.same_holders == tuple(range(8))
    network = run(members, plan)
    compare(plan, network, 3)
    compare(plan, network, 40, holds=False)
    everybody = everybodys_bytes(plan)
    assert everybody.down == sum(size(network.sent, label) for label in DOWN)
