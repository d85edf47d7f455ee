"""Decodes and encodes frames, the payload of CopyData while a replication stream runs.

The server sends `XLogData`, which carries one message of the output plugin, and `Keepalive`; we send status updates
(manual, "Streaming Replication Protocol"). Times are microseconds since 1970 here and since 2000 on the wire.
"""

import struct
from typing import Final

from cdc.errors import DataError

XLOG_DATA: Final = 0x77  # "w"
KEEPALIVE: Final = 0x6B  # "k"

# The offset of an XLogData's payload, for the one caller that reads frames without making objects of them.
WAL_END_BEGIN: Final = 9
WAL_END_END: Final = 17
PAYLOAD_BEGIN: Final = 25

POSTGRES_EPOCH_US: Final = 946_684_800_000_000  # 2000-01-01 in microseconds since 1970

_XLOG_DATA_HEADER = struct.Struct(">xQQq")
_KEEPALIVE = struct.Struct(">xQqB")
_STATUS_UPDATE = struct.Struct(">cQQQqB")


class XLogData:
    """A piece of WAL. `wal_start` is 0 on Relation and Type messages, and does not grow from one frame to the next."""

    __slots__ = ("payload", "send_time_us", "wal_end", "wal_start")

    def __init__(self, wal_start: int, wal_end: int, send_time_us: int, payload: bytes) -> None:
        self.wal_start = wal_start
        self.wal_end = wal_end
        self.send_time_us = send_time_us
        self.payload = payload


class Keepalive:
    """The server has decoded everything before `wal_end`. If it asks for a reply and gets none, it disconnects us."""

    __slots__ = ("reply_requested", "send_time_us", "wal_end")

    def __init__(self, wal_end: int, send_time_us: int, reply_requested: bool) -> None:
        self.wal_end = wal_end
        self.send_time_us = send_time_us
        self.reply_requested = reply_requested


Frame = XLogData | Keepalive


def decode_frame(data: bytes) -> Frame:
    """Decode the payload of one CopyData. Raises DataError if it is neither an XLogData nor a keepalive."""
    kind = data[0] if data else 0
    if kind == XLOG_DATA and len(data) > PAYLOAD_BEGIN:
        wal_start, wal_end, send_time_us = _XLOG_DATA_HEADER.unpack_from(data)
        return XLogData(wal_start, wal_end, send_time_us + POSTGRES_EPOCH_US, data[PAYLOAD_BEGIN:])
    if kind == KEEPALIVE and len(data) == _KEEPALIVE.size:
        wal_end, send_time_us, reply_requested = _KEEPALIVE.unpack(data)
        return Keepalive(wal_end, send_time_us + POSTGRES_EPOCH_US, reply_requested != 0)
    raise DataError(
        "the server sent a replication frame that is neither XLogData nor a keepalive",
        detail=f"frame type {kind:#04x}, {len(data)} bytes",
    )


def encode_status_update(
    written_lsn: int, flushed_lsn: int, applied_lsn: int, now_us: int, *, reply_requested: bool = False
) -> bytes:
    """Encode a standby status update: WAL before `flushed_lsn` may be forgotten. `now_us` is since 1970."""
    return _STATUS_UPDATE.pack(
        b"r", written_lsn, flushed_lsn, applied_lsn, now_us - POSTGRES_EPOCH_US, int(reply_requested)
    )
