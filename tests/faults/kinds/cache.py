"""What happens to Redis. Where its memory is taken away by force, the sampler looks elsewhere, and begins a new era."""

import os
import random
import signal
import time
from collections.abc import Iterator

import redis

from tests.faults.kinds.kind import Impossible, fault
from tests.faults.stage import Stage

_SYNC_S = 10.0


@fault("redis")
def redis_killed(stage: Stage, _dice: random.Random) -> Iterator[None]:
    """It comes back empty."""
    with stage.cache_watch.away():
        stage.redis.kill()
        yield
        stage.redis.start()


@fault("redis", lasts_s=(0.0, 0.5))
def redis_flushed(stage: Stage, _dice: random.Random) -> Iterator[None]:
    with stage.cache_watch.away(), stage.redis_client() as client:
        client.flushall()
    yield


@fault("redis", lasts_s=(0.0, 0.5), weight=2)
def redis_checkpoint_evicted(stage: Stage, _dice: random.Random) -> Iterator[None]:
    with stage.cache_watch.away(), stage.redis_client() as client:
        client.delete("cdc:meta")
        yield


@fault("redis", lasts_s=(0.3, 2.5))
def redis_out_of_memory(stage: Stage, _dice: random.Random) -> Iterator[None]:
    with stage.redis_client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1mb")
        yield
        client.config_set("maxmemory", "0")


@fault("redis", weight=3)
def redis_evicts_everything(stage: Stage, _dice: random.Random) -> Iterator[None]:
    """`allkeys-random` in too little memory takes rows, and sooner or later the checkpoint, which tells of it."""
    with stage.cache_watch.away(), stage.redis_client() as client:
        client.config_set("maxmemory-policy", "allkeys-random")
        client.config_set("maxmemory", "3mb")
        yield
        client.config_set("maxmemory", "0")
        client.config_set("maxmemory-policy", "noeviction")
        client.delete("cdc:meta")


@fault("redis")
def redis_read_only(stage: Stage, _dice: random.Random) -> Iterator[None]:
    """A replica of nobody: it keeps what it has, and refuses to write."""
    with stage.redis_client() as client:
        client.replicaof("127.0.0.1", "1")
        yield
        client.replicaof("NO", "ONE")


@fault("redis", lasts_s=(0.5, 4.0))
def redis_fails_over_to_an_old_replica(stage: Stage, _dice: random.Random) -> Iterator[None]:
    """The replica lost touch a while ago: data and checkpoint go back together."""
    with redis.Redis.from_url(stage.replica.url, socket_timeout=10) as replica:
        replica.replicaof("127.0.0.1", str(stage.redis.port))
        try:
            _wait_for_link(replica)
        finally:
            replica.replicaof("NO", "ONE")
    yield
    with stage.cache_watch.away():
        stage.swap_redis()


def _wait_for_link(replica: redis.Redis) -> None:
    deadline_s = time.monotonic() + _SYNC_S
    while replica.info("replication").get("master_link_status") != "up":
        if time.monotonic() > deadline_s:
            raise Impossible
        time.sleep(0.05)


@fault("redis", lasts_s=(0.3, 3.0))
def redis_suspended(stage: Stage, _dice: random.Random) -> Iterator[None]:
    os.kill(stage.redis.pid, signal.SIGSTOP)
    yield
    os.kill(stage.redis.pid, signal.SIGCONT)


@fault("redis", lasts_s=(0.0, 0.2), weight=2)
def redis_forgets_scripts_and_clients(stage: Stage, _dice: random.Random) -> Iterator[None]:
    with stage.redis_client() as client:
        client.script_flush()
        client.client_kill_filter(_type="normal", skipme=True)
    yield
