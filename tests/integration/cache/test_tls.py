"""Redis over TLS: the certificate is verified. Debian's Redis, because the embedded one has no TLS."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from cdc.cache.connection import Connection
from cdc.config import CacheSettings
from cdc.embedded import ValkeyServer
from cdc.embedded.process import free_port
from cdc.errors import Invalid
from tests.support.certificates import write_certificates
from tests.support.servers import DEBIAN_REDIS

pytestmark = pytest.mark.wide


@dataclass(frozen=True)
class Tls:
    port: int
    authority: Path

    def url(self, host: str = "127.0.0.1", **options: str) -> str:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"rediss://{host}:{self.port}/0?{query}"


@pytest.fixture(scope="module")
def tls(server_dir: Path) -> Iterator[Tls]:
    home = Path(tempfile.mkdtemp(prefix="redis-tls-", dir=server_dir))
    home.chmod(0o755)
    write_certificates(home)
    certificate, authority, port = home / "server.pem", home / "ca.pem", free_port()
    certificate.chmod(0o644)
    settings = {
        "tls-port": str(port),
        "tls-cert-file": str(certificate),
        "tls-key-file": str(certificate),
        "tls-ca-cert-file": str(authority),
        "tls-auth-clients": "no",
    }
    with ValkeyServer(home / "data", program=DEBIAN_REDIS, settings=settings):
        yield Tls(port, authority)
    shutil.rmtree(home, ignore_errors=True)


async def _ping(url: str) -> object:
    connection = Connection(CacheSettings(url=SecretStr(url), allow_insecure=True))
    try:
        return await connection.call(b"PING")
    finally:
        await connection.close()


async def test_an_authority_that_is_named_vouches_for_the_server(tls: Tls) -> None:
    assert await _ping(tls.url(ssl_ca_certs=str(tls.authority))) == b"PONG"
    assert await _ping(tls.url("localhost", ssl_ca_certs=str(tls.authority))) == b"PONG"


async def test_a_certificate_that_nobody_vouches_for_is_refused_with_the_option_to_add(tls: Tls) -> None:
    with pytest.raises(Invalid, match="cannot be verified") as refused:
        await _ping(tls.url())
    assert "ssl_ca_certs" in refused.value.hint
