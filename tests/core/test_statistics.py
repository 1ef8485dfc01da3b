"""What the coordinator sees does not depend on inputs; and these tests notice when it does.

Uploads, what is left of them when self masks are opened, their sum, and the difference of two
rounds are tested for uniformity in the ring, bit by bit and byte by byte, for inputs at zero and at
the ends of the clip. Each count of an event that has probability p for uniform words is compared
with Bernstein's bound: over all counts of this file the chance of a false alarm is below 2^-40 in
suite x25519-mlkem768, whose keys are fresh in every run; in suite x25519 seeds are fixed and
every run is the same.

Then the test of the test: masks that are broken on purpose, each of which has to be found.

That fewer than t shares say nothing about the secret is shown exactly: for t - 1 shares and any
candidate, one dealing of the candidate gives those shares, and just one.

Not shown: that AES, X25519 and ML-KEM are what they are taken for.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from secagg.encoding import Levels, to_ring
from secagg.masking import Masking, MaskStreams
from secagg.packing import pack, unpack
from secagg.participant_steps import Agreed
from secagg.plan import RoundPlan
from secagg.prg import Words, chunk_coordinates, word_dtype
from secagg.scheme import LeafPlace, ProtectionSecrets, Protector, leaf_places
from secagg.secret import RoundingSeed, SelfMaskSeed, SelfMaskShare, Share
from secagg.shamir import PRIME, Interpolation, split
from secagg.testing import SeededRandomness, cohort
from secagg.testing.coalition import Coalition
from secagg.upload import Upload

N, LENGTH = 4, 12_000
FALSE_ALARM = 2.0**-40
MOST_COUNTS = 1 << 24
Array = NDArray[np.uint64]


# ---------------------------------------------------------------------------- counts


@dataclass(frozen=True)
class Count:
    """How often events came in `trials` independent trials of probability `chance` each."""

    name: str
    seen: Sequence[int] | NDArray[np.int64]
    trials: int
    chance: float

    @property
    def alarm(self) -> bool:
        """Bernstein: P[|N - mp| >= s] <= 2 exp(-s^2 / (2 m p (1 - p) + 2 s / 3))."""
        level = math.log(2 * MOST_COUNTS / FALSE_ALARM)
        spread = self.trials * self.chance * (1 - self.chance)
        room = level / 3 + math.sqrt(level**2 / 9 + 2 * spread * level)
        return bool(np.abs(np.asarray(self.seen) - self.trials * self.chance).max() >= room)


def counts(words: Array, bits: int, name: str) -> Iterator[Count]:
    """Every bit, every byte and every bit of neighbours' differences, of uniform words."""
    yield bit_counts(words, bits, f"bits of {name}")
    pairs = words[: len(words) // 2 * 2].reshape(-1, 2)
    yield bit_counts(pairs[:, 0] ^ pairs[:, 1], bits, f"neighbours in {name}")
    for low in range(0, bits, 8):
        size = min(8, bits - low)
        part = (words >> np.uint64(low)) & np.uint64((1 << size) - 1)
        seen = np.bincount(part.astype(np.int64), minlength=1 << size)
        yield Count(f"bits {low} to {low + size - 1} of {name}", seen, len(words), 2.0**-size)


def bit_counts(words: Array, bits: int, name: str) -> Count:
    seen = [int(np.count_nonzero(words >> np.uint64(bit) & np.uint64(1))) for bit in range(bits)]
    return Count(name, seen, len(words), 0.5)


def alarms(found: Iterator[Count]) -> list[str]:
    return [count.name for count in found if count.alarm]


# ---------------------------------------------------------------------------- what is seen


def plan_of(bits: int, suite: str = "x25519", length: int = LENGTH) -> RoundPlan:
    plan = cohort(N).plan(length, value_bits=min(bits - 6, 32), max_weight=1, suite=suite)  # type: ignore[arg-type]
    return replace(plan, ring_bits=bits)


def secrets_of(plan: RoundPlan, seed: int) -> tuple[Coalition, list[ProtectionSecrets]]:
    """A round in which all have agreed on U2, and what protects their inputs."""
    coalition = Coalition(cohort(N), plan, seed=seed)
    marks, everybody = coalition.marks(), range(N)
    for mark in marks:
        assert coalition.tell(mark, coalition.directory(everybody))
    for mark in marks:
        assert coalition.tell(mark, coalition.delivery(mark, everybody))
    secrets = []
    for mark in marks:
        assert coalition.tell(mark, coalition.agreed(mark, everybody))
        state = mark.tenant.running._state
        assert isinstance(state, Agreed)
        secrets.append(state.protection)
    return coalition, secrets


MakeProtector = Callable[[RoundPlan, int, ProtectionSecrets], Protector]


def whole(plan: RoundPlan, index: int, secrets: ProtectionSecrets) -> Protector:
    return Masking().protector(plan, index, secrets)


def uploads(
    plan: RoundPlan, fill: float, protect: MakeProtector = whole, seed: int = 0
) -> tuple[list[Array], list[Array]]:
    """(d,) words of each tenant's upload, and of what is left when its self mask is opened."""
    coalition, secrets = secrets_of(plan, seed)
    vector = np.full(plan.layout.size, fill, np.float32)
    seen, opened = [], []
    for index, tenant in enumerate(coalition.tenants.values()):
        tenant.vector, tenant.weight, tenant.record_levels = vector, 1, False
        if protect is whole:  # the real path
            tenant.submit()
            leaves = iter(tenant.running.upload())
        else:
            rounding = RoundingSeed(tenant.randomness(32))
            upload = Upload(plan, vector, 1, rounding, protect(plan, index, secrets[index]))
            leaves = (upload.leaf(number) for number in range(len(upload.places)))
        words = words_of(plan, leaves)
        seen.append(words.astype(np.uint64))
        own = replace(secrets[index], pairwise=())
        opened.append(reduced(plan, words - stream(plan, protect(plan, index, own))))
    return seen, opened


def words_of(plan: RoundPlan, leaves: Iterator[bytes]) -> Words:
    """Vector 0 of an upload, as ring words."""
    places = (place for place in leaf_places(plan) if place.vector == 0)
    return np.concatenate([unpack(next(leaves), place.bits, place.count) for place in places])


def stream(plan: RoundPlan, protector: Protector) -> Words:
    """What a protector adds to vector 0."""
    places = [place for place in leaf_places(plan) if place.vector == 0]
    return np.concatenate([mask_of(protector, place) for place in places])


def mask_of(protector: Protector, place: LeafPlace) -> Words:
    """(place.count,) words: how a protector hides nothing but zeros."""
    zeros = np.zeros(place.count, np.int64)
    return unpack(protector.leaf(zeros, place), place.bits, place.count)


def reduced(plan: RoundPlan, words: Words) -> Array:
    return words.astype(np.uint64) & np.uint64((1 << plan.ring_bits) - 1 & (1 << 64) - 1)


def everything_seen(
    plan: RoundPlan, fill: float, protect: MakeProtector = whole, seeds: tuple[int, int] = (0, 1)
) -> Iterator[Count]:
    """All views that may tell something: see the module's docstring."""
    bits = plan.ring_bits
    seen, opened = uploads(plan, fill, protect, seeds[0])
    again, _ = uploads(plan, fill, protect, seeds[1])
    for index in range(N):
        yield from counts(seen[index], bits, f"upload {index}")
        yield from counts(opened[index], bits, f"upload {index} without its self mask")
    yield from counts(reduced(plan, sum_of(seen)), bits, "the sum of uploads")
    yield from counts(reduced(plan, seen[0] - again[0]), bits, "two rounds' difference")
    step = chunk_coordinates(bits)
    if len(seen[0]) > step:
        most = min(len(seen[0]) - step, step)
        apart = seen[0][:most] - seen[0][step : step + most]
        yield from counts(reduced(plan, apart), bits, "two chunks' difference")


def sum_of(words: Sequence[Array]) -> Array:
    total = words[0].copy()
    for one in words[1:]:
        total += one
    return total


FILLS = {"zero": 0.0, "most": 1.0, "least": -1.0}


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("bits", [16, 17, 24, 32, 40, 64])
def test_what_is_seen_is_uniform_whatever_the_input(bits: int, fill: str) -> None:
    assert alarms(everything_seen(plan_of(bits), FILLS[fill])) == []


@pytest.mark.parametrize("fill", FILLS)
def test_what_is_seen_is_uniform_in_the_hybrid_suite_too(fill: str) -> None:
    assert alarms(everything_seen(plan_of(32, "x25519-mlkem768"), FILLS[fill])) == []


def test_chunks_of_an_upload_are_masked_by_different_streams() -> None:
    plan = plan_of(64, length=chunk_coordinates(64) + 9_000)
    assert alarms(everything_seen(plan, 0.0)) == []


# ---------------------------------------------------------------------------- broken masks


class Changed:
    """A protector whose masks are those of another one, changed."""

    def __init__(self, masks: Protector, change: Callable[[Words], Words]) -> None:
        self._masks, self._change = masks, change

    def leaf(self, levels: Levels, place: LeafPlace) -> bytes:
        mask = self._change(mask_of(self._masks, place))
        return pack(to_ring(levels, place.bits) + mask, place.bits)


def nothing(plan: RoundPlan, index: int, secrets: ProtectionSecrets) -> Protector:
    return MaskStreams(plan, [], [])


def no_self_mask(plan: RoundPlan, index: int, secrets: ProtectionSecrets) -> Protector:
    known = replace(secrets, self_mask=SelfMaskSeed(bytes(32)))
    return Changed(whole(plan, index, known), lambda mask: mask - stream_like(plan, mask))


def stream_like(plan: RoundPlan, mask: Words) -> Words:
    return stream(plan, MaskStreams(plan, [SelfMaskSeed(bytes(32))], []))[: len(mask)]


def no_pairwise_masks(plan: RoundPlan, index: int, secrets: ProtectionSecrets) -> Protector:
    return whole(plan, index, replace(secrets, pairwise=()))


def low_bits_alone(plan: RoundPlan, index: int, secrets: ProtectionSecrets) -> Protector:
    most = word_dtype(plan.ring_bits).type((1 << plan.ring_bits - 1) - 1)
    return Changed(whole(plan, index, secrets), lambda mask: mask & most)


def one_word_in_eight_is_bare(plan: RoundPlan, index: int, secrets: ProtectionSecrets) -> Protector:
    keep = (np.arange(plan.layout.size) % 8 > 0).astype(word_dtype(plan.ring_bits))
    return Changed(whole(plan, index, secrets), lambda mask: mask * keep[: len(mask)])


def of_short_period(plan: RoundPlan, index: int, secrets: ProtectionSecrets) -> Protector:
    return Changed(whole(plan, index, secrets), lambda mask: np.resize(mask[:256], len(mask)))


def of_neighbours_alike(plan: RoundPlan, index: int, secrets: ProtectionSecrets) -> Protector:
    return Changed(whole(plan, index, secrets), lambda mask: np.repeat(mask, 2)[: len(mask)])


@pytest.mark.parametrize(
    ("broken", "where"),
    [
        (nothing, "bits of upload 0"),
        (no_self_mask, "bits of the sum of uploads"),
        (no_pairwise_masks, "bits of upload 0 without its self mask"),
        (low_bits_alone, "bits of upload 0"),
        (one_word_in_eight_is_bare, "bits of upload 0"),
        (of_short_period, "bits of upload 0"),
        (of_neighbours_alike, "neighbours in upload 0"),
    ],
)
@pytest.mark.parametrize("bits", [16, 40])
def test_a_broken_mask_is_found(bits: int, broken: MakeProtector, where: str) -> None:
    found = alarms(everything_seen(plan_of(bits), 0.0, broken))
    assert where in found


def test_masks_used_twice_are_found() -> None:
    """The same secrets in two rounds: their difference is that of the inputs."""
    found = alarms(everything_seen(plan_of(32), 0.0, seeds=(0, 0)))
    assert "bits of two rounds' difference" in found


def test_one_stream_for_all_chunks_is_found() -> None:
    class FirstChunk(Changed):
        def leaf(self, levels: Levels, place: LeafPlace) -> bytes:
            return super().leaf(levels, replace(place, chunk=0))

    def make(plan: RoundPlan, index: int, secrets: ProtectionSecrets) -> Protector:
        return FirstChunk(whole(plan, index, secrets), lambda mask: mask)

    plan = plan_of(64, length=chunk_coordinates(64) + 9_000)
    assert "bits of two chunks' difference" in alarms(everything_seen(plan, 0.0, make))


# ---------------------------------------------------------------------------- shares


def values(shares: dict[int, SelfMaskShare], holders: Sequence[int]) -> list[int]:
    return [int.from_bytes(shares[holder].expose()) for holder in holders]


def coefficients(points: Sequence[tuple[int, int]]) -> list[int]:
    """The polynomial of degree below len(points) through them, highest power first (Lagrange)."""
    total = [0] * len(points)
    for x, y in points:
        basis, scale = [1], y
        for other, _ in points:
            if other != x:
                shifted = [*basis, 0]
                basis = [
                    (high - other * low) % PRIME
                    for high, low in zip(shifted, [0, *basis], strict=True)
                ]
                scale = scale * pow(x - other, -1, PRIME) % PRIME
        total = [(one + scale * part) % PRIME for one, part in zip(total, basis, strict=True)]
    return total


class Scripted:
    """`Randomness` that draws these field elements."""

    def __init__(self, elements: Sequence[int]) -> None:
        self._elements = list(elements)

    def __call__(self, length: int) -> bytes:
        return b"".join(one.to_bytes(33) for one in self._elements).ljust(length, b"\0")[:length]


@given(
    secret=st.binary(min_size=32, max_size=32),
    candidate=st.binary(min_size=32, max_size=32),
    threshold=st.integers(2, 7),
    seed=st.integers(0, 1 << 16),
    data=st.data(),
)
@example(bytes(32), b"\xff" * 32, 3, 0, None)
@settings(max_examples=60)
def test_any_secret_has_one_dealing_that_gives_the_same_t_minus_1_shares(
    secret: bytes, candidate: bytes, threshold: int, seed: int, data: st.DataObject | None
) -> None:
    """So the shares are equally likely under every secret: coefficients are uniform."""
    holders = range(9)
    randomness = SeededRandomness(f"dealing {seed}")
    dealt = split(SelfMaskSeed(secret), holders, threshold, SelfMaskShare, randomness)
    known = list(range(threshold - 1))
    if data is not None:
        known = data.draw(
            st.lists(st.sampled_from(holders), min_size=threshold - 1, max_size=threshold - 1,
                     unique=True)
        )  # fmt: skip
    points = [(0, int.from_bytes(candidate))]
    points += [
        (holder + 1, value) for holder, value in zip(known, values(dealt, known), strict=True)
    ]
    polynomial = coefficients(points)
    assert polynomial[-1] == int.from_bytes(candidate)
    again = split(
        SelfMaskSeed(candidate), holders, threshold, SelfMaskShare, Scripted(polynomial[:-1])
    )
    assert values(again, known) == values(dealt, known)
    # Just one: t points fix a polynomial of degree t - 1 where their Vandermonde matrix is regular.
    at = [x for x, _ in points]
    assert math.prod(b - a for i, a in enumerate(at) for b in at[i + 1 :]) % PRIME != 0
    assert (again == dealt) == (candidate == secret)


DEALINGS = 2_500


def shares_seen(secret: bytes, threshold: int, degree: int) -> Iterator[Count]:
    """t - 1 shares, and their interpolation at zero, over many dealings of one secret."""
    known, interpolation = range(threshold - 1), Interpolation(range(threshold - 1))
    seen: list[list[bytes]] = [[] for _ in range(threshold)]
    randomness = SeededRandomness(f"many dealings {secret.hex()} {degree}")
    for _ in range(DEALINGS):
        dealt = split(SelfMaskSeed(secret), range(9), degree + 1, SelfMaskShare, randomness)
        held: list[Share] = [dealt[holder] for holder in known]
        for place, share in enumerate(held):
            seen[place].append(share.expose()[1:])
        seen[-1].append(interpolation.at_zero(held) or bytes(32))
    names = [*(f"share {holder}" for holder in known), "what t - 1 shares give at zero"]
    for name, values_seen in zip(names, seen, strict=True):
        words = np.frombuffer(b"".join(values_seen), "<u8").reshape(-1, 4)
        for column in range(4):
            yield from counts(np.ascontiguousarray(words[:, column]), 64, f"{name}, {column}")


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32], ids=["zeros", "ones"])
def test_fewer_than_t_shares_are_uniform_whatever_the_secret(secret: bytes) -> None:
    """The top bit of 257 is left out: it is set once in 2^248 times."""
    assert alarms(shares_seen(secret, threshold=4, degree=3)) == []


def test_a_polynomial_of_too_low_a_degree_is_found() -> None:
    found = alarms(shares_seen(bytes(32), threshold=4, degree=2))
    assert "bits of what t - 1 shares give at zero, 0" in found


def test_shares_that_are_the_secret_are_found() -> None:
    assert "bits of share 0, 0" in alarms(shares_seen(b"\xff" * 32, threshold=4, degree=0))
