"""Frames of the streaming replication protocol, both ways."""

import struct

import pytest

from cdc.errors import DataError
from cdc.pgoutput.frames import Keepalive, XLogData, decode_frame, encode_status_update
from tests.unit.pgoutput import encoder as wire

YEAR_2000_US = 946_684_800_000_000


def test_xlog_data_carries_positions_a_time_since_1970_and_the_message() -> None:
    frame = decode_frame(wire.xlog_data(b"payload", lsn=0x16_B374D848, send_time=5))
    assert isinstance(frame, XLogData)
    assert (frame.wal_start, frame.wal_end) == (0x16_B374D848, 0x16_B374D848)
    assert frame.send_time_us == YEAR_2000_US + 5
    assert frame.payload == b"payload"


@pytest.mark.parametrize("reply", [False, True])
def test_a_keepalive_says_how_far_the_server_is_and_whether_it_wants_an_answer(reply: bool) -> None:
    frame = decode_frame(wire.keepalive(2**64 - 1, send_time=-7, reply=reply))
    assert isinstance(frame, Keepalive)
    assert (frame.wal_end, frame.send_time_us, frame.reply_requested) == (2**64 - 1, YEAR_2000_US - 7, reply)


@pytest.mark.parametrize(
    "data",
    [b"", b"w", wire.xlog_data(b""), wire.keepalive(1)[:-1], wire.keepalive(1) + b"x", b"x" * 18, b"d" * 40],
    ids=["empty", "short", "no message", "short keepalive", "long keepalive", "unknown", "unknown and long"],
)
def test_anything_else_is_a_data_error(data: bytes) -> None:
    with pytest.raises(DataError):
        decode_frame(data)


def test_a_status_update_is_laid_out_as_the_manual_says() -> None:
    encoded = encode_status_update(3, 2, 1, YEAR_2000_US + 9, reply_requested=True)
    assert encoded == b"r" + struct.pack(">QQQqB", 3, 2, 1, 9, 1)
    assert encode_status_update(3, 2, 1, YEAR_2000_US)[-1] == 0
