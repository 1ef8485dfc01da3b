"""The integers of `independent_ckks.py` give the vectors of scheme `ckks`, and recompute a round.

Python's integers where ours has numba's kernels, halving sums where ours has butterflies, the
Chinese remainder theorem where ours has mixed radices, and every choice of t sums where ours has
Reed-Solomon decoding. Refusals are ours to show (test_vectors.py).
"""

import ast
import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from tests.core import independent
from tests.core import independent_ckks as other
from tests.core.test_independent import COVERED, committed, signature_sign, unhex


def test_it_imports_nothing_of_ours() -> None:
    tree = ast.parse(Path(other.__file__).read_text())
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported <= {
        "__future__", "collections.abc", "dataclasses", "fractions", "functools", "itertools",
        "math", "struct", "tests.core.independent", "typing",
    }  # fmt: skip


# ---------------------------------------------------------------------------- operations


def chosen(**asked: Any) -> dict[str, Any] | None:
    found = other.choose(**asked)
    if found is None:
        return None
    n, g, w = asked["n"], asked["ring_bits"], asked["weight_ring_bits"]
    return {
        "degree": found.degree,
        "modulus_bits": list(found.modulus_bits),
        "primes": list(found.primes),
        "digits": found.digits(n, g),
        "margin_bits": found.margin_bits(n),
        "scale_bits": found.scale_bits(n),
        "last_width": found.last_width,
        "polynomials": found.polynomials(asked["length"], n, g, w),
        "leaf_bytes": sum(found.modulus_bits) * found.degree // 8,
    }


def fails(**given: Any) -> list[str]:
    """Whether anything does not hold; the clauses' texts are ours."""
    n, g, w = (given.pop(name) for name in ("n", "ring_bits", "weight_ring_bits"))
    sizes = given["modulus_bits"]
    form = (
        given["packing"] in ("coefficients", "slots")
        and given["security"] in other.STANDARD
        and given["degree"] in other.STANDARD["quantum"]
        and 0 < len(sizes) <= 24
        and all(18 <= size <= 30 for size in sizes)
        and n > 0
    )
    one = other.Parameters(**{**given, "modulus_bits": tuple(sizes)})
    return [] if form and other.enough(one) and one.works(n, g, w) else ["something"]


def public(context: str, number: int, degree: int, primes: list[int]) -> dict[str, Any]:
    planes = other.public_polynomial(unhex(context), number, degree, primes)
    whole = b"".join(value.to_bytes(4, "little") for plane in planes for value in plane)
    return {
        "begins": [plane[:8] for plane in planes],
        "sha256": hashlib.sha256(whole).hexdigest(),
    }


def deal(
    secret: list[int], holders: list[int], threshold: int, seed: str, context: str, dealer: int,
    commitments: list[str],
) -> dict[str, Any]:  # fmt: skip
    polynomials = other.sharing_polynomials(secret, holders, threshold, unhex(seed), unhex(context))
    rho = other.challenge(unhex(context), dealer, list(map(unhex, commitments)), len(secret))
    shares = [other.share_of(polynomials, holder) for holder in holders]
    return {
        "polynomials": polynomials,
        "shares": [other.pack(share, 31).hex() for share in shares],
        "challenge": rho,
        "check": other.encode_check(other.check_polynomials(polynomials, rho)).hex(),
    }


def holds(
    share: str, holder: int, context: str, dealer: int, commitments: list[str], polynomials: str,
    degree: int, threshold: int,
) -> bool:  # fmt: skip
    rho = other.challenge(unhex(context), dealer, list(map(unhex, commitments)), degree)
    check = other.decode_check(unhex(polynomials))
    assert len(check) == threshold
    elements = other.unpack(unhex(share), 31, degree + other.CHECKS)
    return other.holds(elements, holder, rho, check)


def add_shares(shares: list[str], degree: int) -> str:
    rows = [other.unpack(unhex(share), 31, degree + 4)[:degree] for share in shares]
    return other.pack([sum(column) % other.P for column in zip(*rows, strict=True)], 31).hex()


def open_sums(sums: dict[str, str], degree: int, threshold: int, bound: int) -> dict[str, Any]:
    rows = {int(holder): other.unpack(unhex(data), 31, degree) for holder, data in sums.items()}
    opened = other.open_sums(rows, threshold, bound)
    if opened is None:
        return {"unopenable": ""}
    return {"secret": opened[0], "wrong": opened[1]}


def encoded(
    values: list[list[int]], noise: list[int], primes: list[int], digit_bits: int, digits: int,
    margin_bits: int,
) -> list[list[int]]:  # fmt: skip
    columns = zip(noise, zip(*values, strict=True), strict=True)
    numbers = [
        e + sum(v << margin_bits + digit_bits * k for k, v in enumerate(column))
        for e, column in columns
    ]
    assert len(values) == digits
    return [[number % prime for number in numbers] for prime in primes]


def decoded(
    planes: list[list[int]], primes: list[int], digit_bits: int, digits: int, margin_bits: int
) -> dict[str, Any]:
    found: dict[str, Any] = {"values": [[] for _ in range(digits)], "noise": [], "overflows": 0}
    below = other.bias(digits, digit_bits, margin_bits)
    for residues in zip(*planes, strict=True):
        rest = other.together(residues, primes, below)
        found["noise"].append(other.centred(rest, margin_bits))
        rest = rest - found["noise"][-1] >> margin_bits
        for row in found["values"]:
            row.append(other.centred(rest, digit_bits))
            rest = rest - row[-1] >> digit_bits
        found["overflows"] += rest != 0
    return found


def packed(degree: int, primes: list[int], modulus_bits: list[int], planes: list[list[int]]) -> str:
    return other.pack_planes(planes, modulus_bits).hex()


def unpacked(degree: int, primes: list[int], modulus_bits: list[int], leaf: str) -> Any:
    data, planes = unhex(leaf), []
    for bits in modulus_bits:
        planes.append(other.unpack(data[: degree * bits // 8], bits, degree))
        data = data[degree * bits // 8 :]
    return planes


OPERATIONS: dict[str, Callable[..., Any]] = {
    "ckks.choose": chosen,
    "ckks.ntt": lambda degree, primes, coefficients: [
        other.ntt([c % prime for c in coefficients], prime) for prime in primes
    ],
    "ckks.public": public,
    "ckks.thresholds": lambda: [f"{one:032x}" for one in other.thresholds()],
    "ckks.samples": lambda keystream: other.gaussian(unhex(keystream)),
    "ckks.gaussian": lambda seed, context, purpose, number, degree: other.gaussian_polynomial(
        unhex(seed), unhex(context), purpose, number, degree
    ),
    "ckks.deal": deal,
    "ckks.holds": holds,
    "ckks.elements": lambda data, count: other.unpack(unhex(data), 31, count),
    "ckks.check": lambda data, threshold: other.decode_check(unhex(data)),
    "ckks.add_shares": add_shares,
    "ckks.pack": packed,
    "ckks.unpack": unpacked,
    "ckks.encode": encoded,
    "ckks.decode": decoded,
}
CASES = [
    pytest.param(case, id=f"{case['operation']}: {case['name']}")
    for case in committed("ckks")
    if "output" in case and case["operation"] in OPERATIONS
]


@pytest.mark.parametrize("case", CASES)
def test_it_gives_the_output_of_every_vector(case: dict[str, Any]) -> None:
    assert OPERATIONS[case["operation"]](**case["input"]) == case["output"]


def cases(operation: str) -> list[Any]:
    found = [case for case in committed("ckks") if case["operation"] == operation]
    return [pytest.param(case, id=case["name"]) for case in found]


@pytest.mark.parametrize("case", cases("ckks.clauses"))
def test_it_finds_the_same_parameters_fit_for_use(case: dict[str, Any]) -> None:
    assert bool(fails(**case["input"])) == bool(case["output"])


@pytest.mark.parametrize("case", cases("ckks.choose"))
def test_it_finds_parameters_where_ours_does(case: dict[str, Any]) -> None:
    assert (chosen(**case["input"]) is None) == ("refused" in case)


@pytest.mark.parametrize("case", cases("ckks.open_sums"))
def test_it_opens_the_same_sums_by_trying_all(case: dict[str, Any]) -> None:
    opened = open_sums(**case["input"])
    assert opened.keys() == case["output"].keys()
    assert "unopenable" in opened or opened == case["output"]


@pytest.mark.parametrize("prime", [193, 249857, 1073692673])
def test_the_transform_is_the_value_at_every_root(prime: int) -> None:
    coefficients = [(k * k * 12345 + 7 * k) % prime for k in range(32)]
    root = other.root_of(32, prime)
    found = other.ntt(coefficients, prime)
    for place, value in enumerate(found):
        point = pow(root, 2 * other.reversed_bits(place, 5) + 1, prime)
        assert value == other.polynomial_at(coefficients, point, prime)
    assert other.inverse_ntt(found, prime) == coefficients


# ---------------------------------------------------------------------------- a whole round


NAME = "round-ckks"


@lru_cache(maxsize=1)
def heard() -> other.CkksRound:
    """The round as a coordinator of that implementation would hear it; every signature holds."""
    facts = committed(NAME)
    plan: Any = other.CkksPlan(unhex(facts["plan"]))
    public = {
        row["index"]: unhex(signature_sign(row["identity_seed"], **COVERED)["public_key"])
        for row in facts["tenants"]
    }
    found = other.CkksRound(plan, public)
    for row in facts["messages"]:
        if "from" in row:
            sender = plan.cohort.index(row["from"])
            found.hear(row["message"], unhex(row["bytes"]), row.get("offset", 0), sender)
    return found


def tenants() -> list[dict[str, Any]]:
    return list(committed(NAME)["tenants"])


@lru_cache(maxsize=8)
def dealt(index: int) -> list[list[int]]:
    """The polynomials of one dealer."""
    row = tenants()[index]
    seeds = unhex(row["self_mask_seed"]), unhex(row["dealing_seed"])
    return heard().polynomials_of(*seeds, heard().holders(index))


def test_it_reads_the_plan_and_chooses_the_same_parameters() -> None:
    plan: Any = heard().plan
    assert plan.context.hex() == committed(NAME)["context"]
    n = len(plan.cohort)
    assert plan.parameters == other.choose(
        n, plan.length, plan.ring_bits, plan.weight_ring_bits, n, "coefficients", "quantum"
    )


def test_it_advertises_a_channel_key_and_no_mask_key() -> None:
    for row in tenants():
        channel = independent.public_keys("x25519", "channel seed", unhex(row["channel_seed"]))
        assert heard().keys[row["index"]] == independent.Keys(channel, (b"", b""))


def test_it_deals_the_shares_that_stand_in_every_bundle() -> None:
    found = heard()
    for row in tenants():
        holder = row["index"]
        bundles = found.bundles_of(holder, unhex(row["channel_seed"]))
        assert sorted(bundles) == [one for one in range(5) if one != holder]
        for dealer, share in bundles.items():
            assert share == other.pack(other.share_of(dealt(dealer), holder), 31)


def test_it_proves_the_degree_as_every_dealer_did_and_every_holder_accepts() -> None:
    found = heard()
    for dealer in range(5):
        body = found.signed["share_keys"][dealer].body
        holders, published, root = independent.read_dealing_body(body)
        leaves = [independent.merkle_leaf(leaf.outline) for leaf in found.leaves[dealer]]
        assert (holders, root) == ([0, 1, 2, 3, 4], independent.merkle_root(leaves))
        rho = found.rho(dealer, root)
        check = other.check_polynomials(dealt(dealer), rho)
        assert other.encode_check(check) == published
        share = other.share_of(dealt(dealer), 4)
        assert other.holds(share, 4, rho, check)
        assert not other.holds([share[0] ^ 1, *share[1:]], 4, rho, check)


def test_it_encrypts_every_upload_byte_for_byte() -> None:
    found = heard()
    plan: Any = found.plan
    for row in tenants():
        if "levels" not in row:
            continue
        uniform = independent.rounding_words(
            unhex(row["rounding_seed"]), plan.context, 0, plan.length
        )
        factor = row["weight"] / plan.max_weight
        levels = independent.levels(plan.clip, plan.value_bits, row["vector"], factor, uniform)
        assert levels == row["levels"]
        made = found.upload_of(unhex(row["self_mask_seed"]), levels, row["weight"])
        assert made == found.uploads[row["index"]]


def test_it_releases_the_same_sums_of_shares() -> None:
    found = heard()
    for holder, released in found.key_sums().items():
        shares = [other.share_of(dealt(dealer), holder) for dealer in found.survivors]
        sums = [sum(column) % other.P for column in zip(*shares, strict=True)]
        assert released == sums[: found.degree]


def test_any_two_sums_open_the_sum_of_the_keys() -> None:
    found = heard()
    seeds = [unhex(tenants()[index]["self_mask_seed"]) for index in found.survivors]
    key = [sum(column) for column in zip(*map(found.key_of, seeds), strict=True)]
    sums = found.key_sums()
    assert sorted(sums) == found.survivors == [0, 1, 2, 4]
    for some in ((0, 1), (0, 4), (2, 4)):
        assert other.at_zero({holder: sums[holder] for holder in some}) == key
    assert max(map(abs, key)) <= other.TAIL * len(seeds)


def test_it_opens_the_same_sum_from_what_was_sent() -> None:
    found, facts = heard(), committed(NAME)
    level_sum, weight = found.open()
    assert (level_sum, weight) == (facts["level_sum"], facts["total_weight"])
    inputs = [row for row in tenants() if row["tenant"] in facts["survivors"]]
    assert level_sum == [
        sum(column) for column in zip(*(row["levels"] for row in inputs), strict=True)
    ]
    assert weight == sum(row["weight"] for row in inputs)
    plan: Any = found.plan
    assert other.sum_root(plan, level_sum, weight).hex() == facts["sum_root"]


def test_a_wrong_key_opens_nothing() -> None:
    found = heard()
    key = other.at_zero(dict(list(found.key_sums().items())[:2]))
    with pytest.raises(ValueError, match="more than honest"):
        found.open_with([key[0] + 1, *key[1:]])


def test_it_agrees_on_digests_deliveries_and_the_transcript() -> None:
    found, facts = heard(), committed(NAME)
    for digest in ("directory_digest", "dealings_digest", "view", "members_digest"):
        assert getattr(found, digest).hex() == facts[digest]
    for row in facts["messages"]:
        if row["message"] == "share_delivery":
            data = found.delivery(found.plan.cohort.index(row["to"][0]))
            assert independent.sha256(data).hex() == row.get("sha256", digest_of(row))
    whole, digest = found.transcript(unhex(facts["roster"]))
    assert digest.hex() == facts["transcript_digest"]
    kept = {row["round"]: row["bytes"] for row in committed("transcripts")["transcripts"]}
    assert whole.hex() == kept[NAME]


def digest_of(row: dict[str, Any]) -> str:
    return independent.sha256(unhex(row.get("bytes", ""))).hex()
