"""One round of NVFLARE's homomorphic encryption, timed for one client and for the server.

NVFLARE's own code runs unmodified, with its defaults: the TenSEAL context of HEBuilder (CKKS,
N = 8192, 60 + 40 + 40 bits, one symmetric key that all clients hold and the server does not),
HEModelEncryptor, HEInTimeAccumulateWeightedAggregator, HEModelDecryptor, and FOBS for what crosses
the wire. Clients and server are processes of their own, called one after another. A client's cost
is to encrypt, to encode, to decode the sum and to decrypt it.

All clients do the same work, so `--distinct` of them (2) run and the others' uploads repeat
theirs. The system has no dropout protocol: a silent client sends nothing. The sum is checked.

(This file is not called `nvflare.py`, because a script's folder comes first on Python's path.)

  python nvflare_he.py --n 10 --d 1000000 --tensors 60
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tenseal
from forked import Cpu, Forked, peak_rss_mb
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_opt.he.intime_accumulate_model_aggregator import (
    HEInTimeAccumulateWeightedAggregator,
)
from nvflare.app_opt.he.model_decryptor import HEModelDecryptor
from nvflare.app_opt.he.model_encryptor import HEModelEncryptor
from nvflare.fuel.utils import fobs
from nvflare.lighter.impl.he import HEBuilder

_STEPS = 10
_TOLERANCE = 1e-4


def vector(index: int, length: int) -> np.ndarray:
    """What client `index` submits."""
    return np.random.default_rng(index).uniform(-1, 1, length).astype(np.float32)


class Client:
    """One client: writes its encrypted upload to a file, reads the encrypted sum from another."""

    def __init__(self, context: bytes, index: int, length: int, tensors: int) -> None:
        self._context = context
        self._index = index
        self._length = length
        self._tensors = tensors

    def encrypt(self, upload: Path) -> dict[str, float]:
        """Protect the vector; returns CPU seconds and bytes."""
        parts = np.array_split(vector(self._index, self._length), self._tensors)
        update = DXO(
            DataKind.WEIGHT_DIFF,
            data={f"layer{number}": part for number, part in enumerate(parts)},
            meta={MetaKey.NUM_STEPS_CURRENT_ROUND: _STEPS},
        )
        encryptor = HEModelEncryptor()
        encryptor.tenseal_context = tenseal.context_from(self._context)
        encryptor.encrypt_layers = [True]  # what it sets itself when a run starts: all layers
        cpu = Cpu()
        with cpu.running():
            encrypted = encryptor.process_dxo(update, Shareable(), _heard_from("server"))
            data = fobs.dumps(encrypted.to_shareable())
        upload.write_bytes(data)
        return {"cpu_s": cpu.seconds, "bytes": len(data), "peak_rss_mb": peak_rss_mb()}

    def decrypt(self, download: Path, senders: list[int]) -> dict[str, float]:
        """Open the sum and compare it; returns CPU seconds."""
        decryptor = HEModelDecryptor()
        decryptor.tenseal_context = tenseal.context_from(self._context)
        data, cpu = download.read_bytes(), Cpu()
        with cpu.running():
            shareable = fobs.loads(data)
            total = from_shareable(shareable)
            opened = decryptor.process_dxo(total, shareable, _heard_from("server"))
        peak = peak_rss_mb()
        mean = np.zeros(self._length)
        for index in set(senders):
            mean += vector(index, self._length) * (senders.count(index) / len(senders))
        if not np.allclose(np.concatenate(list(opened.data.values())), mean, atol=_TOLERANCE):
            raise SystemExit("NVFLARE opened another sum")
        return {"cpu_s": cpu.seconds, "peak_rss_mb": peak}


class Server:
    """Adds encrypted uploads up as they come."""

    def aggregate(self, uploads: list[Path], download: Path) -> dict[str, float]:
        """Returns CPU seconds."""
        aggregator = HEInTimeAccumulateWeightedAggregator()
        aggregator.handle_event(EventType.START_RUN, FLContext())
        cpu = Cpu()
        for number, upload in enumerate(uploads):
            data = upload.read_bytes()
            with cpu.running():
                self._accept(aggregator, f"client{number}", data)
        with cpu.running():
            data = fobs.dumps(aggregator.aggregate(_in_round(FLContext())))
        download.write_bytes(data)
        return {"cpu_s": cpu.seconds, "bytes": len(data), "peak_rss_mb": peak_rss_mb()}

    def _accept(self, aggregator: Any, name: str, data: bytes) -> None:
        shareable = fobs.loads(data)
        shareable.set_peer_props({ReservedKey.IDENTITY_NAME: name})
        shareable.add_cookie(AppConstants.CONTRIBUTION_ROUND, 0)
        if not aggregator.accept(shareable, _in_round(_heard_from(name))):
            raise SystemExit("NVFLARE's aggregator did not accept an upload")


def _heard_from(name: str) -> FLContext:
    context, peer = FLContext(), FLContext()
    peer.set_prop(ReservedKey.IDENTITY_NAME, name, private=False, sticky=False)
    context.set_prop(FLContextKey.PEER_CONTEXT, peer, private=True, sticky=False)
    return context


def _in_round(context: FLContext) -> FLContext:
    context.set_prop(AppConstants.CURRENT_ROUND, 0)
    return context


def _once(served: object, method: str, *arguments: object) -> Any:
    """In a process of its own, where TenSEAL has started its threads before."""
    process = Forked(served, lambda: None)
    answer = process.ask(method, *arguments)
    process.end()
    return answer


def measure(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """One round."""
    builder = HEBuilder()
    builder.initialize(None, None)
    context = builder.get_serialized_context(is_client=True)
    alive = options.n - int(options.n * options.dropout + 1e-9)
    distinct = min(options.distinct, alive)
    senders = [number % distinct for number in range(alive)]
    clients = [Client(context, index, options.d, options.tensors) for index in range(distinct)]
    uploads = [folder / f"upload{index}" for index in range(distinct)]
    download = folder / "download"
    sent = [
        _once(client, "encrypt", upload) for client, upload in zip(clients, uploads, strict=True)
    ]
    added = _once(Server(), "aggregate", [uploads[sender] for sender in senders], download)
    opened = _once(clients[0], "decrypt", download, senders)
    return {
        "client_cpu_s": statistics.median(one["cpu_s"] for one in sent) + opened["cpu_s"],
        "server_cpu_s": added["cpu_s"],
        "bytes_up_per_param": sent[0]["bytes"] / options.d,
        "bytes_down_per_param": added["bytes"] / options.d,
        "client_peak_rss_mb": max(one["peak_rss_mb"] for one in (*sent, opened)),
        "server_peak_rss_mb": added["peak_rss_mb"],
    }


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--n", type=int, default=10)
    parser.add_argument("--d", type=int, default=1_000_000)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--reps", type=int, default=1)
    parser.add_argument("--tensors", type=int, default=1)
    parser.add_argument("--distinct", type=int, default=2)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        rounds = [measure(options, Path(folder)) for _ in range(options.reps)]
    facts = {"peer": "NVFLARE HE", "version": importlib.metadata.version("nvflare")}
    medians = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    print(json.dumps(facts | vars(options) | medians))


if __name__ == "__main__":
    main()
