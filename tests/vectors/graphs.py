"""Sparse graphs: parameters, what they guarantee, and the draw of neighbours."""

from __future__ import annotations

import math
from collections.abc import Iterator

from secagg import graph
from tests.vectors.cases import Case, case, operation, stream


@operation("graph.draw")
def draw(n: int, index: int, k: int, randomness: str) -> list[int]:
    drawn = stream(randomness.removeprefix("shake "))
    return list(graph.draw_neighbours(n, index, k, drawn))


@operation("graph.choose")
def choose(n: int, f: int, silent: int) -> dict[str, int]:
    k, t = graph.choose(n, f, silent)
    return {"k": k, "t": t}


@operation("graph.threshold")
def threshold(n: int, f: int, k: int) -> int:
    return graph.threshold(n, f, k)


@operation("graph.guarantee")
def guarantee(n: int, f: int, k: int, t: int, least: int) -> dict[str, int | str]:
    found = graph.guarantee(n, f, k, t, least)
    bits = found.one_sum_bits
    return {
        "colluding_neighbours": found.colluding_neighbours,
        "smallest_part": found.smallest_part,
        "one_sum_bits_rounded_down": "inf" if bits == math.inf else math.floor(bits),
    }


def graph_cases() -> Iterator[Case]:
    for n, index, k in (
        (5, 0, 2),
        (5, 4, 4),
        (8, 3, 4),
        (257, 256, 20),
        (1000, 500, 52),
        (3, 1, 1),
    ):
        yield case(f"{k} of {n} for {index}", "graph.draw", n=n, index=index, k=k,
                   randomness="shake neighbours")  # fmt: skip
    for n, index, k in ((5, 5, 2), (5, 0, 5), (5, 0, 0)):
        yield case(f"{k} of {n} for {index}", "graph.draw", n=n, index=index, k=k,
                   randomness="shake neighbours")  # fmt: skip
    for n, f, silent in ((300, 30, 30), (1000, 50, 50), (1000, 100, 100), (1000, 333, 100),
                         (5000, 500, 500), (10, 1, 1)):  # fmt: skip
        yield case(f"n = {n}, f = {f}, {silent} silent", "graph.choose", n=n, f=f, silent=silent)
    yield case("too many silent", "graph.choose", check="C29", n=100, f=40, silent=30)
    for n, f, k in ((20, 2, 12), (40, 4, 20), (1000, 100, 96)):
        yield case(f"n = {n}, f = {f}, k = {k}", "graph.threshold", n=n, f=f, k=k)
    for n, f, k, t, least in (
        (8, 0, 4, 3, 5), (20, 2, 12, 8, 12), (40, 4, 20, 13, 23), (1000, 100, 96, 67, 551),
        (1000, 100, 60, 40, 551), (10, 3, 4, 3, 7),
    ):  # fmt: skip
        yield case(f"n = {n}, f = {f}, ({k}, {t})", "graph.guarantee", n=n, f=f, k=k, t=t,
                   least=least)  # fmt: skip
    yield case("t above k", "graph.guarantee", check="C29", n=20, f=2, k=5, t=6, least=12)
