"""A replication stream under test: settings for a fresh database, a slot of its own, and what the stream delivers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import psycopg

from cdc.change import Change, Transaction
from cdc.config import PostgresSettings
from cdc.pgoutput.assembler import Assembler
from cdc.postgres.publication import read_publication, type_names
from cdc.postgres.session import connect
from cdc.postgres.stream.replication import ReplicationStream
from tests.support.cdc_process import PATIENCE_S


def settings_for(dsn: str, *, publication: str = "cdc", slot_deadline_s: float = 30.0) -> PostgresSettings:
    """Settings for this database with a slot name that nobody else has: slots belong to the whole cluster."""
    return PostgresSettings.model_validate(
        {
            "dsn": dsn,
            "slot": f"test_{uuid4().hex[:16]}",
            "publication": publication,
            "slot_deadline_s": slot_deadline_s,
        }
    )


def execute(dsn: str, *statements: str) -> None:
    """Each statement in a transaction of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def fetch(dsn: str, query: str, *parameters: object) -> tuple[object, ...]:
    """The first row."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(query.encode(), parameters or None).fetchone()
    assert row is not None, query
    return row


def make_slot(settings: PostgresSettings) -> None:
    dsn = settings.dsn.get_secret_value()
    fetch(dsn, "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')::text", settings.slot)


async def until(true: Callable[[], bool], what: str) -> None:
    """Poll until it is true."""
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(0.02)
    assert true(), what


class Consumer:
    """A started stream with an assembler behind it."""

    def __init__(self, stream: ReplicationStream, assembler: Assembler) -> None:
        self.stream = stream
        self.transactions: list[Transaction] = []
        self.wal_end = 0
        self._assembler = assembler

    async def take(self, count: int) -> list[Transaction]:
        """Receive until so many transactions (or pieces) have arrived, and hand out all of them."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.transactions) < count:
                self.feed(await self.stream.receive())
        taken, self.transactions = self.transactions, []
        return taken

    def feed(self, messages: list[bytes]) -> None:
        received = self._assembler.feed(messages)
        self.transactions += received.transactions
        self.wal_end = received.wal_end

    async def take_changes(self, count: int) -> list[Change]:
        """The changes of the next so many transactions."""
        return [change for transaction in await self.take(count) for change in transaction.changes]


@asynccontextmanager
async def consuming(settings: PostgresSettings, server_encoding: str = "UTF8") -> AsyncIterator[Consumer]:
    """A stream that has been started on the settings' slot."""
    async with await connect(settings) as connection:
        names = await type_names(connection)
        publication = await read_publication(connection, settings.publication)
    async with await ReplicationStream.open(settings, server_encoding) as stream:
        await stream.start(settings.slot, settings.publication)
        yield Consumer(stream, Assembler(names, publication.primary_keys))
