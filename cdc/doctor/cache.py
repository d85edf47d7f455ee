"""Redis: it may lose everything and nothing is lost; but it should not lose the checkpoint alone."""

from cdc.cache.server import CacheServer, read_cache_server
from cdc.config import CacheSettings
from cdc.doctor.finding import Finding, failure
from cdc.errors import CdcError


async def examine_cache(settings: CacheSettings) -> list[Finding]:
    """What cannot be reached is itself a finding."""
    if settings.url is None:
        return [Finding("ok", "cache", "no cache is configured")]
    try:
        return judge_cache(await read_cache_server(settings))
    except CdcError as error:
        return [failure("cache", error)]


def configure(name: str, value: str) -> str:
    """The command that sets an option of this Redis now; its configuration file wants the same line."""
    return f'redis-cli -u "$CDC_CACHE__URL" CONFIG SET {name} {value}'


def judge_cache(server: CacheServer) -> list[Finding]:
    """What the server says of itself."""
    version = ".".join(map(str, server.version))
    findings = [Finding("ok", "cache", f"{server.software} {version} answers")]
    if server.version < (6, 2):
        findings.append(Finding("error", "cache", f"Redis {version} is too old", "use Redis 6.2 or newer, or Valkey"))
    if server.cluster:
        message = "this Redis is a cluster: the checkpoint and the keys must change together"
        hint = "put one server, or one primary with replicas, into cache.url"
        findings.append(Finding("error", "cache", message, hint))
    if server.role == "slave":
        message = "this Redis is a replica and takes no writes"
        findings.append(Finding("error", "cache", message, "put the primary into cache.url"))
    findings += _judge_eviction(server)
    kept = "persistence is on" if server.append_only else "no append-only file: what a restart loses is warmed again"
    return [*findings, Finding("ok", "cache", kept)]


def _judge_eviction(server: CacheServer) -> list[Finding]:
    policy = server.maxmemory_policy
    if policy.startswith("allkeys"):
        message = f"maxmemory-policy {policy} may evict the checkpoint, and then all is warmed again"
    elif server.maxmemory_bytes and policy == "noeviction":
        message = "maxmemory-policy noeviction: a full Redis refuses every change"
    else:
        return []
    command = configure("maxmemory-policy", "volatile-lru")
    return [Finding("warning", "cache", message, command, command=command)]
