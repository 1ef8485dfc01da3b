"""The encrypted sum of a round opens to what the round opened; what a scheme says on its own."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from secagg.ckks import jit
from secagg.ckks.aggregate import EncryptedSum, encrypted_sum
from secagg.ckks.packings import packing_of, parameters_of
from secagg.ckks.parameters import TAIL
from secagg.ckks.public import PublicPolynomials
from secagg.ckks.scheme import KEY, Ckks, SumDecryptor
from secagg.edges import Edges
from secagg.errors import ConfigError, ProtocolError, UsageError
from secagg.scheme import Opening, leaf_places
from secagg.testing import cohort, make_round
from secagg.testing.invariants import check_invariants
from secagg.transcript import verify_transcript
from tests.core import independent_ckks as other
from tests.vectors import rounds

NAME = "round-ckks"


def verified_sum(name: str = NAME, spoilt: bool = False) -> EncryptedSum:
    network = rounds.ran(name)
    plan = network.aggregator.plan
    verified = verify_transcript(network.aggregator.transcript, cohort(plan.n).roster)
    uploads = {who: rounds.upload_of(name, who) for who in verified.survivors}
    if spoilt:
        uploads["t000"] = bytes(len(uploads["t000"]))
    return encrypted_sum(verified, rounds.Served(plan, uploads))


def test_an_encrypted_sum_is_one_ciphertext_under_the_sum_of_the_keys() -> None:
    """By the other implementation's transform: c + a S is what the round opened."""
    found, outcome = verified_sum(), rounds.ran(NAME).outcome
    plan, primes = found.verified.plan, found.parameters.primes
    ((place, c, a),) = found.ciphertexts()
    planes = []
    for prime, c_plane, a_plane in zip(primes, c.tolist(), a.tolist(), strict=True):
        s = other.ntt([int(k) % prime for k in found.key], prime)
        opened = [(x + y * z) % prime for x, y, z in zip(c_plane, a_plane, s, strict=True)]
        planes.append(other.inverse_ntt(opened, prime))
    (values, weight), marks = split(plan, np.array(planes, np.uint32), place)
    assert (values == outcome.opened.level_sum).all()
    assert (weight, marks, found.scale) == (outcome.opened.total_weight, 0, 1.0)
    assert np.abs(found.key).max() <= TAIL * 4
    assert "key=" not in repr(found)


def split(plan: Any, planes: Any, place: Any) -> tuple[tuple[Any, int], int]:
    packing = packing_of(plan)
    packing._ring.forward(planes)  # type: ignore[attr-defined]
    values, marks = packing.decode(planes, place, TAIL * 4)
    return (values[:-1], int(values[-1])), marks


def test_an_upload_that_its_participant_did_not_sign_is_in_no_encrypted_sum() -> None:
    """C40."""
    with pytest.raises(ProtocolError, match="not the one that it signed"):
        list(verified_sum(spoilt=True).ciphertexts())


def test_a_masked_round_has_no_encrypted_sum() -> None:
    with pytest.raises(UsageError, match="has no CKKS parameters"):
        verified_sum("round-x25519")


# ---------------------------------------------------------------------------- the scheme, alone


def test_there_is_one_kind_of_share_of_everybody() -> None:
    assert {Ckks().expected_kind(dealer, frozenset({1})) for dealer in range(3)} == {KEY}


def test_a_large_committee_whose_sums_disagree_opens_nothing_at_once() -> None:
    """C45: every choice of t sums is tried where there are a few thousand, and not beyond."""
    plan = cohort(20).plan(5, scheme="ckks")
    size = 31 * parameters_of(plan).degree // 8
    sums = {holder: bytes([holder]) * size for holder in range(20)}
    opening = Opening({}, {}, Edges({}), frozenset(range(20)), {}, sums, {})
    found: list[SumDecryptor] = list(Ckks().candidates(plan, opening))
    assert found == []


def test_primes_beyond_30_bits_have_no_public_polynomials() -> None:
    with pytest.raises(ConfigError, match="more than 30 bits"):
        PublicPolynomials(bytes(32), 8, (2**31 - 1,))


def test_a_leaf_that_is_not_full_may_come_before_that_of_the_weight() -> None:
    """Values that fill all but the last places of a polynomial leave the next one to the weight."""
    plan = cohort(5).plan(11 * 3 * 4096 - 2, scheme="ckks", suite="x25519")
    *_, before, last = leaf_places(plan)
    assert (before.count, last.count, before.weighs, last.weighs) == (3 * 4096 - 2, 1, False, True)
    network = make_round(5, plan=plan)
    opened = network.run().opened
    assert opened.total_weight == sum(tenant.weight for tenant in network.tenants.values())
    check_invariants(network)


# ---------------------------------------------------------------------------- the compiler


def test_a_kernel_that_can_be_kept_nowhere_is_compiled_all_the_same() -> None:
    """numba keeps machine code beside the file; there is none here."""
    names: dict[str, Callable[[int], int]] = {}
    exec("def twice(number):\n    return 2 * number", names)
    assert jit.kernel(names["twice"])(21) == 42


def test_without_numba_the_scheme_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "numba", None)
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("jit_without_numba", jit.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ConfigError, match=r"secagg\[ckks\]"):
        spec.loader.exec_module(module_from_spec(spec))
