"""The hot state of a session when its newest turn goes, and older ones come from elsewhere."""

import json
from typing import Any

import redis

from tests.acceptance.conftest import MakeService
from tests.support.cdc_process import query


def insert(dsn: str, session: str) -> int:
    statement = (
        "INSERT INTO turns (domain, channel, session_hash, role, content)"
        " VALUES ('support', 'web', %s, 'user', 'hello') RETURNING id"
    )
    return int(query(dsn, statement, session)[0][0])


def state_id(cache_url: str, session: str) -> int | None:
    with redis.Redis.from_url(cache_url) as client:
        value: Any = client.get(f"session:{session}:state")
    return None if value is None else int(json.loads(value)["id"])


def test_an_old_turn_that_moves_in_never_poses_as_the_newest(
    installed: str, redis_url: str, archive_dir: str, make_service: MakeService
) -> None:
    service = make_service(installed, archive_dir, redis_url).start()
    service.wait_until_caught_up(installed)
    from_elsewhere = insert(installed, "b")
    newest_left = insert(installed, "a")
    newest = insert(installed, "a")
    service.wait_until_caught_up(installed)
    assert state_id(redis_url, "a") == newest
    query(installed, "DELETE FROM turns WHERE id = %s", newest)
    service.wait_until_caught_up(installed)
    assert state_id(redis_url, "a") in (None, newest_left)
    query(installed, "UPDATE turns SET session_hash = 'a' WHERE id = %s", from_elsewhere)
    service.wait_until_caught_up(installed)
    assert state_id(redis_url, "a") in (None, newest_left)
