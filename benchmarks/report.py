"""The report of a run, as Markdown: beside the peers, scheme against scheme, cost against n, d and
dropout, by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.cases import CKKS, COMMITTEE, NVFLARE, OURS, Case, Programme, Sweep
from benchmarks.measure import Results
from benchmarks.systems import NAMES, Figures

STEPS = (
    "advertise_keys",
    "share_keys",
    "acknowledge",
    "masked_input",
    "consistency_check",
    "unmask",
)
_AXES = {"n": "tenants", "schemes": "tenants", "d": "values", "dropout": "silent"}
_ALL_BITS = "bits_per_value_all_steps"
_LIMITS = (
    ("keystream_gb_s", "aes256_ctr_256_kib", "AES-256-CTR, 256 KiB at a time", "GB/s"),
    ("keystream_gb_s", "aes128_ctr_256_kib", "AES-128-CTR, 256 KiB at a time", "GB/s"),
    ("keystream_gb_s", "aes256_gcm_256_kib", "AES-256-GCM over zeros, 256 KiB at a time", "GB/s"),
    ("keystream_gb_s", "chacha20_256_kib", "ChaCha20, 256 KiB at a time", "GB/s"),
    ("memory_gb_s", "add_in_place_256_kib", "32-bit words added in place, in cache", "GB/s"),
    ("memory_gb_s", "add_in_place_128_mib", "32-bit words added in place, 128 MiB", "GB/s"),
    ("memory_gb_s", "new_128_mib", "memory touched the first time", "GB/s"),
    ("hash_gb_s", "sha256", "SHA-256", "GB/s"),
    ("fixed_us", "x25519_exchange", "X25519", "us"),
    ("fixed_us", "mlkem768_encapsulate", "ML-KEM-768, encapsulate", "us"),
    ("fixed_us", "mlkem768_decapsulate", "ML-KEM-768, decapsulate", "us"),
    ("fixed_us", "ed25519_sign", "Ed25519, sign", "us"),
    ("fixed_us", "ed25519_verify", "Ed25519, verify", "us"),
)


def markdown(programme: Programme, results: Results, plots: Sequence[Path] = ()) -> str:
    """The whole report."""
    parts = [
        _introduction(results),
        "## Beside other systems",
        _beside(results, programme.table),
        *_encrypted(results, programme.table),
        *(part for sweep in programme.sweeps for part in _section(results, sweep)),
        "## Masks, memory, secret sharing",
        _own(results),
        "## What one core can do",
        _limits(results),
        *(f"![{path.stem.replace('-', ' ')}]({path.as_posix()})" for path in plots),
    ]
    if results.left_out:
        parts += ["## Left out", "\n".join(f"- {what}" for what in results.left_out)]
    return "\n\n".join(parts) + "\n"


def _introduction(results: Results) -> str:
    loads = results.loads
    load = f" (load averages of {min(loads)} to {max(loads)} in the last run)" if loads else ""
    return f"""\
# What a round costs

Measured by `make bench` on {results.date}: {results.machine}. Process CPU, user and system, of
one client (or tenant) and of the server (or coordinator) over one whole round; medians of turns in
which the systems followed each other. Compare within a row or a case: the machine is shared{load}.

Every party is a process of its own, which has run a small round before. Left out for all systems
are sockets, databases and training. Ours has every check on and signs, verifies, seals and hashes
what the peers do not; the suite is the default, `x25519-mlkem768`. Under scheme `ckks` the whole
cohort holds the shares, above 64 tenants a committee of {COMMITTEE}."""


def _beside(results: Results, cases: Iterable[Case]) -> str:
    rows: list[Sequence[str]] = []
    for case in cases:
        systems = results.of(case)
        ours = systems.get(OURS)
        if ours is None:
            continue
        for name, one in systems.items():
            rows.append(
                (
                    str(case) if one is ours else "",
                    str(len(one.turns)),
                    f"{NAMES[name]} {one.version}",
                    _ms(one.client_s),
                    _ms(one.server_s),
                    f"{one.bytes_up:.3f}",
                    "" if one is ours else f"{one.client_s / ours.client_s:.1f}",
                    "" if one is ours else f"{one.server_s / ours.server_s:.1f}",
                )
            )
    titles = (
        "case", "turns", "system", "client CPU ms", "server CPU ms", "bytes up a value",
        "client, times ours", "server, times ours",
    )  # fmt: skip
    return _table(titles, rows)


def _encrypted(results: Results, cases: Iterable[Case]) -> Iterator[str]:
    """Scheme `ckks` beside the peer that encrypts with CKKS too, where both were measured."""
    rows: list[Sequence[str]] = []
    for case in cases:
        systems = results.of(case)
        ours, theirs = systems.get(CKKS), systems.get(NVFLARE)
        if ours is not None and theirs is not None:
            ratios = (
                (_ms(ours.client_s), _ms(theirs.client_s), theirs.client_s / ours.client_s),
                (_ms(ours.server_s), _ms(theirs.server_s), theirs.server_s / ours.server_s),
                (f"{ours.bytes_up:.3f}", f"{theirs.bytes_up:.3f}", theirs.bytes_up / ours.bytes_up),
            )
            cells = (f"{one} / {other} = {times:.1f}" for one, other, times in ratios)
            bits = (f"{ours.median(key):.2f}" for key in ("bits_per_value", _ALL_BITS))
            rows.append((str(case), *cells, *bits))
    if not rows:
        return
    yield "## Scheme ckks beside NVFLARE HE"
    yield (
        "Ours / theirs = times ours. All bytes that a client sends are counted, on both sides; "
        "bits are ours, of the upload and of all steps."
    )
    titles = (
        "case", "client CPU ms", "server CPU ms", "bytes up a value", "bits a value",
        "bits, all steps",
    )  # fmt: skip
    yield _table(titles, rows)


def _section(results: Results, sweep: Sweep) -> Iterator[str]:
    return _schemes(results, sweep) if sweep.name == "schemes" else _swept(results, sweep)


def _schemes(results: Results, sweep: Sweep) -> Iterator[str]:
    """Masking and ckks against n, and where the one becomes cheaper than the other."""
    both = [case for case in sweep.cases if {OURS, CKKS} <= results.of(case).keys()]
    if not both:
        return
    yield f"## Scheme against scheme ({sweep.title})"
    yield "\n".join(
        f"- {what}: {_crossing_in_words(results, both, cost)}" for what, cost in MEASURES.items()
    )
    yield (
        "Masking / ckks: ms, and bytes up a value over all steps. `holder`: one of those who hold "
        "shares, where not all do."
    )
    rows = [_scheme_row(case, results.of(case)) for case in both]
    titles = (
        "tenants", "tenant", "holder", "of which masked_input", "coordinator", "bytes up a value",
    )  # fmt: skip
    yield _table(titles, rows)


def _scheme_row(case: Case, systems: Mapping[str, Figures]) -> Sequence[str]:
    masking, ckks = systems[OURS], systems[CKKS]
    pairs = [
        (masking.client_s, ckks.client_s),
        (masking.client_s, ckks.median("holder_cpu_s")),
        tuple(one.by_step("tenant")["masked_input"] for one in (masking, ckks)),
        (masking.server_s, ckks.server_s),
    ]
    cells = (f"{_ms(one)} / {_ms(other)}" for one, other in pairs)
    holders = f" (committee of {case.committee})" if case.committee else ""
    return f"{case.tenants:,}{holders}", *cells, f"{masking.bytes_up:.3f} / {ckks.bytes_up:.3f}"


Measure = Callable[[Figures], float]
MEASURES: dict[str, Measure] = {
    "a tenant's CPU": lambda one: one.client_s,
    "the coordinator's CPU": lambda one: one.server_s,
}


def break_even(results: Results, cases: Sequence[Case], cost: Measure) -> float | None:
    """The n from which `ckks` is the cheaper one; a straight line between measured ones.

    None if one of the schemes is cheaper at all of them; of several crossings the last.
    """
    points = [
        (case.tenants, cost(systems[CKKS]) - cost(systems[OURS]))
        for case in cases
        for systems in (results.of(case),)
    ]
    for (n, more), (next_n, less) in reversed(list(pairwise(points))):
        if more > 0 >= less:
            return n + (next_n - n) * more / (more - less)
    return None


def _crossing_in_words(results: Results, cases: Sequence[Case], cost: Measure) -> str:
    crossing = break_even(results, cases, cost)
    if crossing is not None:
        return f"`ckks` is the cheaper scheme from n = {crossing:.0f} on (between measured n)"
    last = results.of(cases[-1])
    cheaper = "ckks" if cost(last[CKKS]) <= cost(last[OURS]) else "masking"
    return f"`{cheaper}` is the cheaper scheme at every n that was measured"


def _swept(results: Results, sweep: Sweep) -> Iterator[str]:
    cases = [case for case in sweep.cases if results.of(case)]
    yield f"## Cost against {sweep.name} ({sweep.title})"
    names = [name for name in NAMES if any(name in results.of(case) for case in cases)]
    rows: list[Sequence[str]] = []
    for case in cases:
        systems = results.of(case)
        cells = [_cell(systems.get(name)) for name in names]
        rows.append((_point(sweep, case), *cells))
    yield "Client / server, ms."
    yield _table((_AXES[sweep.name], *(NAMES[name] for name in names)), rows)
    for role, whose in (("tenant", "A tenant"), ("coordinator", "The coordinator")):
        yield f"{whose} by step, ms."
        rows = [
            (_point(sweep, case), *(_ms(by_step[step]) for step in STEPS))
            for case in cases
            for by_step in (results.of(case)[OURS].by_step(role),)
        ]
        yield _table((_AXES[sweep.name], *STEPS), rows)


def _own(results: Results) -> str:
    text = (
        "`fraction` is keystream made and added over what AES-256-CTR alone reaches at that "
        "moment. `sharing` is CPU in Shamir's scheme, of a tenant and the coordinator. `k` "
        "holders have a share of each tenant's secrets, of which `t` open it."
    )
    rows = [
        (
            str(case),
            NAMES[name].rpartition(" ")[2],
            f"{ours.turns[-1]['neighbours']}, {ours.turns[-1]['share_threshold']}",
            f"{ours.median('keystream_gb_s'):.2f}",
            f"{ours.median('keystream_fraction'):.2f}",
            _ms(ours.median("shamir_s")),
            f"{ours.client_mb:,.0f}",
            f"{ours.server_mb:,.0f}",
            f"{ours.median('process_cpu_s'):,.2f}",
        )
        for case in results.cases()
        for name, ours in results.of(case).items()
        if name in (OURS, CKKS)
    ]
    titles = (
        "case", "scheme", "k, t", "GB/s", "fraction", "sharing ms", "tenant MiB", "coordinator MiB",
        "all parties s",
    )  # fmt: skip
    return f"{text}\n\n{_table(titles, rows)}"


def _limits(results: Results) -> str:
    rows = [
        (what, f"{results.limits[group][name]:,.2f} {unit}")
        for group, name, what, unit in _LIMITS
        if name in results.limits.get(group, {})
    ]
    return _table(("what", "one core"), rows)


def _point(sweep: Sweep, case: Case) -> str:
    value = sweep.of(case)
    return f"{value:.0%}" if sweep.name == "dropout" else f"{value:,}"


def _cell(one: Figures | None) -> str:
    return "" if one is None else f"{_ms(one.client_s)} / {_ms(one.server_s)}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---" if title in ("case", "system", "scheme", "what") else "---:" for title in titles]
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, rule, *rows))
