"""The loop that most people write first, in the peers' own virtual environment: python peer_orm.py FEED DATABASE_URL.

The feed and the table are loaded into memory, compared object by object, and one session commits the difference. Prints
the seconds it took.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, DateTime, Double, Text, create_engine, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    pass


class Mirror(Base):
    __tablename__ = "mirror"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    sku: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    price: Mapped[float] = mapped_column(Double)
    stock: Mapped[int] = mapped_column(BigInteger)
    active: Mapped[bool]
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    tags: Mapped[list[str]] = mapped_column(JSONB)
    description: Mapped[str] = mapped_column(Text)


def synchronise(session: Session, records: list[dict[str, Any]]) -> None:
    rows = {row.id: row for row in session.scalars(select(Mirror))}
    for record in records:
        values = record | {"updated_at": datetime.fromisoformat(record["updated_at"])}
        row = rows.pop(record["id"], None)
        if row is None:
            session.add(Mirror(**values))
            continue
        for field, value in values.items():
            if getattr(row, field) != value:
                setattr(row, field, value)
    for row in rows.values():
        session.delete(row)
    session.commit()


def main(feed: Path, database_url: str) -> None:
    engine = create_engine(database_url)
    Base.metadata.create_all(engine)
    start = time.perf_counter()
    with feed.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    with Session(engine) as session:
        synchronise(session, records)
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
