"""Our slots are SEAL's, bit for bit where doubles are exact enough to say so."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from secagg.ckks.parameters import Parameters
from secagg.ckks.seal import SealContext
from secagg.ckks.slots import slot_encoder
from secagg.errors import UsageError

RINGS = [
    Parameters(2048, (26, 25), "slots"),
    Parameters(4096, (20,) * 5, "slots"),
    Parameters(8192, (30,) * 6, "slots"),
    Parameters(16384, (29,) * 3, "slots"),
]


def encoded(
    parameters: Parameters, values: NDArray[np.float64], scale: float, error: int = 0
) -> NDArray[np.uint32]:
    encoder = slot_encoder(parameters.degree, parameters.primes)
    out = encoder.ring.new()
    encoder.encode(values, scale, np.full(parameters.degree, error, np.int8), out)
    return out


def levels(parameters: Parameters) -> NDArray[np.float64]:
    rng = np.random.default_rng(parameters.degree)
    return rng.integers(-(2**15), 2**15, parameters.width).astype(np.float64)


@pytest.mark.parametrize("parameters", RINGS, ids=lambda p: str(p.degree))
def test_levels_are_encoded_as_seal_encodes_them(parameters: Parameters) -> None:
    context = SealContext(parameters.degree, parameters.primes)
    for scale in (2.0**10, 2.0 ** parameters.scale_bits(10)):
        values = levels(parameters)
        assert (encoded(parameters, values, scale) == context.encode_slots(values, scale)).all()


def test_at_a_larger_scale_the_slots_are_those_of_the_values_to_a_doubles_precision() -> None:
    parameters = RINGS[2]
    context = SealContext(parameters.degree, parameters.primes)
    values = np.random.default_rng(1).uniform(-1, 1, parameters.width)
    decoded = context.decode_slots(encoded(parameters, values, 2.0**50), 2.0**50)
    assert np.abs(decoded - values).max() < 2e-13


def test_the_error_is_added_coefficient_by_coefficient() -> None:
    parameters = RINGS[0]
    clean, noisy = (encoded(parameters, levels(parameters), 2.0**20, e) for e in (0, -5))
    encoder = slot_encoder(parameters.degree, parameters.primes)
    for residues in (clean, noisy):
        encoder.ring.inverse(residues)
    difference = noisy.astype(np.int64) - clean
    moduli = np.array(parameters.primes)[:, None]
    assert (difference % moduli == moduli - 5).all()


@pytest.mark.parametrize(
    "values",
    [
        np.full(1024, np.nan),
        np.r_[np.zeros(1023), np.inf],
        np.full(1024, 2.0**31),  # times 2^20 it is beyond Q / 2
        np.ones(1023),
        np.ones(1025),
        np.ones((1, 1024)),
    ],
)
def test_what_no_polynomial_holds_is_refused(values: NDArray[np.float64]) -> None:
    with pytest.raises(UsageError, match=r"takes 1024 slots|not finite, or too large"):
        encoded(RINGS[0], values, 2.0**20)


def test_the_largest_constant_below_half_the_modulus_is_a_constant() -> None:
    parameters = RINGS[0]
    most = math.floor(math.log2(parameters.modulus)) - 1
    residues = encoded(parameters, np.full(1024, -(2.0**most) + 4), 1.0)
    for plane, q in zip(residues, parameters.primes, strict=True):
        assert (plane == (4 - 2**most) % q).all()
