"""What a column of a type that Lockstep does not know takes: PostgreSQL decides, but it may not cut or round."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from store import Database

DOMAINS = """
    CREATE DOMAIN short AS varchar(3);
    CREATE DOMAIN shorter AS short CHECK (length(value) < 3);
    CREATE DOMAIN money_like AS numeric(10, 2);
    CREATE TYPE mood AS ENUM ('sad', 'glad');
"""

CASES = [
    ("bit(3)", "101", True),
    ("bit(3)", "10111", False),
    ("bit varying(3)", "10111", False),
    ("short", "abc", True),
    ("short", "abcdef", False),
    ("shorter", "ab", True),
    ("shorter", "abc", False),
    ("money_like", "1.5", True),
    ("money_like", "1.005", False),
    ("money_like", "much", False),
    ("mood", "glad", True),
    ("mood", "mad", False),
    ("inet", "10.0.0.1/8", True),
    ("inet", "10.0.0.256", False),
    ("interval(0)", "00:00:01.5", False),
    ("interval", "1 day 00:00:01.5", True),
    ("point", "(1,2)", True),
]


@pytest.mark.parametrize(("sql_type", "value", "fits"), CASES)
async def test_a_value_fits_if_nothing_of_it_is_lost(
    database: Database, sql_type: str, value: str, *, fits: bool
) -> None:
    """A value that PostgreSQL would have to cut, round or refuse does not fit."""
    async with database.transaction() as session:
        for statement in filter(str.strip, DOMAINS.split(";")):
            await session.execute(sa.text(statement))
        assert await session.scalar(sa.select(sa.func.lockstep.fits(value, sql_type))) is fits
