"""Streams of losses that change at a known place, and how soon and how often detectors alarm.

Made streams are independent draws of several distributions, and one whose values depend on each
other. Real ones are the losses of the shipped base on windows of Python files and, from the change
on, of C++ headers: in the order of the files, as a tenant meets them, and shuffled.

A fixed schedule stands beside: "something happens every P windows", which needs no look at any
loss. Where river (Montiel et al. 2021) is installed, three of its detectors stand beside, too.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from secagg_demo.experiments.frame import Report
from secagg_models.base import load_base
from secagg_models.online.drift import DriftLimits, DriftState, observe_all
from secagg_models.online.windows import window_losses
from secagg_models.text import SourceFile, byte_stream

Stream = NDArray[np.float64]
Detector = Callable[[Stream], list[int]]
"""Where a stream alarms, by place."""

STATED: Final = (100, 300, 1000, 3000)
"""Windows per false alarm that ours is asked for."""
PERIODS: Final = (25, 50, 100, 300, 1000)
MADE: Final = ("normal", "log-normal", "heavy-tailed", "dependent")
REAL: Final = ("text, shuffled", "text, in file order")
SHIFTS: Final = (0.5, 1.0, 2.0)
BEFORE, AFTER = 150, 300
"""Windows before and after a change."""
_DEPENDENCE = 0.5
_REAL_BEFORE, _REAL_AFTER, _REAL_CONTEXT = 400, 100, 64


def made(kind: str, generator: np.random.Generator, count: int) -> Stream:
    """Losses without a change, of unit deviation (heavy tails have none: of unit quartiles)."""
    normal: Stream = generator.normal(size=count)
    match kind:
        case "log-normal":
            return np.asarray(np.exp(0.7 * normal) / 0.98)
        case "heavy-tailed":
            return np.asarray(generator.standard_t(2, size=count) / 1.21)
        case "dependent":
            for place in range(1, count):
                normal[place] += _DEPENDENCE * normal[place - 1]
            return np.asarray(normal * np.sqrt(1 - _DEPENDENCE**2))
        case _:
            return normal


def detectors() -> dict[str, Detector]:
    """Ours at each stated rate, the schedules, and river's where it is installed."""
    found: dict[str, Detector] = {f"ranks, 1 in {stated}": _ranks(stated) for stated in STATED}
    found |= {f"schedule, every {period}": _schedule(period) for period in PERIODS}
    return found | _of_river()


def _ranks(stated: int) -> Detector:
    limits = DriftLimits(windows_per_false_alarm=stated)

    def places(stream: Stream) -> list[int]:
        state, found = DriftState(), []
        for place, loss in enumerate(stream):
            state, alarms = observe_all(state, [float(loss)], limits)
            found += [place] if alarms else []
        return found

    return places


def _schedule(period: int) -> Detector:
    return lambda stream: list(range(period - 1, len(stream), period))


def _of_river() -> dict[str, Detector]:
    try:
        river: Any = importlib.import_module("river.drift")
    except ModuleNotFoundError:
        return {}

    def places(make: Callable[[], Any]) -> Detector:
        def run(stream: Stream) -> list[int]:
            detector, found = make(), []
            for place, loss in enumerate(stream):
                detector.update(float(loss))
                found += [place] if detector.drift_detected else []
            return found

        return run

    return {
        "river ADWIN": places(river.ADWIN),
        "river Page-Hinkley": places(river.PageHinkley),
        "river KSWIN": places(lambda: river.KSWIN(seed=1)),
    }


def measure(size: Mapping[str, int], seed: int, report: Report) -> dict[str, Any]:
    """For each detector: false alarms per 1000 windows by kind, median delay by kind and shift."""
    found: dict[str, Any] = {}
    every = detectors()
    for done, (name, detector) in enumerate(every.items()):
        generator = np.random.default_rng([seed, 5])
        alarms = {
            kind: 1000 * len(detector(made(kind, generator, size["quiet"]))) / size["quiet"]
            for kind in MADE
        }
        delays = {
            f"{kind} {shift:g}": _typical_delay(detector, kind, shift, seed, size["repeats"])
            for kind in MADE
            for shift in (SHIFTS if kind == "normal" else (1.0,))
        }
        found[name] = {"false": alarms, "delay": delays}
        report(done + 1, len(every) + 1)
    streams = real_streams(seed)
    for name, detector in every.items():
        for kind, stream in streams.items():
            quiet = [place for place in detector(stream) if place < _REAL_BEFORE]
            found[name]["false"][kind] = 1000 * len(quiet) / _REAL_BEFORE
            found[name]["delay"][kind] = delay(detector(stream), _REAL_BEFORE, len(stream))
    report(1, 1)
    return found


def _typical_delay(detector: Detector, kind: str, shift: float, seed: int, repeats: int) -> float:
    waits = []
    for repeat in range(repeats):
        generator = np.random.default_rng([seed, repeat, 6])
        # Where the change lies must not suit a schedule.
        change = BEFORE + int(generator.integers(100))
        stream = made(kind, generator, change + AFTER)
        stream[change:] += shift
        waits.append(delay(detector(stream), change, len(stream)))
    return float(median(waits))


def delay(alarms: Iterable[int], change: int, end: int) -> float:
    """Windows from the change to the first alarm after it; to the end where there is none."""
    later = [place for place in alarms if place >= change]
    return float(min(later, default=end) - change)


def real_streams(seed: int) -> dict[str, Stream]:
    """The shipped base's losses on Python, then on headers: in file order, and shuffled."""
    model = load_base().model
    before = _text_losses(model, "networkx", ".py", _REAL_BEFORE, seed)
    after = _text_losses(model, "torch", ".h", _REAL_AFTER, seed)
    generator = np.random.default_rng([seed, 7])
    mixed = [generator.permutation(part) for part in (before, after)]
    return {REAL[0]: np.concatenate(mixed), REAL[1]: np.concatenate([before, after])}


def _text_losses(model: Any, package: str, suffix: str, count: int, seed: int) -> Stream:
    paths = [p for p in metadata.files(package) or [] if p.suffix == suffix]
    paths.sort(key=lambda p: hashlib.sha256(f"{seed} {p}".encode()).digest())
    files: list[SourceFile] = []
    wanted = count * (_REAL_CONTEXT + 1)
    for path in paths:
        if sum(len(file.content) for file in files) > wanted:
            break
        content = Path(str(path.locate())).read_bytes()[:4000]
        files.append(SourceFile(path.as_posix(), content))
    stream = byte_stream(package, files)
    windows = stream.held_out_windows(count, _REAL_CONTEXT)
    return window_losses(model, windows)


def rates(results: Sequence[Mapping[str, Any]], name: str, kind: str) -> list[float]:
    """False alarms per 1000 windows of one detector, by seed."""
    return [float(result[name]["false"][kind]) for result in results]


def delays(results: Sequence[Mapping[str, Any]], name: str, what: str) -> list[float]:
    """Delays of one detector, by seed."""
    return [float(result[name]["delay"][what]) for result in results]
