"""Encrypts the lines of an object. The header stays readable: it holds no row's values, and the chain is over the bytes
as they are stored. So `verify`, `ls` and the writer itself need no key.

An object has a random key of its own (32 bytes). Its header carries that key, wrapped for each recipient with HPKE (RFC
9180: base mode, X25519, HKDF-SHA256, AES-256-GCM). Each zstd frame of lines becomes one zstd *skippable* frame. So the
object still is a run of zstd frames, and `zstdcat` shows its header:

    50 2A 4D 18 | length, 4 bytes little-endian | AES-256-GCM of the frame, its tag at the end | check, 8 bytes

The nonce is the frame's number from 0, 12 bytes big-endian; the additional data the SHA-256 of the header line without
its line break. So no frame can be changed, moved, or put under another header; the header counts them, so none can be
missing. `check` begins the SHA-256 of the ciphertext: damage is found without a key. Encryption to public keys says
nothing about who wrote: see docs/encryption.md.
"""

import base64
import binascii
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from cdc.archive.format.header import Encryption, Header, WrappedKey
from cdc.archive.format.header_line import encode_header
from cdc.config.recipient import PRIVATE, PUBLIC, decode_identity, decode_key, encode_key, key_id
from cdc.errors import DataError, Invalid

_WRAP: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_INFO: Final = b"waltier archive 1"
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_CHECK_BYTES: Final = 8

_MAGIC: Final = 0x184D2A50  # the first of zstd's skippable frames (RFC 8878, 3.1.2)
_FRAME: Final = struct.Struct("<II")


class Sealed(Invalid):
    """Rows are needed, and none of the given keys opens the object."""


class Recipients:
    """Encrypts new objects to recipients, which are given by their public keys (`cdcpub_…`)."""

    def __init__(self, texts: Sequence[str]) -> None:
        publics = [decode_key(PUBLIC, text) for text in texts]
        self._keys = {key_id(public): X25519PublicKey.from_public_bytes(public) for public in publics}

    def seal(self, header: Header, frames: Sequence[bytes]) -> tuple[Header, list[bytes]]:
        """Encrypt the frames of lines; return the header and the frames as they are stored.

        The bytes differ at each call: keep them for further attempts.
        """
        key = os.urandom(_KEY_BYTES)
        wrapped = [WrappedKey(name, _text(_WRAP.encrypt(key, public, _INFO))) for name, public in self._keys.items()]
        header = replace(header, encryption=Encryption("AES-256-GCM", "HPKE-X25519", len(frames), tuple(wrapped)))
        cipher, digest = AESGCM(key), sha256(encode_header(header)).digest()
        return header, [_pack(cipher.encrypt(_nonce(n), frame, digest)) for n, frame in enumerate(frames)]


class Keys:
    """Private keys, which open the objects that were encrypted to them."""

    def __init__(self, private: Iterable[X25519PrivateKey] = ()) -> None:
        self._keys = {key_id(key.public_key().public_bytes_raw()): key for key in private}

    @classmethod
    def parse(cls, text: str) -> "Keys":
        """Read the keys of an identity (cdc/config/recipient.py). Raises ValueError, which never quotes a key."""
        return cls([X25519PrivateKey.from_private_bytes(key) for key in decode_identity(text)])

    def open_for(self, recipients: Sequence[str]) -> bool:
        """True if one of the keys belongs to one of these recipients."""
        return any(key_id(decode_key(PUBLIC, text)) in self._keys for text in recipients)

    def unwrap(self, encryption: Encryption) -> bytes | None:
        """Unwrap the key of an object; None if it is encrypted to others. Raises DataError."""
        for wrapped in encryption.recipients:
            private = self._keys.get(wrapped.id)
            if private is not None:
                return _unwrap(wrapped, private)
        return None


NO_KEYS: Final = Keys()


def sealed_frames(data: memoryview, header: Header, encryption: Encryption) -> list[memoryview]:
    """Read the ciphertexts of an object, and check all that can be checked without a key. Raises DataError."""
    frames = list(_unpack(data, header))
    if len(frames) != encryption.frames:
        raise _damaged(header, f"it holds {len(frames)} encrypted frames, its header counts {encryption.frames}")
    return frames


def unseal(frames: Iterable[memoryview], header: Header, line: bytes, key: bytes) -> bytes:
    """Decrypt the zstd frames that were encrypted under this header line with this key. Raises DataError."""
    cipher, digest = AESGCM(key), sha256(line).digest()
    try:
        return b"".join([cipher.decrypt(_nonce(n), frame, digest) for n, frame in enumerate(frames)])
    except InvalidTag:
        raise _damaged(header, "its lines were not encrypted under its header with this key") from None


def no_key_for(header: Header, encryption: Encryption) -> Sealed:
    """The error to raise for an object whose lines are needed and whose key is missing."""
    what = "a snapshot's chunk" if header.kind == "base" else f"segment {header.seq}"
    return Sealed(
        f"the rows of {what} are encrypted, and no key that opens them is configured",
        detail=f"Any of these keys does: {', '.join(wrapped.id for wrapped in encryption.recipients)}.",
        hint="CDC_ARCHIVE__IDENTITY_FILE=/etc/waltier/identity   # docs/encryption.md says what can be done without",
    )


def generate_key() -> tuple[str, str]:
    """Draw a new pair of keys: the public one, to write as a recipient, and the private one, to keep secret."""
    private = X25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    return encode_key(PUBLIC, public), encode_key(PRIVATE, private.private_bytes_raw())


def _unwrap(wrapped: WrappedKey, private: X25519PrivateKey) -> bytes:
    try:
        key = _WRAP.decrypt(base64.b64decode(wrapped.key, validate=True), private, _INFO)
    except (InvalidTag, ValueError, binascii.Error):
        key = b""
    if len(key) != _KEY_BYTES:
        raise DataError(f"an archive object is damaged: its key for {wrapped.id} does not open")
    return key


def _pack(sealed: bytes) -> bytes:
    return b"".join([_FRAME.pack(_MAGIC, len(sealed) + _CHECK_BYTES), sealed, _check(sealed)])


def _unpack(data: memoryview, header: Header) -> Iterator[memoryview]:
    at = 0
    while at < len(data):
        begin = at + _FRAME.size
        magic, length = _FRAME.unpack_from(data, at) if begin <= len(data) else (0, 0)
        following, end = begin + length, begin + length - _CHECK_BYTES
        if magic != _MAGIC or end < begin + _TAG_BYTES or following > len(data):
            raise _damaged(header, f"no encrypted frame at byte {at} after its header")
        if data[end:following] != _check(data[begin:end]):
            raise _damaged(header, f"the frame at byte {at} after its header does not have its checksum")
        yield data[begin:end]
        at = following


def _check(sealed: bytes | memoryview) -> bytes:
    return sha256(sealed).digest()[:_CHECK_BYTES]


def _nonce(number: int) -> bytes:
    return number.to_bytes(_NONCE_BYTES, "big")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _damaged(header: Header, detail: str) -> DataError:
    return DataError(f"the encrypted lines of segment {header.seq} are damaged", detail=detail)
