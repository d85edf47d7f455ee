"""Writes chunks: a snapshot's rows in objects of bounded size, before the `snapshot` record that names them.

A chunk counts only once its record is there. The keys hold the number of the segment that was next when the first chunk
was written. So a backfill that starts over, after a new fence, never meets the keys of the one before.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence

from cdc.archive.format.header import Chunk
from cdc.archive.format.object_key import base_key
from cdc.archive.reader.tail import Tail
from cdc.archive.writer.body import Body
from cdc.archive.writer.headers import chunk_header
from cdc.archive.writer.puts import Puts
from cdc.change import DELETE, Relation
from cdc.crash import crash_point
from cdc.row import Row


class ChunkWriter:
    """Writes the chunks of one writer. `seq` is the number in the keys of the last chunks, -1 before the first.

    `writing` is locked while a chunk is PUT. `tail` returns the tail to write after, or raises Moved.
    """

    def __init__(
        self,
        writer_id: str,
        puts: Puts,
        new_body: Callable[[], Body],
        writing: asyncio.Lock,
        tail: Callable[[], Tail],
    ) -> None:
        self._writer_id = writer_id
        self._puts = puts
        self._new_body = new_body
        self._writing = writing
        self._tail = tail
        self._written: Counter[tuple[str, str]] = Counter()
        self.seq = -1

    async def write(
        self, op: str, relation: Relation, batches: AsyncIterator[Sequence[Row]], consistent_lsn: int
    ) -> list[Chunk]:
        """Write a table's rows as they are at `consistent_lsn` (READ), or keys of rows that are gone by then (DELETE).

        Raises Moved, Fenced, and what reading the batches raises.
        """
        chunks: list[Chunk] = []
        body = self._new_body()
        async for rows in batches:
            await body.add_rows(op, relation, rows, consistent_lsn)
            if body.full:
                chunks.append(await self._put(op, relation, body, consistent_lsn))
                body = self._new_body()
        if not body.empty:
            chunks.append(await self._put(op, relation, body, consistent_lsn))
        return chunks

    async def _put(self, op: str, relation: Relation, body: Body, consistent_lsn: int) -> Chunk:
        async with self._writing:
            header = chunk_header(self._tail(), self._writer_id, consistent_lsn)
            if self.seq != header.seq:
                self.seq, self._written = header.seq, Counter()
            table = relation.qualified_name
            key = base_key(self.seq, relation, self._written[op, table], deleted=op == DELETE)
            self._written[op, table] += 1
            frozen = await body.freeze(header)
            await self._puts.settle(key, frozen.data)
            crash_point("base_chunk_written")
            return Chunk(key, table, frozen.header.changes, len(frozen.data), frozen.sha256)
