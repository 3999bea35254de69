"""Fixtures that all tests share: a real PostgreSQL, a fresh database for each test, a real feed server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
import structlog
from sqlalchemy.engine import make_url

from store import Database, migrations
from tests import logs
from tests.engine import Engine, open_engine
from tests.feed_server import FeedServer
from tests.postgres import drop_left, fresh_database, postgres_server


@pytest.fixture(scope="session", autouse=True)
def plain_logs() -> None:
    """Log plainly until a test sets logging up: the tracebacks that structlog draws by default take half a second."""
    renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, renderer]
    )


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Let a test set up logging, and give the process its own logging back afterwards."""
    with logs.own_logging():
        yield


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server_url() -> AsyncIterator[str]:
    """Run one PostgreSQL for the whole session."""
    async with postgres_server() as url:
        yield url
        await drop_left()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def template(server_url: str) -> AsyncIterator[str]:
    """Make a database with the service's own tables, to be copied for each test."""
    async with fresh_database(server_url) as url:
        database = Database.connect(url, pool_size=1)
        await migrations.upgrade(database)
        await database.close()
        yield str(make_url(url).database)


@pytest_asyncio.fixture
async def empty_database_url(server_url: str) -> AsyncIterator[str]:
    """Make a database for one test that nobody has used."""
    async with fresh_database(server_url) as url:
        yield url


@pytest_asyncio.fixture
async def database_url(server_url: str, template: str) -> AsyncIterator[str]:
    """Make a database for one test that has the service's own tables, and nothing in them."""
    async with fresh_database(server_url, template=template) as url:
        yield url


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """Connect to a test's database."""
    database = Database.connect(database_url, pool_size=5)
    yield database
    await database.close()


@pytest_asyncio.fixture
async def feed() -> AsyncIterator[FeedServer]:
    """Start a feed server, which answers 404 until it is told what to serve."""
    async with FeedServer() as server:
        yield server


@pytest_asyncio.fixture
async def engine(database: Database, database_url: str, feed: FeedServer) -> AsyncIterator[Engine]:
    """Mirror what the feed server serves, and check what every run does."""
    async with open_engine(database, database_url, feed) as engine:
        yield engine
