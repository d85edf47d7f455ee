"""When a silent server is asked, and when it is left."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from cdc.errors import Unavailable
from cdc.pipeline.silence import Silence

SILENCE_S = 0.4


class Server:
    """Says nothing. `serves` is what it says of our WAL sender over another connection; None if that is away."""

    def __init__(self) -> None:
        self.serves: bool | None = True
        self.requests = 0
        self.questions = 0
        self.silence = Silence(SILENCE_S, self.still_served)
        self.watching = asyncio.create_task(self.silence.run(self.ask))

    def ask(self) -> None:
        self.requests += 1

    async def still_served(self) -> bool:
        self.questions += 1
        if self.serves is None:
            raise Unavailable("connection refused")
        return self.serves


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    yield made
    made.watching.cancel()
    await asyncio.gather(made.watching, return_exceptions=True)


async def test_a_server_that_serves_us_no_longer_is_left(server: Server) -> None:
    server.serves = False
    server.silence.listening()
    async with asyncio.timeout(30):
        error = await server.watching
    assert "serves us no longer" in error.message
    assert server.questions == 1


async def test_a_server_that_cannot_be_asked_is_left(server: Server) -> None:
    server.serves = None
    server.silence.listening()
    async with asyncio.timeout(30):
        await server.watching


async def test_a_long_decode_is_waited_for(server: Server) -> None:
    server.silence.listening()
    async with asyncio.timeout(30):
        while server.questions < 2:
            await asyncio.sleep(0.01)
    assert not server.watching.done()


async def test_what_we_do_ourselves_is_not_the_servers_silence(server: Server) -> None:
    server.silence.listening()
    server.silence.heard()
    await asyncio.sleep(3 * SILENCE_S)
    assert (server.requests, server.questions) == (0, 0)
