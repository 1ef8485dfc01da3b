"""Which strategies can work on an average alone."""

from __future__ import annotations

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from secagg.errors import ConfigError

_EACH_UPDATE = (
    flower.Bulyan,
    flower.FedMedian,
    flower.FedTrimmedAvg,
    flower.Krum,
    flower.MultiKrum,
    flower.QFedAvg,
)
_TREES = (flower.FedXgbBagging, flower.FedXgbCyclic)
_PRIVACY = (
    flower.DifferentialPrivacyClientSideAdaptiveClipping,
    flower.DifferentialPrivacyClientSideFixedClipping,
    flower.DifferentialPrivacyServerSideAdaptiveClipping,
    flower.DifferentialPrivacyServerSideFixedClipping,
)


def require_averaging(strategy: Strategy) -> None:
    """Refuse the strategies of Flower that need more than the mean update.

    A strategy of one's own is taken at its word: it gets one reply a round, with the mean.

    Raises:
        ConfigError: says what this one needs.
    """
    name = type(strategy).__name__
    if not isinstance(strategy, Strategy):
        raise ConfigError(f"{name} is no strategy of flwr.serverapp; give one of those")
    if isinstance(strategy, _EACH_UPDATE):
        raise ConfigError(
            f"{name} compares single updates, and under secure aggregation nobody sees one; use a "
            "strategy that averages (FedAvg, FedAvgM, FedProx, FedAdam, FedAdagrad, FedYogi)"
        )
    if isinstance(strategy, _TREES):
        raise ConfigError(f"{name} collects trees, and a sum of updates has none")
    if isinstance(strategy, _PRIVACY):
        raise ConfigError(
            f"{name} clips or counts single updates at the server, or checks each one's weight; "
            "nobody sees one here, and its accounting would not hold"
        )
