"""Examines Redis. It may lose everything, for the cache is warmed again; it should not lose the checkpoint alone."""

from cdc.cache.contents import Contents, read_cache_time, read_contents
from cdc.cache.server import OLDEST_VERSION, CacheServer, read_cache_server
from cdc.config import CacheSettings
from cdc.doctor.clock import compare, judge_clock
from cdc.errors import CdcError
from cdc.finding import Finding, failure
from cdc.words import size

# Evictions begin at the limit, and the last tenth is soon gone.
_NEARLY_FULL = 0.9

# A round trip of this length is another continent's; the cache is to be milliseconds behind.
_FAR_S = 0.05


async def examine_cache(settings: CacheSettings) -> list[Finding]:
    """Examine the cache's server and its contents. A CdcError becomes a finding."""
    if settings.url is None:
        return [Finding("cache", "no cache is configured", level="ok")]
    try:
        findings = judge_cache(await read_cache_server(settings))
        findings += judge_contents(await read_contents(settings))
        return findings + judge_clock("cache", "Redis", await compare(lambda: read_cache_time(settings)))
    except CdcError as error:
        return [failure("cache", error)]


def configure(name: str, value: str) -> str:
    """The command that sets an option of this Redis now. Its configuration file needs the same setting."""
    return f'redis-cli -u "$CDC_CACHE__URL" CONFIG SET {name} {value}'


def judge_cache(server: CacheServer) -> list[Finding]:
    """Judge the server's own facts: version, cluster, role, eviction, memory and persistence."""
    version = ".".join(map(str, server.version))
    findings = [Finding("cache", f"{server.software} {version} answers", level="ok")]
    if server.version < OLDEST_VERSION:
        findings.append(
            Finding("cache", f"Redis {version} is too old", "use Redis 6.2 or newer, or Valkey", level="error")
        )
    if server.cluster:
        message = "this Redis is a cluster: the checkpoint and the keys must change together"
        hint = "put one server, or one primary with replicas, into cache.url"
        findings.append(Finding("cache", message, hint, level="error"))
    if server.role == "slave":
        message = "this Redis is a replica and takes no writes"
        findings.append(Finding("cache", message, "put the primary into cache.url", level="error"))
    findings += [*_judge_eviction(server), *_judge_memory(server)]
    kept = "persistence is on" if server.append_only else "no append-only file: what a restart loses is warmed again"
    return [*findings, Finding("cache", kept, level="ok")]


def _judge_eviction(server: CacheServer) -> list[Finding]:
    policy = server.maxmemory_policy
    if policy.startswith("allkeys"):
        message = f"maxmemory-policy {policy} may evict the checkpoint, and then all is warmed again"
    elif server.maxmemory_bytes and policy == "noeviction":
        message = "maxmemory-policy noeviction: a full Redis refuses every change"
    else:
        return []
    command = configure("maxmemory-policy", "volatile-lru")
    return [Finding("cache", message, command, command=command)]


def _judge_memory(server: CacheServer) -> list[Finding]:
    used, limit = server.used_bytes, server.maxmemory_bytes
    twice_mb = max(256, 2 * used // 1024**2)
    command = configure("maxmemory", f"{twice_mb}mb")
    if not limit:
        message = f"Redis has no maxmemory: it uses {size(used)} now, and may grow until the machine has no memory"
        return [Finding("cache", message, command, level="info", command=command, optional=True)]
    if used > _NEARLY_FULL * limit:
        message = f"Redis uses {size(used)} of {size(limit)}: keys are evicted or refused soon"
        return [Finding("cache", message, f"{command}   # if the machine has it", command=command)]
    return [Finding("cache", f"Redis uses {size(used)} of {size(limit)}", level="ok")]


def judge_contents(contents: Contents) -> list[Finding]:
    """Judge the sample: are there foreign keys, do ours expire, and how long does an answer take?"""
    findings = []
    if contents.foreign:
        message = (
            f"{contents.foreign} of {contents.sampled} keys looked at are not the cache's: "
            "they share its memory, and a FLUSHALL of theirs is ours"
        )
        findings.append(
            Finding("cache", message, "a database or a server of its own, as in redis://host/1", level="info")
        )
    if contents.immortal:
        message = f"{contents.immortal} of {contents.sampled - contents.foreign} keys of the cache never expire"
        hint = "redis-cli PERSIST was used on them, or another program writes them; look: redis-cli TTL KEY"
        findings.append(Finding("cache", message, hint))
    if contents.round_trip_s > _FAR_S:
        message = f"Redis takes {contents.round_trip_s * 1000:.0f} ms to answer: the cache is never fresher than that"
        findings.append(Finding("cache", message, "put Redis and `cdc run` into one place"))
    else:
        findings.append(Finding("cache", f"Redis answers within {contents.round_trip_s * 1000:.1f} ms", level="ok"))
    return findings
