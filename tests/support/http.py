"""Asks a running service over HTTP, as a client that knows nothing of it."""

import http.client
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.support.cdc_process import Service


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: str


def address_of(service: Service) -> str:
    """Where it listens, as its log says."""
    return str(service.wait_for_event("listening")["address"])


def ask(
    address: str, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, timeout_s: float = 10
) -> Answer:
    """One request on a connection of its own. A given Host replaces the address's."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port or 80, timeout=timeout_s)
    try:
        given = dict(headers or {})
        connection.putrequest(method, path, skip_host="Host" in given)
        for name, value in given.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read().decode())
    finally:
        connection.close()


def get(service: Service, path: str, *, token: str | None = None) -> Answer:
    """One GET, with this bearer token if there is one."""
    return ask(address_of(service), path, headers={"Authorization": f"Bearer {token}"} if token else {})
