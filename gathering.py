"""The first part of a run: fetch the snapshot, and keep of it only what the mirror does not have yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from msgspec import Raw
from sqlalchemy.ext.asyncio import AsyncSession

import sources
from columns import Inference
from cooling import heed_weight, heeding_refusals
from cursors import Mark, Track, read_mark
from deciding import Approach, feed_digest
from definitions import Source
from fingerprints import DIGEST, KnownFingerprints, Match
from models import KEPT_PROBLEMS, Problem, Progress, Validators
from projection import Projection
from records import RecordError, canonical_digests, parse, read_key, read_leniently
from spool import Spool, open_spool
from store.cooldowns import demand_cooled
from store.database import Database
from store.mirrors import Mirror, select_fingerprints, select_mirror

OnProgress = Callable[[Progress], None]
Places = npt.NDArray[np.int64]

READ_AT_ONCE_ROWS = 10_000
"""Live rows up to which fingerprints are read with the mirror's state, without waiting for the source to answer."""

HEAVY_RECORDS_PER_TURN = 500
"""Records that are projected, or put into canonical form, before others get their turn: some milliseconds."""

SAMPLED_AT_FIRST = 1_000
SAMPLED_LATER = 5
"""Records of which a first load infers the columns: so many in all, then so many of every batch.

A sample may miss a rare field; the run notices when it decodes all of them, and starts over with what it found.
"""


@dataclass(kw_only=True)
class Spools:
    """Where what was fetched is kept until it is applied."""

    records: Spool
    marks: Spool | None = None
    """For a source with a cursor: the values of its field."""


@asynccontextmanager
async def open_spools(source: Source, directory: Path | None) -> AsyncIterator[Spools]:
    """Open what keeps the records of a source until they are applied."""
    async with open_spool(directory) as records:
        if source.cursor is None:
            yield Spools(records=records)
            return
        async with open_spool(directory) as marks:
            yield Spools(records=records, marks=marks)


@dataclass(kw_only=True)
class Gathered:
    """A complete, valid answer: what of it is new to the mirror, and what the mirror was when it was compared."""

    mirror: Mirror
    known: KnownFingerprints
    trusted: bool
    """Whether fingerprints were compared; otherwise every record was kept."""
    spool: Spool
    inference: Inference
    projection: Projection | None = None
    track: Track | None = None
    """How far a source with a cursor has been read."""
    is_increment: bool = False
    """Whether absence says nothing; nothing is known then, and all records were kept."""
    asked_since: Mark | None = None
    """How far an increment's source had been read, if that is where it began."""
    absence_deletes: bool = True
    """Whether a row whose record is not in the snapshot is to go."""
    without_fingerprint: int = 0
    """Live rows that have no fingerprint, so that their records were kept whatever they hold."""
    has_copies: bool = False
    """Whether rows shared a fingerprint, so that those have to be stored anew."""
    not_modified: bool = False
    validators: Validators = field(default_factory=Validators)
    records: int = 0
    body_bytes: int = 0
    rejected: int = 0
    unidentified: int = 0
    rejected_at: list[int] = field(default_factory=list)
    rejected_keys: list[dict[str, object]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    repeated: int = 0

    @property
    def knows_key(self) -> bool:
        """Whether the mirror has the key's columns, and so all that a run needs to start with."""
        return set(self.mirror.key) <= {column.field for column in self.mirror.columns}

    @property
    def live_rows(self) -> int | None:
        """How many live rows the mirror had, None if they were not looked at."""
        return len(self.known) + self.without_fingerprint if self.trusted else None

    @property
    def is_unchanged(self) -> bool:
        """Whether the mirror holds what was fetched, which for a snapshot the fingerprints alone have to prove."""
        if self.spool.records or self.rejected or not (self.trusted or self.is_increment):
            return False
        return not self.absence_deletes or (self.known.seen == len(self.known) and not self.without_fingerprint)

    @property
    def may_fetch_more(self) -> bool:
        """Whether records of the source were left out because of what earlier runs had left."""
        return self.trusted or self.asked_since is not None

    def projected(self, records: Sequence[Raw]) -> Sequence[Raw | bytes]:
        """Return records as the mirror has them; what cannot be projected is empty."""
        return records if self.projection is None else self.projection.project(records).records

    def reject(self, position: int, reason: str, key: dict[str, object] | None) -> None:
        """Account for a record that cannot be stored; `key` is None where it could not be read."""
        self.rejected += 1
        self.rejected_at.append(position)
        if key is None:
            self.unidentified += 1
        else:
            self.rejected_keys.append(key)
        self.note(Problem(kind="rejected", position=position, reason=reason, key=key))

    def note(self, problem: Problem) -> None:
        """Keep one of the first problems."""
        if len(self.problems) < KEPT_PROBLEMS:
            self.problems.append(problem)


async def gather(
    database: Database,
    source: Source,
    spools: Spools,
    approach: Approach,
    *,
    on_progress: OnProgress | None = None,
) -> Gathered:
    """Fetch a source, again if the connection breaks, and spool the records that are not known.

    Raises SourceError, DatabaseError, SpoolFailed.
    """
    async with heeding_refusals(database, source):
        async for attempt in sources.attempts(source):
            with attempt:
                return await _gather_once(database, source, spools, approach, on_progress)
    raise AssertionError("attempts() ends by raising the last error")


async def _gather_once(
    database: Database,
    source: Source,
    spools: Spools,
    approach: Approach,
    on_progress: OnProgress | None,
) -> Gathered:
    spools.records.clear()
    is_increment = approach.mode == "incremental"
    async with database.transaction(isolation="REPEATABLE READ") as session:
        await demand_cooled(session, source.name)
        mirror = await select_mirror(session, source)
        validators = mirror.state.validators if approach.conditional and may_be_conditional(mirror, source) else None
        read = None
        if not (is_increment or validators) and mirror.state.live_rows <= READ_AT_ONCE_ROWS:
            read = await _read_fingerprints(session, mirror, source, spools.records, approach.trust)
    since = _since(mirror, source)
    asked_since = since if is_increment and approach.trust else None
    asked = _asking_since(source, asked_since) if is_increment else source
    async with sources.open_feed(asked, validators=validators, on_progress=on_progress) as feed:
        await heed_weight(database, source, feed.response_headers)
        if feed.not_modified:
            return _unmodified(mirror, source, spools.records)
        if is_increment:
            gathered = _increment(mirror, source, spools.records, asked_since)
        else:
            gathered = read or await _read_mirror(database, source, spools.records, approach.trust)
        gathered.track = _track(source, spools.marks, since)
        async for batch in feed.batches():
            for part in _parts(gathered, batch):
                await _absorb(gathered, part)
                await asyncio.sleep(0)
    gathered.validators = feed.validators
    gathered.records, gathered.body_bytes = feed.records, feed.body_bytes
    gathered.rejected += feed.rejected
    gathered.unidentified += feed.unidentified
    gathered.rejected_keys += feed.rejected_keys
    gathered.problems.extend(feed.problems)
    return gathered


def _since(mirror: Mirror, source: Source) -> Mark | None:
    """Return how far the source has been read, None if never, or if its answers meant something else then.

    Where no row is left, somebody has removed what was read, so it is read again.
    """
    if mirror.state.cursor is None or mirror.state.feed != feed_digest(source) or not mirror.has_rows:
        return None
    return read_mark(mirror.state.cursor)


def _asking_since(source: Source, since: Mark | None) -> Source:
    """Return the source as it is asked for what is new."""
    if source.cursor is None:
        raise AssertionError("a source without a cursor has no incremental runs")
    value = since.text if since else source.cursor.start
    return source if value is None else replace(source, params={**source.params, source.cursor.parameter: value})


def _track(source: Source, spool: Spool | None, since: Mark | None) -> Track | None:
    if source.cursor is None or spool is None:
        return None
    spool.clear()
    return Track(source.cursor.field, spool, since)


def may_be_conditional(mirror: Mirror, source: Source) -> bool:
    """Tell whether a 304 would mean that the mirror holds the snapshot: nobody else wrote, nothing was left undone."""
    return mirror.trusted and mirror.watched and not mirror.foreign_writes and mirror.state.feed == feed_digest(source)


def _increment(mirror: Mirror, source: Source, spool: Spool, asked_since: Mark | None) -> Gathered:
    gathered = _nothing_yet(mirror, KnownFingerprints.none(), spool, source, trusted=False)
    gathered.is_increment, gathered.absence_deletes, gathered.asked_since = True, False, asked_since
    return gathered


def _unmodified(mirror: Mirror, source: Source, spool: Spool) -> Gathered:
    gathered = _nothing_yet(mirror, KnownFingerprints.none(), spool, source, trusted=True)
    gathered.not_modified = True
    return gathered


async def _read_mirror(database: Database, source: Source, spool: Spool, trust: bool) -> Gathered:
    """Read the mirror's state and its fingerprints in one snapshot, so that the state tells what was read."""
    async with database.transaction(isolation="REPEATABLE READ") as session:
        return await _read_fingerprints(session, await select_mirror(session, source), source, spool, trust)


async def _read_fingerprints(
    session: AsyncSession, mirror: Mirror, source: Source, spool: Spool, trust: bool
) -> Gathered:
    if not (trust and mirror.trusted):
        return _nothing_yet(mirror, KnownFingerprints.none(), spool, source, trusted=False)
    known, without = await select_fingerprints(session, mirror)
    if known.has_copies:
        gathered = _nothing_yet(mirror, KnownFingerprints.none(), spool, source, trusted=False)
        gathered.has_copies = True
        return gathered
    gathered = _nothing_yet(mirror, known, spool, source, trusted=True)
    gathered.without_fingerprint = without
    return gathered


def _nothing_yet(mirror: Mirror, known: KnownFingerprints, spool: Spool, source: Source, *, trusted: bool) -> Gathered:
    inference = Inference(source.key, source.types)
    projection = Projection.of(source)
    return Gathered(
        mirror=mirror,
        known=known,
        spool=spool,
        inference=inference,
        projection=projection,
        absence_deletes=source.on_delete != "ignore",
        trusted=trusted,
    )


def _parts(gathered: Gathered, batch: sources.Batch) -> Iterator[sources.Batch]:
    """Yield a batch in parts that do not hold up others for long, where there is work to do for every record."""
    if gathered.projection is None and gathered.mirror.state.fingerprint_kind == "raw":
        yield batch
        return
    for start in range(0, len(batch.records), HEAVY_RECORDS_PER_TURN):
        end = start + HEAVY_RECORDS_PER_TURN
        yield sources.Batch(
            position=batch.position + start, records=batch.records[start:end], digests=batch.digests[start:end]
        )


async def _absorb(gathered: Gathered, batch: sources.Batch) -> None:
    """Drop the records of a batch that are known, spool what the others are in the mirror."""
    if gathered.mirror.state.fingerprint_kind == "canonical":
        digests = np.frombuffer(canonical_digests(gathered.projected(batch.records)), dtype=DIGEST)
    else:
        digests = batch.digests
    match = gathered.known.match(digests, batch.position)
    _note_repeated(gathered, batch, match)
    places = match.unknown
    if gathered.track is not None and gathered.track.since is None and len(places) < len(batch.records):
        # What is known has been read before, but not by a run that could tell how far that was.
        known = np.setdiff1d(np.arange(len(batch.records)), places)
        await gathered.track.note([batch.records[i] for i in known], known + batch.position)
    if not len(places):
        return
    unknown = batch.records if len(places) == len(batch.records) else [batch.records[i] for i in places]
    if gathered.track is not None:
        await gathered.track.note(unknown, places + batch.position)
    stored, places = _project(gathered, batch, unknown, places)
    if not gathered.knows_key:
        _sample(gathered, stored)
    await gathered.spool.write(stored, places + batch.position, digests[places].tobytes())


def _project(
    gathered: Gathered, batch: sources.Batch, records: Sequence[Raw], places: Places
) -> tuple[Sequence[Raw | bytes], Places]:
    """Return records of a batch as the mirror has them, and the places of those that were not rejected."""
    projection = gathered.projection
    if projection is None:
        return records, places
    projected = projection.project(records)
    for number, name in projected.repeated.items():
        key = read_key(projected.records[number], gathered.inference.key)
        position, reason = batch.position + int(places[number]), f"the field name {name!r} stands in it twice"
        gathered.note(Problem(kind="repeated_field", position=position, reason=reason, key=key))
    for number, reason in projected.rejected.items():
        record = read_leniently(records[number])
        key = projection.read_key(record, gathered.inference.key) if record is not None else None
        gathered.reject(batch.position + int(places[number]), reason, key)
    if not projected.rejected:
        return projected.records, places
    kept = [number for number, record in enumerate(projected.records) if record]
    return [projected.records[number] for number in kept], places[kept]


def _sample(gathered: Gathered, records: Sequence[Raw | bytes]) -> None:
    missing = max(SAMPLED_AT_FIRST - gathered.spool.records, SAMPLED_LATER)
    step = max(len(records) // missing, 1)
    for raw in records[::step][:missing]:
        try:
            gathered.inference.observe(parse(raw)[0])
        except RecordError:
            continue  # It is reported when all records are decoded.


def _note_repeated(gathered: Gathered, batch: sources.Batch, match: Match) -> None:
    gathered.repeated += len(match.repeated)
    for place in match.repeated[: KEPT_PROBLEMS - len(gathered.problems)]:
        key = read_key(gathered.projected([batch.records[place]])[0], gathered.inference.key)
        position = batch.position + int(place)
        gathered.problems.append(Problem(kind="duplicate", position=position, reason="it stands there twice", key=key))
