"""The kit's claims on transports, held by rounds as exchanges."""

import pytest

from secagg.testing.transport_conformance import TRANSPORT_CLAIMS, TransportClaim
from secagg_embed.testing import ExchangeTransport, carry_by_calls


@pytest.mark.parametrize("claim", TRANSPORT_CLAIMS)
def test_calls_as_a_transport(claim: TransportClaim) -> None:
    claim(ExchangeTransport(carry_by_calls))
