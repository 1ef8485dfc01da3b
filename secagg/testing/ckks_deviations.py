"""Tenants that deviate as only scheme `ckks` lets them: keys, ciphertexts and sums of shares.

    dealings        OtherKey, LonelyShare
    uploads         BadResidue, RandomCiphertext
    answers         ZeroSum, DoubledSum, TruncatedSum, SumOfPrimes, OutsiderSum

Where a wrong value is no proof, nobody is named with evidence: a sum that is not the others' may
have been changed by whoever says that it received it (C45). Malformed ones are proof (C25).

Not here: what both schemes know (`deviations.py`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from secagg.messages import Unmask
from secagg.scheme import RoundSecrets
from secagg.secret import KeyShare, SelfMaskSeed, Share
from secagg.testing.deviations import (
    DeviatingDealer,
    DeviatingTenant,
    PoisonedUpload,
    RandomUpload,
    WrongAnswers,
    flipped,
)
from secagg.testing.randomness import SeededRandomness
from secagg.testing.tenant import SimulatedTenant

# ---------------------------------------------------------------------------- dealings


class OtherKey(DeviatingDealer):
    """Shares another key than it encrypts under, by good polynomials: the sum does not open."""

    def shared(self, secrets: RoundSecrets) -> RoundSecrets:
        """See the class."""
        return replace(secrets, self_mask=SelfMaskSeed.draw(self.randomness))


class LonelyShare(DeviatingDealer):
    """Deals one holder a share that is committed to, and on no polynomial with the others'."""

    def shares(self, holder: int, honest: tuple[Share, ...]) -> tuple[Share, ...]:
        """See the class."""
        (share,) = honest
        first, rest = share.expose()[:1], share.expose()[1:]
        return (KeyShare(flipped(first) + rest),) if self.is_victim(holder) else honest


# ---------------------------------------------------------------------------- uploads


class SpoiltUpload(DeviatingTenant):
    """Changes residues of what it uploads; `number` says in which leaf."""

    number = -1

    def submit(self) -> list[bytes]:
        """See the class."""
        messages = super().submit()
        upload = self.running._submitted()
        honest, spoilt = upload.leaf, upload.places[self.number]

        def leaf(number: int) -> bytes:
            data = honest(number)
            return self.spoil(data) if upload.places[number] == spoilt else data

        upload.leaf = leaf  # type: ignore[method-assign]
        return messages

    def spoil(self, leaf: bytes) -> bytes:
        """The leaf as it leaves."""
        return leaf


class BadResidue(SpoiltUpload):
    """One residue of its last leaf is not below its prime (C44): it is a dropout."""

    def spoil(self, leaf: bytes) -> bytes:
        """All ones where the last plane's last residue ends."""
        return leaf[:-4] + b"\xff" * 4


class RandomCiphertext(SpoiltUpload):
    """Uploads random residues below their primes: the sum does not open."""

    number = 0

    def submit(self) -> list[bytes]:
        """What its levels were cannot be said."""
        messages = super().submit()
        self.levels = None
        return messages

    def spoil(self, leaf: bytes) -> bytes:
        """See the class."""
        from secagg.ckks.scheme import wire_of

        wire = wire_of(self.running.plan)
        draw = SeededRandomness(f"random ciphertext {self.name}")
        words = np.frombuffer(draw(8 * wire.degree * len(wire.primes)), "<u8")
        moduli = np.array(wire.primes, np.uint64)[:, None]
        residues = words.reshape(len(wire.primes), wire.degree) % moduli
        return wire.pack(residues.astype(np.uint32))


# ---------------------------------------------------------------------------- answers


class ZeroSum(WrongAnswers):
    """Answers with zeros, which are a sum of shares in form."""

    def _answering(self, body: Unmask) -> Unmask:
        return replace(body, key_sum=bytes(len(body.key_sum)))


class DoubledSum(WrongAnswers):
    """Answers with twice its sum of shares."""

    def _answering(self, body: Unmask) -> Unmask:
        from secagg.ckks import sharing
        from secagg.ckks.field import canonical

        if not body.key_sum:
            return body
        elements = sharing.parse_elements(body.key_sum, len(body.key_sum) * 8 // 31)
        twice = canonical(2 * elements.astype(np.uint64))
        return replace(body, key_sum=sharing.pack_elements(twice))


class TruncatedSum(WrongAnswers):
    """Answers with a sum of shares that is a byte short."""

    def _answering(self, body: Unmask) -> Unmask:
        return replace(body, key_sum=body.key_sum[:-1])


class SumOfPrimes(WrongAnswers):
    """Answers with elements that are not below the field's prime."""

    def _answering(self, body: Unmask) -> Unmask:
        return replace(body, key_sum=b"\xff" * len(body.key_sum))


class OutsiderSum(WrongAnswers):
    """Answers with a sum of shares from outside the committee; inside it is honest."""

    def _answering(self, body: Unmask) -> Unmask:
        return body if body.key_sum else replace(body, key_sum=bytes(16))


WRONG_SUMS: tuple[type[SimulatedTenant], ...] = (WrongAnswers, ZeroSum, DoubledSum)
"""Well-formed sums that are not the right ones: left out where t right ones can be told."""

UNOPENABLE: tuple[type[SimulatedTenant], ...] = (
    OtherKey, PoisonedUpload, RandomUpload, RandomCiphertext,
)  # fmt: skip
"""What is in the sum when it shows: nobody can say whose it is."""

CKKS_DEVIATIONS: tuple[type[SimulatedTenant], ...] = (
    OtherKey, LonelyShare, BadResidue, RandomCiphertext, ZeroSum, DoubledSum,
    TruncatedSum, SumOfPrimes, OutsiderSum,
)  # fmt: skip
"""Those of this module."""
