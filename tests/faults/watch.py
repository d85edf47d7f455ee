"""What looks on while a round is played: the two samplers of the checker, and a witness that survives every restart."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import psycopg
import zstandard

from tests.faults.background import Background
from tests.faults.checker import Sampler, cache_sampler
from tests.faults.history import loads
from tests.faults.reads import Reads
from tests.faults.trouble import Findings
from tests.faults.witness import Witness
from tests.support.cdc_process import confirmed_flush_lsn, parse_lsn

_LOOK_AT_CACHE_EVERY_S = 0.3
_LOOK_AT_SLOT_EVERY_S = 0.05
_READ_WITNESS_EVERY_S = 2.0
_AT_ONCE = 20_000
_PEEK = """
SELECT lsn::text, xid::text::int, data
  FROM pg_logical_slot_peek_changes(%s, NULL, %s, 'include-timestamp', '0', 'include-xids', '1')
"""


class CacheWatch:
    """P5, in eras: whoever takes the cache's memory away by force (`away`) ends one, and the next knows nothing of it.

    `eras` is what was read in each, for `check_reads`. A warm-up that begins again empties the cache again, so after
    the first era keys may go and come back; an older version of one may never.
    """

    def __init__(self, url: Callable[[], str], dsn: str, findings: Findings) -> None:
        self.looks = 0
        self.eras: list[Reads] = []
        self._dsn = dsn
        self._flushed = False
        self._url = url
        self._findings = findings
        self._sampler: Sampler | None = None

    def __enter__(self) -> Self:
        sampler = cache_sampler(self._url(), dsn=self._dsn, flushed=self._flushed)
        self.eras.append(sampler.reads)
        self._sampler = Sampler(sampler._look, _LOOK_AT_CACHE_EVERY_S, "cache").__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        sampler, self._sampler = self._sampler, None
        if sampler is not None:
            sampler.__exit__(None, None, None)
            self.looks += sampler.looks
            for finding in sampler.findings[:5]:
                self._findings.add(finding)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Look elsewhere for the length of the block."""
        watching = self._sampler is not None
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self._flushed = True
            if watching:
                self.__enter__()


def acknowledgement_watch(dsn: str, tail: Callable[[], bytes | None]) -> Sampler:
    """P1, as the checker's sampler; but it reads no more of a segment than its header, for they may be large."""

    def look() -> list[str]:
        confirmed = confirmed_flush_lsn(dsn)
        last = tail()
        covered = 0 if last is None else parse_lsn(str(_header(last)["covered_upto"]))
        if confirmed <= covered:
            return []
        return [f"acknowledged {confirmed:X} while the archive held {covered:X}"]

    return Sampler(look, _LOOK_AT_SLOT_EVERY_S, "acknowledgements")


def _header(segment: bytes) -> Any:
    text = b""
    with zstandard.ZstdDecompressor().stream_reader(segment, read_across_frames=True) as stream:
        while b"\n" not in text and (read := stream.read(16 * 1024)):
            text += read
    return loads(text.partition(b"\n")[0])


class SteadyWitness(Background, Witness):
    """Reads first and moves its slot after, so that an answer that Postgres could not give any more is not lost."""

    def __init__(self, dsn: str, tables: tuple[str, ...]) -> None:
        Witness.__init__(self, dsn, tables)
        self._upto = 0
        self._reading = threading.Lock()
        self._failure: Exception | None = None
        Background.__init__(self, "witness")

    def _end(self) -> None:
        super()._end()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        """Now and then, so that Postgres need not keep the whole round's WAL."""
        while not self._stopping.wait(_READ_WITNESS_EVERY_S):
            try:
                self.transactions()
            except psycopg.OperationalError:
                continue
            except Exception as error:  # shown by whoever ends the round
                self._failure = error
                return

    def _read(self, connection: psycopg.Connection[Any]) -> int:
        with self._reading:
            rows = connection.execute(_PEEK, [self._slot, _AT_ONCE]).fetchall()
            for lsn, xid, data in rows:
                self._hear(parse_lsn(lsn), xid, data)
            if rows:
                connection.execute(
                    "SELECT pg_replication_slot_advance(%s, '0/0'::pg_lsn + %s)", [self._slot, self._upto]
                )
        return len(rows)

    def _hear(self, lsn: int, xid: int, data: str) -> None:
        ends = data.startswith(("COMMIT", "message: transactional: 0"))
        if ends and lsn <= self._upto:
            self._open = []
            return
        super()._hear(lsn, xid, data)
        if ends:
            self._upto = lsn
