"""Scheme `ckks` as the state machine takes it: one-time keys that add up as the ciphertexts do.

    c_ij = m_ij + e_ij - a_j s_i        sum over U3:  sum_i c_ij + a_j S = sum_i m_ij + sum_i e_ij

a_j is public and follows from the round's context; s_i is drawn for this round alone and shared
with the committee; S = sum_i s_i is all that anybody ever learns of the keys. Each (c_ij, a_j) is
a CKKS ciphertext under s_i in SEAL's own form, and their sum is one under S.

Source: Cheon, Kim, Kim, Song, "Homomorphic Encryption for Arithmetic of Approximate Numbers"
(ASIACRYPT 2017), section 3; keys that add up: LERNA (ASIACRYPT 2023), section 4. Security rests on
RLWE with the hint (S, sum_i e_ij): docs/ckks.md.

Deliberately not here: who is a survivor and what may be released when (the state machine).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from secagg.ckks import sharing
from secagg.ckks.field import ELEMENT_BITS, Elements
from secagg.ckks.gaussian import GaussianStream
from secagg.ckks.ntt import Factor, Ring, ring
from secagg.ckks.packings import Packing, packing_of, parameters_of
from secagg.ckks.parameters import TAIL
from secagg.ckks.public import PublicPolynomials
from secagg.ckks.residues import Wire, wire
from secagg.ckks.slots import DitherStream
from secagg.edges import Edges
from secagg.encoding import Levels
from secagg.errors import FaultyParticipantOrCoordinator, MalformedMessage, ProtocolError, Step
from secagg.messages import AdvertiseKeys, ShareKeysBody, Unmask
from secagg.packing import packed_size
from secagg.plan import RoundPlan
from secagg.scheme import (
    DealtPad,
    LeafPlace,
    Opened,
    Opening,
    ProtectionSecrets,
    RoundSecrets,
    SharedSecrets,
    Sum,
)
from secagg.secret import KeyShare, Randomness, Seed, SelfMaskSeed, Share

KEY = 0
_MOST_CHOICES = 5000
_UNMASK = Step.UNMASK


def one_time_key(plan: RoundPlan, seed: SelfMaskSeed) -> NDArray[np.int32]:
    """s_i, (N,) int32, from the seed that a participant drew for this round alone."""
    secret = np.empty(parameters_of(plan).degree, np.int32)
    stream = GaussianStream(seed, context=plan.context, purpose="secret", degree=len(secret))
    stream.write(0, secret)
    return secret


class _Room:
    """What protecting and opening have in common: the ring, the public polynomials, the packing."""

    def __init__(self, plan: RoundPlan) -> None:
        parameters = parameters_of(plan)
        self.ring: Ring = ring(parameters.degree, parameters.primes)
        self.public = PublicPolynomials(plan.context, parameters.degree, parameters.primes)
        self.packing: Packing = packing_of(plan)
        self.wire: Wire = wire_of(plan)
        self._spare: list[Sum] = []

    def factor(self, secret: NDArray[np.int32], negative: bool) -> Factor:
        """A secret polynomial, prepared for products in NTT form."""
        moduli = np.array(self.ring.primes, np.int32)[:, None]
        residues = np.remainder(secret, moduli).astype(np.uint32)
        self.ring.forward(residues)
        return (self.ring.negative_factor if negative else self.ring.factor)(residues)

    def add_product(self, residues: Sum, number: int, factor: Factor) -> None:
        """residues += a_number * factor, in NTT form."""
        try:
            public = self._spare.pop()  # new memory costs more than what is done in it
        except IndexError:  # one for each thread that opens at this moment
            public = self.ring.new()
        self.public.expand(number, public)
        self.ring.multiply_add(residues, public, factor)
        self._spare.append(public)


def wire_of(plan: RoundPlan) -> Wire:
    """How one polynomial lies on the wire."""
    parameters = parameters_of(plan)
    return wire(parameters.degree, parameters.primes, parameters.modulus_bits)


class Encryptor:
    """One participant's ciphertexts. See `secagg.scheme.Protector`."""

    def __init__(self, plan: RoundPlan, seed: SelfMaskSeed) -> None:
        self._room = _Room(plan)
        self._minus_key = self._room.factor(one_time_key(plan, seed), negative=True)
        degree = self._room.ring.degree
        self._errors = GaussianStream(seed, context=plan.context, purpose="errors", degree=degree)
        self._error = np.empty(degree, np.int8)
        self._residues = self._room.ring.new()
        self._dithers = DitherStream(seed, context=plan.context, degree=degree)
        self._dither = np.zeros(degree)

    def leaf(self, levels: Levels, place: LeafPlace) -> bytes:
        """c = m + e - a s, packed."""
        room, residues = self._room, self._residues
        self._errors.write(place.chunk, self._error)
        if room.packing.dithers:
            self._dithers.write(place.chunk, self._dither)
        room.packing.encode(levels, self._error, self._dither, place, residues)
        room.add_product(residues, place.chunk, self._minus_key)
        return room.wire.pack(residues)


class CiphertextSums:
    """Sums of ciphertexts. See `secagg.scheme.LeafSums`."""

    def __init__(self, plan: RoundPlan) -> None:
        self._wire = wire_of(plan)
        packing_of(plan).require()  # what will be needed to open is there before uploads come

    def zero(self, place: LeafPlace) -> Sum:
        """(L, N) uint32."""
        return np.zeros((len(self._wire.primes), self._wire.degree), np.uint32)

    def add(self, total: Sum, leaf: bytes | memoryview, place: LeafPlace) -> None:
        """Residue by residue; each has to be below its prime (C44)."""
        self._wire.add(total, leaf)

    def take_out(self, total: Sum, leaf: bytes | memoryview, place: LeafPlace) -> None:
        """As `add`, with the other sign."""
        self._wire.subtract(total, leaf)


class SumDecryptor:
    """Opens sums of ciphertexts with S, and nothing else. See `secagg.scheme.Opener`."""

    def __init__(
        self, plan: RoundPlan, secret: NDArray[np.int32], survivors: int, left_out: tuple[int, ...]
    ) -> None:
        self.left_out = left_out
        self._room = _Room(plan)
        self._key = self._room.factor(secret, negative=False)
        self._most_noise = TAIL * survivors

    def open(self, total: Sum, place: LeafPlace) -> tuple[NDArray[np.int64], int]:
        """m + e = c + a S; a wrong S gives noise beyond what honest errors add up to."""
        self._room.add_product(total, place.chunk, self._key)
        return self._room.packing.decode(total, place, self._most_noise)


@dataclass(frozen=True, slots=True)
class _Dealt:
    """See `secagg.scheme.DealtShares`."""

    context: bytes
    dealer: int
    dealing: sharing.Dealing
    shares: Mapping[int, tuple[Share, ...]]

    def commitment(self, leaves_root: bytes) -> bytes:
        """The polynomials of the degree check; its challenge is fixed by the leaves (C42)."""
        degree = self.dealing.shares.shape[1] - sharing.CHECKS
        rho = sharing.challenge(self.context, self.dealer, (leaves_root,), degree)
        return sharing.encode_check(sharing.check_polynomial(self.dealing, rho))


class Ckks:
    """See `secagg.scheme.Scheme`."""

    share_kinds: ClassVar[Sequence[type[Share]]] = (KeyShare,)
    has_mask_keys: ClassVar[bool] = False
    answers_are_proven: ClassVar[bool] = False

    def places(self, plan: RoundPlan) -> tuple[LeafPlace, ...]:
        """Polynomial after polynomial; the last one carries the weight too."""
        parameters, length = parameters_of(plan), plan.layout.size
        step = parameters.leaf_values(plan.n, plan.ring_bits)
        number = parameters.polynomials(length, plan.n, plan.ring_bits, plan.weight_ring_bits)
        return tuple(
            LeafPlace(
                0, chunk, start, min(step, length - start) + last, plan.ring_bits,
                parameters.leaf_bytes, weighs=last,
            )
            for chunk in range(number)
            for start, last in [(min(chunk * step, length), chunk == number - 1)]
        )  # fmt: skip

    def share_bytes(self, plan: RoundPlan) -> int:
        """N + 4 elements of 31 bits."""
        return packed_size(parameters_of(plan).degree + sharing.CHECKS, ELEMENT_BITS)

    def commitment_bytes(self, plan: RoundPlan) -> int:
        """The check polynomials' coefficients."""
        return 4 * sharing.CHECKS * plan.share_threshold

    def deal(
        self,
        plan: RoundPlan,
        index: int,
        secrets: RoundSecrets,
        holders: Sequence[int],
        threshold: int,
        randomness: Randomness,
    ) -> _Dealt:
        """t-of-c shares of the one-time key, coefficient by coefficient."""
        key = one_time_key(plan, secrets.self_mask)
        dealing = sharing.split(key, holders, threshold, Seed.draw(randomness), plan.context)
        packed = {
            holder: (KeyShare(sharing.pack_elements(row)),)
            for holder, row in zip(holders, dealing.shares, strict=True)
        }
        return _Dealt(plan.context, index, dealing, packed)

    def check_shares(
        self,
        plan: RoundPlan,
        dealer: int,
        holder: int,
        body: ShareKeysBody,
        shares: Sequence[Share],
    ) -> None:
        """C42: the share lies on the polynomials by which all others lie on one of degree t - 1."""
        degree = parameters_of(plan).degree
        share = sharing.parse_elements(shares[KEY].expose(), degree + sharing.CHECKS)
        check = sharing.parse_check(body.secret_commitment, plan.share_threshold)
        rho = sharing.challenge(plan.context, dealer, (body.leaves_root,), degree)
        if not sharing.holds(share, holder, rho, check):
            raise MalformedMessage(
                f"the share of participant {dealer} is not on its polynomials",
                step=Step.SHARE_KEYS,
            )

    def protection(
        self,
        plan: RoundPlan,
        index: int,
        secrets: SharedSecrets,
        keys: Mapping[int, AdvertiseKeys],
        edges: Edges,
        pads: Mapping[tuple[int, int], DealtPad],
    ) -> ProtectionSecrets:
        """The seed of key and errors; nobody else's keys are needed."""
        return ProtectionSecrets(secrets.self_mask, ())

    def protector(self, plan: RoundPlan, index: int, secrets: ProtectionSecrets) -> Encryptor:
        """Encrypts under this participant's one-time key."""
        return Encryptor(plan, secrets.self_mask)

    def leaf_sums(self, plan: RoundPlan) -> CiphertextSums:
        """Modulo the primes."""
        return CiphertextSums(plan)

    def answer(
        self,
        plan: RoundPlan,
        view: bytes,
        survivors: frozenset[int],
        held: Mapping[int, Sequence[Opened]],
    ) -> Unmask:
        """The sum over U3 of the shares held; nothing from those outside the committee."""
        if not held:
            return Unmask(view, ())
        if missing := survivors - held.keys():  # C43
            raise ProtocolError(
                f"shares of participants {sorted(missing)} of U3 are missing", step=_UNMASK
            )
        count = parameters_of(plan).degree + sharing.CHECKS
        shares = [
            sharing.parse_elements(held[dealer][KEY].share.expose(), count)
            for dealer in sorted(survivors)
        ]
        return Unmask(view, (), sharing.pack_elements(sharing.add_shares(shares)))

    def check_sum_of_shares(self, plan: RoundPlan, holds: bool, key_sum: bytes) -> None:
        """N elements of the field, or nothing from those outside the committee (C25)."""
        if holds:
            sharing.parse_elements(key_sum, parameters_of(plan).degree)
        elif key_sum:
            raise MalformedMessage("a sum of shares from outside the committee", step=_UNMASK)

    def expected_kind(self, dealer: int, survivors: frozenset[int]) -> int:
        """There is one kind, and it is released in sums only."""
        return KEY

    def released(self, members: Sequence[int], shares: Mapping[int, Sized], sums: Sized) -> int:
        """As many sums as there are."""
        return len(sums)

    def candidates(self, plan: RoundPlan, opening: Opening) -> Iterator[SumDecryptor]:
        """By the S that the most sums agree on; else by each small S that some t of them give.

        Up to some thousand choices of t sums are tried, which is every choice in small cohorts:
        there any t right sums open, however many wrong ones came with them. No S comes twice.
        """
        tried: set[bytes] = set()
        with suppress(FaultyParticipantOrCoordinator):
            most = sum_of_keys(plan, opening)
            yield SumDecryptor(plan, most.secret, len(opening.survivors), most.wrong)
            if not most.wrong:
                return  # all agree: any t of them give this S
            tried.add(most.secret.tobytes())
        holders, survivors = sorted(opening.sums), len(opening.survivors)
        if math.comb(len(holders), plan.share_threshold) > _MOST_CHOICES:
            return
        sums = _parsed_sums(plan, opening)
        for chosen in combinations(holders, plan.share_threshold):
            key = _opened(plan, sums, chosen, survivors)
            if isinstance(key, sharing.Opened) and (secret := key.secret.tobytes()) not in tried:
                tried.add(secret)
                agree = (
                    isinstance(_opened(plan, sums, {*chosen, one}, survivors), sharing.Opened)
                    for one in holders
                )
                wrong = tuple(one for one, agrees in zip(holders, agree, strict=True) if not agrees)
                yield SumDecryptor(plan, key.secret, survivors, wrong)

    def opener(self, plan: RoundPlan, opening: Opening) -> SumDecryptor:
        """Decrypts with S (C45)."""
        key = sum_of_keys(plan, opening)
        return SumDecryptor(plan, key.secret, len(opening.survivors), key.wrong)


def sum_of_keys(plan: RoundPlan, opening: Opening) -> sharing.Opened:
    """S from the sums of shares, and whose were left out.

    Raises:
        FaultyParticipantOrCoordinator: they are not on one polynomial, or S is no sum of keys.
    """
    sums = _parsed_sums(plan, opening)
    opened = _opened(plan, sums, sums, len(opening.survivors))
    if not isinstance(opened, sharing.Opened):
        raise FaultyParticipantOrCoordinator(
            f"{len(sums)} sums of shares do not open: {opened}", step=_UNMASK
        )
    return opened


def _opened(
    plan: RoundPlan, sums: Mapping[int, Elements], chosen: Iterable[int], survivors: int
) -> sharing.Opened | sharing.Unopenable:
    some = {holder: sums[holder] for holder in chosen}
    return sharing.open_sums(some, plan.share_threshold, TAIL * survivors)


def _parsed_sums(plan: RoundPlan, opening: Opening) -> dict[int, Elements]:
    degree = parameters_of(plan).degree
    return {holder: sharing.parse_elements(data, degree) for holder, data in opening.sums.items()}
