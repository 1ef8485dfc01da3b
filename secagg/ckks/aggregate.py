"""The sum of a round's uploads as what it is: CKKS ciphertexts under the sum of the keys.

For those who compute on the encrypted sum before they open it, with SEAL or TenSEAL (packing
`slots`): docs/tutorial-encrypted-sums.md. A round's `Result` needs none of this.

What it does not imply: that anybody is kept from opening. Whoever has the transcript has S.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from secagg.ckks.packings import parameters_of
from secagg.ckks.parameters import Parameters
from secagg.ckks.public import PublicPolynomials
from secagg.ckks.scheme import CiphertextSums, sum_of_keys
from secagg.recompute import Uploads, upload_leaf
from secagg.scheme import LeafPlace, leaf_places
from secagg.transcript import Verified

Residues = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class EncryptedSum:
    """`key` is S, (N,) int32; `scale` is that of slots (1.0 with packing `coefficients`)."""

    verified: Verified
    uploads: Uploads
    parameters: Parameters
    scale: float
    key: NDArray[np.int32] = field(repr=False)

    def ciphertexts(self) -> Iterator[tuple[LeafPlace, Residues, Residues]]:
        """(place, c, a) of each polynomial: c and a are (L, N) in NTT form, and c + a S opens.

        Raises:
            ProtocolError: a leaf is not the one that its participant signed (C40).
        """
        plan, parameters = self.verified.plan, self.parameters
        sums = CiphertextSums(plan)
        public = PublicPolynomials(plan.context, parameters.degree, parameters.primes)
        for number, place in enumerate(leaf_places(plan)):
            total, a = sums.zero(place), sums.zero(place)
            for survivor in self.verified.survivors:
                sums.add(total, upload_leaf(self.verified, self.uploads, survivor, number), place)
            public.expand(place.chunk, a)
            yield place, total, a


def encrypted_sum(verified: Verified, uploads: Uploads) -> EncryptedSum:
    """The encrypted sum of a round of scheme `ckks`, from its transcript and its uploads.

    Raises:
        UsageError: a round of another scheme.
        FaultyParticipantOrCoordinator: the transcript's sums of shares do not open.
    """
    plan, parameters = verified.plan, parameters_of(verified.plan)
    scale = 2.0 ** parameters.scale_bits(plan.n)
    key = sum_of_keys(plan, verified.opening).secret
    return EncryptedSum(verified, uploads, parameters, scale, key)
