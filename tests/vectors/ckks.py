"""The layers of scheme `ckks`: parameters, rings, expanded polynomials, shares, packing, plans.

Rings here are smaller than those that a plan may have (16 coefficients and primes of 8 and 10
bits) wherever that shows the same, so that values can be read and computed by hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from secagg.ckks import gaussian, ntt, parameters, residues, sharing
from secagg.ckks.field import PRIME
from secagg.ckks.parameters import Parameters
from secagg.ckks.public import PublicPolynomials
from secagg.ckks.scheme import Ckks
from secagg.plan import RoundPlan
from secagg.secret import Seed
from secagg.testing import cohort
from tests.vectors.cases import Case, case, operation, shake
from tests.vectors.records import unchecked

CONTEXT = shake("ckks context", 32).hex()
SMALL: dict[str, Any] = {"degree": 16, "primes": [769, 193]}
WIRE: dict[str, Any] = {**SMALL, "modulus_bits": [10, 8]}
DIGITS: dict[str, Any] = {
    "primes": [249857, 188417],
    "digit_bits": 12,
    "digits": 2,
    "margin_bits": 10,
}


def ints(values: Any) -> Any:
    """numpy's numbers as Python's."""
    return np.asarray(values).tolist()


def listed(one: Parameters) -> dict[str, Any]:
    return {"degree": one.degree, "modulus_bits": list(one.modulus_bits)}


# ---------------------------------------------------------------------------- operations


@operation("ckks.choose")
def choose(**asked: Any) -> dict[str, Any]:
    found = parameters.choose(**asked)
    n, g = asked["n"], asked["ring_bits"]
    return {
        **listed(found),
        "primes": list(found.primes),
        "digits": found.digits(n, g),
        "margin_bits": found.margin_bits(n),
        "scale_bits": found.scale_bits(n),
        "last_width": found.last_width,
        "polynomials": found.polynomials(asked["length"], n, g, asked["weight_ring_bits"]),
        "leaf_bytes": found.leaf_bytes,
    }


@operation("ckks.clauses")
def clauses(
    degree: int, modulus_bits: list[int], packing: Any, security: Any, n: int, ring_bits: int,
    weight_ring_bits: int,
) -> list[str]:  # fmt: skip
    """What does not hold; nothing where the parameters are fit for use."""
    one = Parameters(degree, tuple(modulus_bits), packing, security)
    return [text for text, holds, _ in one.clauses(n, ring_bits, weight_ring_bits) if not holds]


@operation("ckks.ntt")
def transformed(degree: int, primes: list[int], coefficients: list[int]) -> list[list[int]]:
    ring = ntt.ring(degree, tuple(primes))
    planes = np.array([[c % prime for c in coefficients] for prime in primes], np.uint32)
    ring.forward(planes)
    return ints(planes)  # type: ignore[no-any-return]


@operation("ckks.public")
def public(context: str, number: int, degree: int, primes: list[int]) -> dict[str, Any]:
    out = np.empty((len(primes), degree), np.uint32)
    PublicPolynomials(bytes.fromhex(context), degree, tuple(primes)).expand(number, out)
    whole = out.astype("<u4").tobytes()
    return {"begins": ints(out[:, :8]), "sha256": hashlib.sha256(whole).hexdigest()}


@operation("ckks.thresholds")
def thresholds() -> list[str]:
    return [f"{threshold:032x}" for threshold in gaussian.THRESHOLDS]


@operation("ckks.samples")
def samples(keystream: str) -> list[int]:
    data = bytes.fromhex(keystream)
    out = np.empty(len(data) // 16, np.int32)
    gaussian.sample_into(out, np.frombuffer(data, "<u8").astype(np.uint64))
    return ints(out)  # type: ignore[no-any-return]


@operation("ckks.gaussian")
def gaussian_polynomial(
    seed: str, context: str, purpose: Any, number: int, degree: int
) -> list[int]:
    out = np.empty(degree, np.int32)
    stream = gaussian.GaussianStream(
        Seed(bytes.fromhex(seed)), context=bytes.fromhex(context), purpose=purpose, degree=degree
    )
    stream.write(number, out)
    return ints(out)  # type: ignore[no-any-return]


@operation("ckks.deal")
def deal(
    secret: list[int], holders: list[int], threshold: int, seed: str, context: str, dealer: int,
    commitments: list[str],
) -> dict[str, Any]:  # fmt: skip
    dealing = sharing.split(
        np.array(secret, np.int32),
        holders,
        threshold,
        Seed(bytes.fromhex(seed)),
        bytes.fromhex(context),
    )
    committed = [bytes.fromhex(one) for one in commitments]
    rho = sharing.challenge(bytes.fromhex(context), dealer, committed, len(secret))
    check = sharing.check_polynomial(dealing, rho)
    return {
        "polynomials": ints(dealing.polynomials),
        "shares": [sharing.pack_elements(row).hex() for row in dealing.shares],
        "challenge": ints(rho),
        "check": sharing.encode_check(check).hex(),
    }


@operation("ckks.holds")
def holds(
    share: str, holder: int, context: str, dealer: int, commitments: list[str], polynomials: str,
    degree: int, threshold: int,
) -> bool:  # fmt: skip
    """Whether a holder accepts its share."""
    committed = [bytes.fromhex(one) for one in commitments]
    return sharing.holds(
        sharing.parse_elements(bytes.fromhex(share), degree + sharing.CHECKS),
        holder,
        sharing.challenge(bytes.fromhex(context), dealer, committed, degree),
        sharing.parse_check(bytes.fromhex(polynomials), threshold),
    )


@operation("ckks.elements")
def elements(data: str, count: int) -> list[int]:
    return ints(sharing.parse_elements(bytes.fromhex(data), count))  # type: ignore[no-any-return]


@operation("ckks.check")
def check(data: str, threshold: int) -> list[list[int]]:
    return ints(sharing.parse_check(bytes.fromhex(data), threshold))  # type: ignore[no-any-return]


@operation("ckks.add_shares")
def add_shares(shares: list[str], degree: int) -> str:
    parsed = [sharing.parse_elements(bytes.fromhex(one), degree + 4) for one in shares]
    return sharing.pack_elements(sharing.add_shares(parsed)).hex()


@operation("ckks.open_sums")
def open_sums(sums: dict[str, str], degree: int, threshold: int, bound: int) -> dict[str, Any]:
    parsed = {
        int(holder): sharing.parse_elements(bytes.fromhex(data), degree)
        for holder, data in sums.items()
    }
    opened = sharing.open_sums(parsed, threshold, bound)
    if isinstance(opened, sharing.Opened):
        return {"secret": ints(opened.secret), "wrong": list(opened.wrong)}
    return {"unopenable": opened.name}


@operation("ckks.sum_of_shares")
def sum_of_shares(plan: str, holds_shares: bool, key_sum: str) -> bool:
    decoded = RoundPlan.decode(bytes.fromhex(plan))
    Ckks().check_sum_of_shares(decoded, holds_shares, bytes.fromhex(key_sum))
    return True


@operation("ckks.pack")
def wire_pack(
    degree: int, primes: list[int], modulus_bits: list[int], planes: list[list[int]]
) -> str:
    wire = residues.wire(degree, tuple(primes), tuple(modulus_bits))
    return wire.pack(np.array(planes, np.uint32)).hex()


@operation("ckks.unpack")
def wire_unpack(
    degree: int, primes: list[int], modulus_bits: list[int], leaf: str
) -> list[list[int]]:
    out = np.empty((len(primes), degree), np.uint32)
    wire = residues.wire(degree, tuple(primes), tuple(modulus_bits))
    wire.unpack_into(out, bytes.fromhex(leaf))
    return ints(out)  # type: ignore[no-any-return]


def _digits(primes: list[int], digit_bits: int, digits: int, margin_bits: int) -> residues.Digits:
    return residues.digits(tuple(primes), digit_bits, digits, margin_bits)


@operation("ckks.encode")
def encode(values: list[list[int]], noise: list[int], **form: Any) -> list[list[int]]:
    """Coefficients modulo each prime; the transform follows."""
    found = _digits(**form)
    out = np.empty((len(found.primes), len(noise)), np.uint32)
    found.encode(np.array(values, np.int32), np.array(noise, np.int32), out)
    return ints(out % np.array(found.primes, np.uint32)[:, None])  # type: ignore[no-any-return]


@operation("ckks.decode")
def decode(planes: list[list[int]], **form: Any) -> dict[str, Any]:
    found = _digits(**form).decode(np.array(planes, np.uint32))
    return {
        "values": ints(found.values),
        "noise": ints(found.noise),
        "overflows": found.overflows,
    }


# ---------------------------------------------------------------------------- cases


def ckks_cases() -> Iterator[Case]:
    yield from parameter_cases()
    yield from ring_cases()
    yield from gaussian_cases()
    yield from sharing_cases()
    yield from opening_cases()
    yield from form_cases()
    yield from wire_cases()
    yield from digit_cases()


def parameter_cases() -> Iterator[Case]:
    usual: dict[str, Any] = {"ring_bits": 24, "weight_ring_bits": 15, "packing": "coefficients",
             "security": "quantum"}  # fmt: skip
    for n, length, changes in (
        (3, 5, {"ring_bits": 22, "weight_ring_bits": 14}),
        (10, 1000, {}),
        (10, 100_000, {}),
        (10, 1_000_000, {}),
        (100, 1_000_000, {"ring_bits": 27}),
        (1000, 1_000_000, {"ring_bits": 30, "holders": 64}),
        (10, 1_000_000, {"security": "classical"}),
        (10, 1_000_000, {"packing": "slots"}),
        (5, 10, {"ring_bits": 30, "weight_ring_bits": 52}),
        (10, 10, {"ring_bits": 12, "weight_ring_bits": 48}),
    ):
        asked = {"n": n, "length": length, "holders": n, **usual, **changes}
        yield case(
            f"{n} participants, {length} values of {asked['ring_bits']} bits in "
            f"{asked['packing']}, {asked['security']}",
            "ckks.choose", **asked,
        )  # fmt: skip
    for name, changes in (
        ("no ring is large enough", {"packing": "slots", "ring_bits": 60}),
        ("weights of more than 31 bits in one digit", {"ring_bits": 38, "weight_ring_bits": 52}),
    ):
        asked = {"n": 10, "length": 9, "holders": 10, **usual, **changes}
        yield case(name, "ckks.choose", **asked)
    yield from clause_cases()


def clause_cases() -> Iterator[Case]:
    wide: dict[str, Any] = {"ring_bits": 10, "weight_ring_bits": 15}
    heavy: dict[str, Any] = {"weight_ring_bits": 41}
    fit: dict[str, Any] = {
        "degree": 8192, "modulus_bits": [30, 30, 30, 30, 30, 29], "packing": "coefficients",
        "security": "quantum", "n": 10, "ring_bits": 24, "weight_ring_bits": 15,
    }  # fmt: skip
    slots: dict[str, Any] = {**fit, "packing": "slots", "modulus_bits": [28, 27]}
    for name, given in (
        ("fit for use", fit),
        ("fit for use with slots", slots),
        ("another packing", {**fit, "packing": "digits"}),
        ("another security", {**fit, "security": "none"}),
        ("a degree below the smallest", {**fit, "degree": 1024}),
        ("a degree that is no power of two", {**fit, "degree": 8191}),
        ("no primes", {**fit, "modulus_bits": []}),
        ("a prime of 17 bits", {**fit, "modulus_bits": [30, 17]}),
        ("a prime of 31 bits", {**fit, "modulus_bits": [31, 30]}),
        ("25 primes", {**fit, "modulus_bits": [18] * 25}),
        ("fewer primes of a size than named", {**fit, "modulus_bits": [18] * 9}),
        ("a bit beyond the table", {**fit, "modulus_bits": [29] * 7}),
        ("within the classical table", {**fit, "modulus_bits": [29] * 7, "security": "classical"}),
        ("no room for a digit", {**fit, "modulus_bits": [30]}),
        ("as many values in a polynomial as may be", {**fit, **wide}),
        ("more values in a polynomial", {**fit, "ring_bits": 9}),
        ("a weight beyond all digits", {**fit, "ring_bits": 50, "weight_ring_bits": 151}),
        ("a weight of more than 31 bits in a digit", {**fit, "ring_bits": 40, **heavy}),
        ("a digit of 51 bits", {**fit, "ring_bits": 51}),
        ("no participants", {**fit, "n": 0}),
        ("slots without room for the scale", {**slots, "modulus_bits": [28, 20]}),
        ("slots beyond what doubles hold", {**slots, "ring_bits": 39, "modulus_bits": [30] * 6}),
    ):
        yield case(name, "ckks.clauses", **given)


def ring_cases() -> Iterator[Case]:
    one = [0, 1, *[0] * 14]
    for name, coefficients in (
        ("one", [1, *[0] * 15]),
        ("X", one),
        ("-X^15", [*[0] * 15, -1]),
        ("small coefficients", [(7 * k) % 5 - 2 for k in range(16)]),
    ):
        yield case(f"the transform of {name}", "ckks.ntt", coefficients=coefficients, **SMALL)
    smallest = {"degree": 2048, "primes": [249857, 188417]}
    for number in (0, 1, 70_000):
        name = f"public polynomial {number}"
        yield case(name, "ckks.public", context=CONTEXT, number=number, **smallest)
    large = parameters.Parameters(8192, (30, 30, 30, 30, 30, 29))
    yield case("a larger one", "ckks.public", context=CONTEXT, number=2, degree=8192,
               primes=list(large.primes))  # fmt: skip


def gaussian_cases() -> Iterator[Case]:
    yield case("the table", "ckks.thresholds")
    yield case("32 samples", "ckks.samples", keystream=shake("gaussian", 512).hex())
    borders = []
    for k in (0, 1, 50):
        for u in (gaussian.THRESHOLDS[k] - 1, gaussian.THRESHOLDS[k]):
            borders += [u, u | 1 << 127]
    borders += [0, 1 << 127, (1 << 127) - 1, (1 << 128) - 1]
    yield case("samples at both sides of thresholds, and both zeros", "ckks.samples",
               keystream=b"".join(u.to_bytes(16, "little") for u in borders).hex())  # fmt: skip
    for purpose, number in (("secret", 0), ("errors", 0), ("errors", 3)):
        yield case(f"{purpose} {number}", "ckks.gaussian", seed=shake("key", 32).hex(),
                   context=CONTEXT, purpose=purpose, number=number, degree=64)  # fmt: skip


DEALT: dict[str, Any] = {
    "secret": [3, -51, 0, 17, 51, -1],
    "holders": [0, 2, 3, 7],
    "threshold": 3,
    "seed": shake("dealing", 32).hex(),
    "context": CONTEXT,
    "dealer": 2,
    "commitments": [shake("leaves", 32).hex()],
}


def sharing_cases() -> Iterator[Case]:
    yield case("four holders, three of them open", "ckks.deal", **DEALT)
    yield case("one holder", "ckks.deal", **{**DEALT, "holders": [5], "threshold": 1})
    for name, changes in (
        ("a threshold of 0", {"threshold": 0}),
        ("a threshold above the holders", {"threshold": 5}),
        ("a holder twice", {"holders": [0, 2, 2, 7]}),
        ("an index of 2^30 - 1", {"holders": [0, 2, 3, 2**30 - 1]}),
    ):
        yield case(name, "ckks.deal", **{**DEALT, **changes})
    dealt = deal(**DEALT)
    good: dict[str, Any] = {
        "share": dealt["shares"][1], "holder": 2, "polynomials": dealt["check"], "degree": 6,
        **{name: DEALT[name] for name in ("context", "dealer", "commitments", "threshold")},
    }  # fmt: skip
    share, checked = bytes.fromhex(good["share"]), bytes.fromhex(good["polynomials"])
    for name, changes in (
        ("what was dealt", {}),
        ("under another holder's index", {"holder": 3}),
        ("another holder's share", {"share": dealt["shares"][2]}),
        ("one coefficient is another", {"share": (bytes([share[0] ^ 1]) + share[1:]).hex()}),
        ("one blinding element is another", {"share": (share[:-1] + b"\0").hex()}),
        ("another challenge", {"commitments": [bytes(32).hex()]}),
        ("in another dealer's name", {"dealer": 3}),
        ("one element of the check is another",
         {"polynomials": (bytes([checked[0] ^ 1]) + checked[1:]).hex()}),
    ):  # fmt: skip
        yield case(f"a share: {name}", "ckks.holds", **{**good, **changes})
    yield case("a sum of two", "ckks.add_shares", shares=dealt["shares"][:2], degree=6)


def opening_cases() -> Iterator[Case]:
    degree, dealers, holders = 6, (0, 1, 2), (0, 1, 2, 3, 4, 5)
    secrets = [[(7 * k + 11 * dealer) % 103 - 51 for k in range(degree)] for dealer in dealers]
    dealt = [
        sharing.split(
            np.array(secret, np.int32), holders, 2, Seed(shake(f"d{dealer}", 32)), b"sums"
        )
        for dealer, secret in zip(dealers, secrets, strict=True)
    ]
    sums = {
        holder: sharing.add_shares([one.shares[place] for one in dealt])
        for place, holder in enumerate(holders)
    }
    packed = {str(holder): sharing.pack_elements(row).hex() for holder, row in sums.items()}

    def wrong(*who: int) -> dict[str, str]:
        """Sums with one element more in some place."""
        changed = dict(packed)
        for holder in who:
            row = sums[holder].copy()
            row[holder % degree] = (int(row[holder % degree]) + 1) % PRIME
            changed[str(holder)] = sharing.pack_elements(row).hex()
        return changed

    given: dict[str, Any] = {"degree": degree, "threshold": 2, "bound": 51 * len(dealers)}
    few = {name: packed[name] for name in ("1", "4")}
    for name, shown, changes in (
        ("as many as the threshold", few, {}),
        ("all of them", packed, {}),
        ("one is wrong", wrong(3), {}),
        ("two of six are wrong", wrong(0, 5), {}),
        ("three of six are wrong", wrong(0, 2, 5), {}),
        ("too few", {"1": packed["1"]}, {}),
        ("beyond what honest keys add up to", few, {"bound": 20}),
        ("wrong among as many as the threshold", {"1": wrong(1)["1"], "4": packed["4"]}, {}),
    ):
        yield case(f"sums: {name}", "ckks.open_sums", sums=shown, **{**given, **changes})


def form_cases() -> Iterator[Case]:
    """C25 of sums and C42 of shares: one spelling for each."""
    row = [0, 1, PRIME - 1, PRIME // 2, 12345, 2**30]
    data = sharing.pack_elements(np.array(row, np.uint32))
    yield case("six elements", "ckks.elements", data=data.hex(), count=6)
    whole = int.from_bytes(data, "little")
    prime = (whole | PRIME << 62).to_bytes(24, "little")
    for name, bad in (
        ("a byte short", data[:-1]),
        ("a byte too many", data + b"\0"),
        ("nothing", b""),
        ("a stray bit", data[:-1] + bytes([data[-1] | 0x80])),
        ("an element is p", prime),
    ):
        yield case(f"elements: {name}", "ckks.elements", data=bad.hex(), count=6)
    check = bytes.fromhex(deal(**DEALT)["check"])
    yield case("a check", "ckks.check", data=check.hex(), threshold=3)
    for name, bad in (
        ("a byte short", check[:-1]),
        ("of another threshold", check + check[:16]),
        ("an element is p", PRIME.to_bytes(4, "little") + check[4:]),
        ("an element has the top bit", check[:3] + bytes([check[3] | 0x80]) + check[4:]),
    ):
        yield case(f"a check: {name}", "ckks.check", data=bad.hex(), threshold=3)
    plan = cohort(3).plan(5, scheme="ckks").encode().hex()
    for name, holds_shares, sent in (
        ("none from outside the committee", False, b""),
        ("one from outside the committee", False, b"\1"),
        ("none from the committee", True, b""),
        ("one that is too short", True, bytes(7935)),
    ):
        yield case(f"a sum of shares: {name}", "ckks.sum_of_shares", plan=plan,
                   holds_shares=holds_shares, key_sum=sent.hex())  # fmt: skip


def wire_cases() -> Iterator[Case]:
    planes = [[(311 * k + 5) % 769 for k in range(16)], [(59 * k + 192) % 193 for k in range(16)]]
    good = bytes.fromhex(wire_pack(planes=planes, **WIRE))
    yield case("two planes", "ckks.pack", planes=planes, **WIRE)
    yield case("two planes", "ckks.unpack", leaf=good.hex(), **WIRE)
    for name, leaf in (
        ("a byte short", good[:-1]),
        ("a byte too many", good + b"\0"),
        ("nothing", b""),
        ("the first residue is its prime", with_residue(good, 0, 10, 769)),
        ("the last residue is its prime", with_residue(good, 160 + 15 * 8, 8, 193)),
        ("a residue has all bits", with_residue(good, 30, 10, 1023)),
    ):
        yield case(name, "ckks.unpack", leaf=leaf.hex(), **WIRE)


def with_residue(leaf: bytes, bit: int, size: int, value: int) -> bytes:
    """Another residue at a bit of a leaf."""
    stream = int.from_bytes(leaf, "little")
    stream = stream & ~(((1 << size) - 1) << bit) | value << bit
    return stream.to_bytes(len(leaf), "little")


def digit_cases() -> Iterator[Case]:
    values = [[0, 1, -1, 2047, -2048, 5, 100, -7], [0, -1, 1, -2048, 2047, 0, 3, -9]]
    noise = [0, 0, 5, -511, 511, -51, 204, 1]
    yield case("two digits a coefficient", "ckks.encode", values=values, noise=noise, **DIGITS)
    most = 2**31 - 1
    yield case("as far as 32 bits go", "ckks.encode", values=[[most, -most - 1] * 4] * 2,
               noise=[-most - 1, most] * 4, **DIGITS)  # fmt: skip
    planes = encode(values, noise, **DIGITS)
    yield case("two digits a coefficient", "ckks.decode", planes=planes, **DIGITS)
    above = [
        [(c + 2**34) % q for c in row] for q, row in zip(DIGITS["primes"], planes, strict=True)
    ]
    yield case("something above the digits", "ckks.decode", planes=above, **DIGITS)
    for name, changes in (
        ("a digit of 51 bits", {"digit_bits": 51}),
        ("more digits than the primes hold", {"digits": 3}),
        ("no digit", {"digits": 0}),
    ):
        yield case(name, "ckks.decode", planes=planes, **{**DIGITS, **changes})


def ckks_plan_cases() -> Iterator[Case]:
    """Plans with parameters; for plans.json."""
    plan = cohort(5).plan(7, scheme="ckks")
    assert plan.ckks is not None
    fit = plan.ckks
    slots = cohort(5).plan(7, scheme="ckks", packing="slots")
    yield case("ckks", "plan.decode", data=plan.encode().hex())
    yield case("ckks: slots", "plan.decode", data=slots.encode().hex())
    listed_of_65 = cohort(65, committee=4).plan(7, scheme="ckks")
    yield case("ckks: a committee", "plan.decode", data=listed_of_65.encode().hex())
    whole = plan.encode()
    head = b"\0\0\0\4ckks\0\0\0\x0ccoefficients"
    sizes = b"\0\0\0\2" + bytes(fit.modulus_bits)
    for name, data in (
        ("a trailing byte", whole + b"\0"),
        ("a byte short", whole[:-1]),
        ("no parameters", whole[: whole.rindex(head)]),
        ("parameters in scheme masking", cohort(5).plan(7).encode() + whole[whole.rindex(head) :]),
        ("an unknown packing", whole.replace(b"coefficients", b"coefficientS")),
        ("an unknown security", whole.replace(b"quantum", b"quantuM")),
        ("25 primes", whole.replace(sizes, b"\0\0\0\x19" + 25 * b"\x12")),
        ("a count of 2^32 - 1", whole.replace(sizes, b"\xff\xff\xff\xff" + sizes[4:])),
    ):
        if data == whole:
            raise AssertionError(name)
        yield case(f"ckks: {name}", "plan.decode", check="C01", data=data.hex())
    for name, changes in (
        ("no primes", {"ckks": replace(fit, modulus_bits=())}),
        ("a degree without a table", {"ckks": replace(fit, degree=4095)}),
        ("log2 Q beyond the table", {"ckks": replace(fit, modulus_bits=(26, 26))}),
        ("a prime of 31 bits", {"ckks": replace(fit, modulus_bits=(31,))}),
        ("no room for errors and a value", {"ckks": replace(fit, modulus_bits=(18,))}),
        ("fewer primes of a size than named", {"ckks": replace(fit, modulus_bits=(18,) * 24)}),
        ("t = f", {"max_colluders": 3, "share_threshold": 3, "min_survivors": 5}),
        ("t = 0", {"share_threshold": 0}),
        ("t above the committee", {"share_threshold": 6}),
        ("k is not the committee's size", {"share_count": 4}),
    ):  # fmt: skip
        bad = unchecked(plan, **changes)  # type: ignore[arg-type]
        yield case(f"ckks: {name}", "plan.decode", check="C29", data=bad)
    alone = unchecked(listed_of_65, committee=())
    yield case("ckks: 65 tenants, no committee", "plan.decode", check="C29", data=alone)
