"""Models the bucket: objects are created once, over a network that loses answers and delays requests."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from cdc.archive.bucket.bucket import PROBE_KEY, AlreadyExists
from cdc.archive.format.object_key import seq_of
from cdc.errors import Unavailable
from tests.simulation.clock import LIFE, Life
from tests.simulation.world import Weather, World

PUT_TIMEOUT_S = 5.0
LATE_S = 8.0


class ModelBucket:
    """A bucket that is strongly consistent, as R2 and S3 are.

    `created` is called with every object at the moment it exists. `sending` is called before every PUT and returns the
    fault that meets it: "" for none, "held" (its process is stopped before it leaves), "lost" on its way there, or
    "late" by some seconds.
    """

    def __init__(
        self,
        world: World,
        weather: Weather,
        created: Callable[[str, bytes], None],
        sending: Callable[[Life | None], str],
    ) -> None:
        self.objects: dict[str, bytes] = {}
        self.authors: dict[int, str] = {}
        self._world = world
        self._weather = weather
        self._created = created
        self._sending = sending

    @property
    def url(self) -> str:
        return "model:"

    @property
    def rewrite_pause_s(self) -> float:
        return 0.1

    async def create(self, key: str, body: bytes) -> None:
        life = LIFE.get()
        author = life.name if life else "-"

        def apply() -> None:
            if key in self.objects:
                self._world.tell(f"PUT {key} of {author}: taken")
                raise AlreadyExists(f"{key} exists")
            self.objects[key] = body
            if (seq := seq_of(key)) is not None:
                self.authors[seq] = author
            self._world.tell(f"PUT {key} of {author}: created")
            self._created(key, body)

        if key == PROBE_KEY:
            if key in self.objects:
                raise AlreadyExists(key)
            await self._world.request(self._weather, f"PUT {key}", apply, PUT_TIMEOUT_S)
            return
        fate = self._sending(life)
        if fate == "held":
            await asyncio.sleep(0)
        if fate not in ("lost", "late"):
            await self._world.request(self._weather, f"PUT {key}", apply, PUT_TIMEOUT_S)
            return
        if fate == "late":
            self._world.later(self._world.moment(LATE_S), self._land, apply)
        await self._world.travel(1.0)
        raise Unavailable(f"PUT {key}: no answer")

    @staticmethod
    def _land(apply: Callable[[], None]) -> None:
        with contextlib.suppress(AlreadyExists):
            apply()

    async def get(self, key: str) -> bytes | None:
        return await self._world.request(self._weather, f"GET {key}", lambda: self.objects.get(key), PUT_TIMEOUT_S)

    async def head(self, key: str) -> int | None:
        body = await self.get(key)
        return None if body is None else len(body)

    async def replace(self, key: str, body: bytes) -> None:
        def apply() -> None:
            self.objects[key] = body

        await self._world.request(self._weather, f"PUT {key}", apply, PUT_TIMEOUT_S)

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[str]:
        found = await self._world.request(self._weather, "LIST", lambda: sorted(self.objects), PUT_TIMEOUT_S)
        for key in found:
            if key.startswith(prefix) and key > after:
                yield key

    async def close(self) -> None:
        pass
