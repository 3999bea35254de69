"""One run of dlt, in the peers' own virtual environment: python peer_dlt.py FEED DATABASE_URL STRATEGY INPUT DIRECTORY.

FEED holds JSON Lines. INPUT is `rows` (dictionaries, what a REST source yields) or `arrow` (tables, dlt's fastest
input, for which nested values must be turned into text beforehand). Prints the seconds that the pipeline ran.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dlt
import orjson
import pyarrow
import pyarrow.json

ROWS_PER_PAGE = 10_000
BYTES_PER_TABLE = 16 * 2**20
NESTED_FIELD = "tags"


def pages_of_rows(feed: Path) -> Iterator[list[Any]]:
    with feed.open("rb") as lines:
        while page := [orjson.loads(line) for line in itertools.islice(lines, ROWS_PER_PAGE)]:
            yield page


def arrow_tables(feed: Path) -> Iterator[pyarrow.Table]:
    options = pyarrow.json.ReadOptions(block_size=BYTES_PER_TABLE)
    for batch in pyarrow.json.open_json(feed, read_options=options):
        table = pyarrow.Table.from_batches([batch])
        text = [orjson.dumps(value).decode() for value in table[NESTED_FIELD].to_pylist()]
        yield table.set_column(table.schema.get_field_index(NESTED_FIELD), NESTED_FIELD, pyarrow.array(text))


def main(feed: Path, database_url: str, strategy: str, kind: str, directory: str) -> None:
    read = {"rows": pages_of_rows, "arrow": arrow_tables}[kind]
    resource = dlt.resource(
        read(feed),
        name="mirror",
        primary_key="id",
        max_table_nesting=0,  # lists stay in a jsonb column instead of becoming a second table
        write_disposition={"disposition": "merge", "strategy": strategy},
    )
    pipeline = dlt.pipeline(
        f"{strategy}_{kind}",
        pipelines_dir=directory,
        destination=dlt.destinations.postgres(database_url),
        dataset_name="peer",
    )
    start = time.perf_counter()
    # CSV goes in by COPY; the default, INSERT statements, takes half as long again.
    pipeline.run(resource, loader_file_format="csv")
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
