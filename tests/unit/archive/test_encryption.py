"""Encrypted objects: what comes back, with which key, and that no byte of them can be changed unnoticed."""

from dataclasses import replace

import pytest

from cdc.archive.format.encryption import NO_KEYS, Keys, Recipients, Sealed, generate_key
from cdc.archive.format.header import Header, Writer
from cdc.archive.format.header_line import decode_header, encode_header
from cdc.archive.format.lines import Encoder
from cdc.archive.format.segment import (
    Segment,
    compress_frame,
    compress_header,
    decode_segment,
    decode_segment_header,
    inspect_segment,
)
from cdc.config.recipient import PRIVATE, PUBLIC, decode_identity, decode_key
from cdc.errors import DataError
from tests.support.transactions import SOURCE, facts, transaction

BOX, SAFE, STRANGER = generate_key(), generate_key(), generate_key()
RECIPIENTS = Recipients([BOX[0], SAFE[0]])
KEYS = Keys.parse(BOX[1])
CANARY = b"canary-7d1f"


def sealed(seq: int = 7, frames: int = 3, recipients: Recipients | None = RECIPIENTS) -> bytes:
    """An object whose lines are in so many frames, each line with the canary; without recipients as it always was."""
    encoder, lines = Encoder(), []
    transactions = [transaction(number, content=CANARY) for number in range(1, frames + 1)]
    for at, one in enumerate(transactions):
        lines.append(encoder.encode(41 + at, one, one.changes))
    header = Header(
        archive="4be2f8c0",
        seq=seq,
        kind="data",
        prev_sha256="00" * 32,
        writer=Writer("w", 3),
        source=SOURCE,
        first_lsn=transactions[0].commit_lsn,
        last_lsn=transactions[-1].commit_lsn,
        covered_upto=transactions[-1].end_lsn,
        first_ordinal=41,
        transactions=frames,
        changes=encoder.lines,
        relations=dict(encoder.relations),
        body_bytes=sum(map(len, lines)),
        ends=(48,) * frames,
    )
    compressed = [compress_frame(line, 3) for line in lines]
    if recipients is not None:
        header, compressed = recipients.seal(header, compressed)
    return b"".join([compress_header(header, 3), *compressed])


def parts(data: bytes) -> tuple[bytes, bytes]:
    """The header's frame, and what follows it."""
    size = len(compress_header(decode_segment_header(data), 3))
    return data[:size], data[size:]


def frames_of(body: bytes) -> list[bytes]:
    """The encrypted frames, cut by their lengths."""
    frames = []
    while body:
        size = 8 + int.from_bytes(body[4:8], "little")
        frames.append(body[:size])
        body = body[size:]
    return frames


@pytest.mark.parametrize("private", [BOX[1], SAFE[1]], ids=["box", "safe"])
def test_each_recipient_alone_reads_what_an_unencrypted_object_would_say(private: str) -> None:
    plain = decode_segment(sealed(recipients=None))
    opened = decode_segment(sealed(), Keys.parse(private))
    assert opened.lines == plain.lines
    assert facts(opened.transactions()) == facts(plain.transactions())


def test_no_stored_byte_tells_a_value() -> None:
    plain, encrypted = sealed(recipients=None), sealed()
    assert any(CANARY in line for line in decode_segment(plain).lines)
    assert CANARY not in encrypted
    assert CANARY not in encode_header(decode_segment_header(encrypted))


def test_without_a_key_the_header_is_read_and_the_rows_are_refused_by_the_keys_names() -> None:
    data = sealed()
    header = decode_segment_header(data)
    assert header.changes == 3
    assert inspect_segment(data) == header
    with pytest.raises(Sealed, match="rows of segment 7 are encrypted") as refusal:
        decode_segment(data, Keys.parse(STRANGER[1]))
    assert header.encryption is not None
    names = [wrapped.id for wrapped in header.encryption.recipients]
    assert len(names) == 2
    assert all(name in refusal.value.detail for name in names)
    assert "CDC_ARCHIVE__IDENTITY" in refusal.value.hint


@pytest.mark.parametrize("keys", [KEYS, NO_KEYS], ids=["with the key", "without a key"])
def test_no_byte_can_be_flipped_with_or_without_a_key(keys: Keys) -> None:
    data = sealed(frames=2)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        try:
            found = inspect_segment(bytes(damaged), keys)
        except DataError:
            continue
        # zstd has bits that say nothing (RFC 8878, 3.1.1.1.1.4): then the very same comes out.
        assert found == inspect_segment(data) or isinstance(found, Segment), at
        assert not isinstance(found, Segment) or found.lines == decode_segment(data, keys).lines, at


@pytest.mark.parametrize("keys", [KEYS, NO_KEYS], ids=["with the key", "without a key"])
def test_no_length_but_the_whole_is_taken(keys: Keys) -> None:
    data = sealed()
    for size in range(len(data)):
        with pytest.raises(DataError):
            inspect_segment(data[:size], keys)
    with pytest.raises(DataError):
        inspect_segment(data + b"\0", keys)


def test_bodies_and_frames_cannot_change_places() -> None:
    (one, body), (other, other_body) = parts(sealed(7)), parts(sealed(8))
    assert len(body) == len(other_body)
    with pytest.raises(DataError, match="encrypted lines of segment"):
        decode_segment(one + other_body, KEYS)
    with pytest.raises(DataError, match="encrypted lines of segment"):
        decode_segment(other + body, KEYS)
    first, second, third = frames_of(body)
    for order in ((second, first, third), (first, first, third), (first, second, second)):
        with pytest.raises(DataError, match="encrypted lines of segment"):
            decode_segment(one + b"".join(order), KEYS)


def test_a_frame_too_few_is_noticed_without_a_key() -> None:
    header, body = parts(sealed())
    with pytest.raises(DataError, match="damaged") as damage:
        inspect_segment(header + b"".join(frames_of(body)[:2]))
    assert "2 encrypted frames, its header counts 3" in damage.value.detail


def test_a_header_cannot_be_rewritten_above_its_lines() -> None:
    data = sealed()
    header, body = decode_segment_header(data), parts(data)[1]
    forged = compress_header(replace(header, covered_upto=header.covered_upto + 1), 3) + body
    assert isinstance(inspect_segment(forged), Header)
    with pytest.raises(DataError, match="damaged"):
        decode_segment(forged, KEYS)


def test_a_key_wrapped_for_somebody_else_under_our_name_is_damage() -> None:
    data = sealed()
    header = decode_segment_header(data)
    assert header.encryption is not None
    ours, theirs = header.encryption.recipients
    swapped = replace(
        header,
        encryption=type(header.encryption)(
            "AES-256-GCM", "HPKE-X25519", 3, (type(ours)(ours.id, theirs.key), type(ours)(theirs.id, "no base64!"))
        ),
    )
    for private in (BOX[1], SAFE[1]):
        with pytest.raises(DataError, match="does not open"):
            decode_segment(compress_header(swapped, 3) + parts(data)[1], Keys.parse(private))


def test_the_same_lines_are_other_bytes_each_time() -> None:
    assert parts(sealed())[1] != parts(sealed())[1]


def test_a_header_says_nothing_of_encryption_where_there_is_none() -> None:
    header = decode_segment_header(sealed(recipients=None))
    assert b"encryption" not in encode_header(header)
    encrypted = decode_segment_header(sealed())
    assert decode_header(encode_header(encrypted)) == encrypted


@pytest.mark.parametrize(("form", "text"), [(PUBLIC, BOX[0]), (PRIVATE, BOX[1])], ids=["public", "private"])
def test_a_slip_in_a_key_is_noticed_and_never_quoted(form: str, text: str) -> None:
    assert len(decode_key(form, text)) == 32
    for at in range(len(text)):
        wrong = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
        with pytest.raises(ValueError, match="look for a slip") as refusal:
            decode_key(form, wrong)
        assert text[8:40] not in str(refusal.value)
    for wrong in ("", text[:-1], text + "A", text + "\n", "é" * 55, {PUBLIC: BOX[1], PRIVATE: BOX[0]}[form]):
        with pytest.raises(ValueError, match="look for a slip"):
            decode_key(form, wrong)


def test_an_identity_holds_several_keys_and_remarks() -> None:
    text = f"# the box's, since May\n{BOX[1]}\n\n{SAFE[1]}  # the safe's\n"
    assert len(decode_identity(text)) == 2
    with pytest.raises(ValueError, match="holds no key"):
        decode_identity("# nothing yet\n")
