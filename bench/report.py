"""From samples to the table: what was aimed at, what was measured, and whether it was met. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.feed import SYMBOLS
from bench.measure import FEW_CHANGED, Samples
from bench.peers import ORM_RECORDS, PEERS, STEPS, Peer

MEMORY_BASE_BYTES = 60 * 2**20
MEMORY_BYTES_PER_RECORD = 64
ENGINE_RUNS = ("first load", "nothing changed", FEW_CHANGED, "every row changed")
STEP_NAMES = {"first": "first load", "same": "nothing changed", "few": FEW_CHANGED}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of the table; `met` is None where there is no target."""

    what: str
    target: str
    measured: str
    met: bool | None = None


def lines(samples: Samples, records: int) -> list[Line]:
    """Return every line that the samples have values for."""
    made = [
        *_speed(samples, records),
        *_short_runs(samples, records),
        *_latency(samples, records),
        *_scaling(samples),
        *_memory(samples),
        *_peers(samples, records),
    ]
    return [line for line in made if line is not None]


def _speed(samples: Samples, records: int) -> Iterator[Line | None]:
    at_most = {
        "first load": ("bare copy", "a bare binary COPY", 1.25),
        "nothing changed": ("download and fingerprints out", "the download thrown away + the fingerprints out", 2.0),
        FEW_CHANGED: ("nothing changed", "nothing changed", 2.0),
        "every row changed": ("first load", "the first load", 3.0),
    }
    for name, (base, words, limit) in at_most.items():
        yield _ratio(name, words, limit, samples.median(name, records), samples.median(base, records))
    rows_written = samples.worst("nothing changed: rows written", records)
    yield _limit("nothing changed: rows written", "0", rows_written, 1, "{:,.0f}")
    wal = samples.median("nothing changed: WAL bytes", records)
    yield _limit("nothing changed: WAL", "under 100 KB", _scaled(wal, 1e-3), 100, "{:,.1f} KB")
    early = samples.median("nothing changed, right after the first load: WAL bytes", records)
    if early is not None:
        yield Line(
            what="the same right after the first load, before any vacuum", target="", measured=f"{early / 1e3:,.1f} KB"
        )


def _short_runs(samples: Samples, records: int) -> Iterator[Line | None]:
    for what, name, size, limit in (
        ("not modified (304)", "not modified", records, 20),
        (f"{SYMBOLS:,} symbols, all prices changed", "symbols, all changed", SYMBOLS, 60),
        (f"{SYMBOLS:,} symbols, nothing changed", "symbols, nothing changed", SYMBOLS, 30),
    ):
        yield _limit(what, f"under {limit} ms", _scaled(samples.median(name, size), 1e3), limit, "{:.1f} ms")


def _latency(samples: Samples, records: int) -> Iterator[Line | None]:
    at_rest = samples.percentile(99, "/ at rest: seconds", records)
    if at_rest is not None:
        yield Line(what="p99 of `/` at rest", target="", measured=f"{at_rest * 1e3:.1f} ms")
    for name in ENGINE_RUNS:
        p99 = samples.percentile(99, f"/ during {name}: seconds", records)
        yield _limit(f"p99 of `/` during: {name}", "under 50 ms", _scaled(p99, 1e3), 50, "{:.1f} ms")


def _scaling(samples: Samples) -> Iterator[Line | None]:
    for name in ENGINE_RUNS:
        sizes = samples.sizes(name)
        for smaller, larger in pairwise(sizes):
            if larger != 10 * smaller:
                continue
            before, after = samples.median(name, smaller), samples.median(name, larger)
            yield _ratio(f"{name}: {smaller:,} → {larger:,} records", "", 11, after, before)


def _memory(samples: Samples) -> Iterator[Line | None]:
    for size in samples.sizes("first load"):
        seen = {name: samples.worst(f"{name}: bytes over idle", size) for name in ENGINE_RUNS}
        known = {name: value for name, value in seen.items() if value is not None}
        limit = (MEMORY_BASE_BYTES + MEMORY_BYTES_PER_RECORD * size) / 2**20
        worst = max(known, key=lambda name: known[name], default=None)
        if worst is None:
            continue
        what = f"peak memory over idle, {size:,} records (worst: {worst})"
        yield _limit(what, f"{limit:,.0f} MB", known[worst] / 2**20, limit, "{:,.0f} MB")


def _peers(samples: Samples, records: int) -> Iterator[Line | None]:
    small = min(records, ORM_RECORDS)
    for step, factor in (("same", 20), ("first", 3), ("few", None)):
        name = STEP_NAMES[step]
        ours = samples.median(name, records)
        rivals = {
            peer.label: seconds
            for peer in PEERS
            if peer.max_records is None and (seconds := samples.median(f"{peer.label}: {step}", records)) is not None
        }
        if rivals:
            best = min(rivals, key=lambda label: rivals[label])
            yield _times_faster(f"{name}, against the fastest of dlt and Sling ({best})", factor, ours, rivals[best])
        for peer in PEERS:
            if peer.max_records is not None:
                theirs = samples.median(f"{peer.label}: {step}", small)
                what = f"{name}, against the {peer.label} at {small:,} records"
                yield _times_faster(what, None, samples.median(name, small), theirs)


def _ratio(what: str, words: str, limit: float, value: float | None, base: float | None) -> Line | None:
    if value is None or base is None:
        return None
    ratio = value / base
    target = f"≤ {limit:g} × {words}".rstrip(" ")
    return Line(what=what, target=target, measured=f"{ratio:.2f} × ({value:.3f} s : {base:.3f} s)", met=ratio <= limit)


def _limit(what: str, target: str, value: float | None, limit: float, form: str) -> Line | None:
    if value is None:
        return None
    return Line(what=what, target=target, measured=form.format(value), met=value < limit)


def _times_faster(what: str, factor: float | None, ours: float | None, theirs: float | None) -> Line | None:
    if ours is None or theirs is None:
        return None
    times = theirs / ours
    return Line(
        what=what,
        target=f"≥ {factor:g} × faster" if factor else "",
        measured=f"{times:.1f} × faster ({ours:.3f} s : {theirs:.3f} s)",
        met=times >= factor if factor else None,
    )


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def targets_table(made: Sequence[Line]) -> str:
    verdicts = {True: "met", False: "**missed**", None: ""}
    rows = [(line.what, line.target, line.measured, verdicts[line.met]) for line in made]
    return markdown(("what", "target", "measured", ""), rows)


def peers_table(samples: Samples, records: int) -> str:
    """Return the service beside the peers that were measured."""
    rows = [
        ("Lockstep", f"{size:,}", *(_seconds(samples.median(STEP_NAMES[step], size)) for step, _ in STEPS), "")
        for size in sorted({records, min(records, ORM_RECORDS)}, reverse=True)
        if samples.values("first load", size)
    ]
    for peer in PEERS:
        size = min(records, peer.max_records or records)
        if samples.values(f"{peer.label}: first", size):
            rows.append(_peer_row(samples, peer, size))
    return markdown(("tool", "records", *(STEP_NAMES[step] for step, _ in STEPS), "peak memory"), rows)


def _peer_row(samples: Samples, peer: Peer, size: int) -> tuple[str, ...]:
    peak = samples.worst(f"{peer.label}: peak bytes", size)
    seconds = (_peer_cell(samples, f"{peer.label}: {step}", size) for step, _ in STEPS)
    return (peer.label, f"{size:,}", *seconds, f"{peak / 2**20:,.0f} MB" if peak else "")


def _peer_cell(samples: Samples, name: str, size: int) -> str:
    given_up = samples.median(f"{name}, given up", size)
    return _seconds(samples.median(name, size)) if given_up is None else f"over {given_up:.0f} s, given up"


def samples_table(samples: Samples) -> str:
    """Return the medians behind the ratios, with their spread."""
    rows = [
        (name, f"{records:,}", *(_number(name, value) for value in (samples.median(name, records), min(v), max(v))), n)
        for name, records, v in samples.items()
        for n in [str(len(v))]
    ]
    return markdown(("value", "records", "median", "lowest", "highest", "of"), rows)


def _number(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if "WAL" in name:
        return f"{value / 1e3:,.1f} KB"
    if "bytes" in name:
        return f"{value / 2**20:,.2f} MB"
    return f"{value:,.0f}" if "rows" in name else f"{value:.4f} s"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = list(head)
    ruled = [titles, ["---"] * len(titles), *map(list, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in ruled)
