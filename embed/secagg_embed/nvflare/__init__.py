"""Secure aggregation in NVIDIA FLARE: Collab API, controller and executor, a site's own filter."""

from secagg_embed.nvflare.collab import SecureAveraging, SecureClient
from secagg_embed.nvflare.controller import SecureFedAvgController
from secagg_embed.nvflare.executor import SecureExecutor
from secagg_embed.nvflare.filter import ProtectedOnly
from secagg_embed.nvflare.rounds import Averaged, Patience
from secagg_embed.nvflare.shareables import Unprotected

__all__ = [
    "Averaged",
    "Patience",
    "ProtectedOnly",
    "SecureAveraging",
    "SecureClient",
    "SecureExecutor",
    "SecureFedAvgController",
    "Unprotected",
]
