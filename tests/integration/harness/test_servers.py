"""The fixtures of servers do what their docstrings say."""

import psycopg
import redis

from cdc.archive.bucket.bucket import prove_conditional_put
from cdc.archive.bucket.opening import open_bucket
from cdc.config import ArchiveSettings


def test_a_fresh_database_speaks_logical_replication(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
        connection.execute("SELECT pg_create_logical_replication_slot('left_behind', 'pgoutput')")
        assert connection.execute("SHOW wal_level").fetchone() == ("logical",)


def test_a_database_starts_empty_and_without_slots(database: str) -> None:
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT to_regclass('t')").fetchone() == (None,)
        assert connection.execute("SELECT count(*) FROM pg_replication_slots").fetchone() == (0,)


def test_a_redis_url_is_an_empty_database(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left_behind", "1")


def test_a_redis_url_is_empty_again_for_the_next_test(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0


async def test_an_archive_is_empty_and_takes_each_key_once(archive_settings: ArchiveSettings) -> None:
    bucket = open_bucket(archive_settings)
    try:
        assert await bucket.get("left_behind") is None
        await bucket.create("left_behind", b"1")
        assert await bucket.get("left_behind") == b"1"
        await prove_conditional_put(bucket)
    finally:
        await bucket.close()
