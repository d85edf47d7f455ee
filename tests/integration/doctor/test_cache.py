"""What the doctor finds on a real Valkey, made true first; and that the printed script mends it."""

from pathlib import Path

import pytest
import redis

from cdc.cache.contents import Contents
from cdc.doctor.cache import judge_contents
from cdc.embedded import ValkeyServer
from tests.conftest import MakeValkey
from tests.support.cdc_process import wait_until
from tests.support.doctor_script import Pasted


def pasted(tmp_path: Path, valkey: ValkeyServer, archive_dir: str) -> Pasted:
    """Without Postgres: its findings are errors, and stand in the script as comments."""
    return Pasted(tmp_path, None, archive_dir, valkey.url, slot="cdc")


@pytest.mark.parametrize(
    ("settings", "found", "optional"),
    [
        ({"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}, "allkeys-lru may evict the checkpoint", False),
        ({"maxmemory": "100mb", "maxmemory-policy": "noeviction"}, "a full Redis refuses every change", False),
        ({"maxmemory": "1mb", "maxmemory-policy": "volatile-lru"}, "keys are evicted or refused soon", False),
        ({}, "Redis has no maxmemory", True),
    ],
)
def test_a_setting_that_hurts_later_is_found_and_mended(
    make_valkey: MakeValkey, tmp_path: Path, archive_dir: str, settings: dict[str, str], found: str, optional: bool
) -> None:
    doctor = pasted(tmp_path, make_valkey(settings=settings), archive_dir)
    doctor.assert_mended(found, optional=optional)


def test_a_cluster_and_a_replica_are_errors(make_valkey: MakeValkey, tmp_path: Path, archive_dir: str) -> None:
    cluster = make_valkey(settings={"cluster-enabled": "yes"})
    with redis.Redis.from_url(cluster.url) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        wait_until(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"), "a cluster of one")
    assert pasted(tmp_path, cluster, archive_dir).finds("this Redis is a cluster")
    primary, replica = make_valkey(), make_valkey()
    with redis.Redis.from_url(replica.url) as client:
        doctor = pasted(tmp_path, replica, archive_dir)
        assert not doctor.finds("this Redis is a replica")
        client.execute_command("REPLICAOF", "127.0.0.1", primary.port)
        assert doctor.finds("this Redis is a replica and takes no writes")
        client.execute_command("REPLICAOF", "NO", "ONE")
        assert not doctor.finds("this Redis is a replica")


def test_other_peoples_keys_and_keys_that_never_expire_are_named(
    make_valkey: MakeValkey, tmp_path: Path, archive_dir: str
) -> None:
    valkey = make_valkey()
    doctor = pasted(tmp_path, valkey, archive_dir)
    with redis.Redis.from_url(valkey.url) as client:
        client.hset("cdc:meta", "lsn", "0/1")
        client.set("turn:1", "{}", ex=60)
        assert not doctor.finds("are not the cache's")
        assert not doctor.finds("never expire")
        client.set("somebody:elses", "x")
        client.set("turn:2", "{}")
        assert doctor.finds("1 of 3 keys looked at are not the cache's")
        assert doctor.finds("1 of 2 keys of the cache never expire")
        client.delete("somebody:elses")
        client.expire("turn:2", 60)
        assert not doctor.finds("are not the cache's")
        assert not doctor.finds("never expire")


def test_a_user_who_may_do_only_what_the_cache_needs_is_examined_too(
    make_valkey: MakeValkey, tmp_path: Path, archive_dir: str
) -> None:
    valkey = make_valkey()
    with redis.Redis.from_url(valkey.url) as client:
        rights = ("~*", "+@read", "+@write", "+@scripting", "+info", "+ping")
        client.execute_command("ACL", "SETUSER", "narrow", "on", ">secret", *rights)
    doctor = pasted(tmp_path, valkey, archive_dir)
    doctor.cdc.settings["CDC_CACHE__URL"] = valkey.url.replace("redis://", "redis://narrow:secret@")
    assert doctor.finds("Redis answers within")
    assert [one for one in doctor.findings() if one.subject == "cache" and one.level == "error"] == []
    assert "secret" not in doctor.script()


def test_a_redis_far_away_is_named() -> None:
    (far,) = judge_contents(Contents(0, 0, 0, 0.12))
    assert (far.level, "120 ms" in far.message) == ("warning", True)
