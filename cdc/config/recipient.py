"""Writes keys of an encrypted archive as text that can be pasted, and notices a mistyped character. Pure.

    cdcpub_<48 characters>    a recipient: writing the archive needs these only
    cdckey_<48 characters>    an identity: it reads what was encrypted to its recipient

The characters are URL-safe base64 of the 32 bytes of an X25519 key and of the first 4 bytes of the SHA-256 of the name
before them and the key. Without that check a recipient with one wrong letter would be noticed only when it is needed.
"""

import base64
from hashlib import sha256
from typing import Final

PUBLIC: Final = "cdcpub_"
PRIVATE: Final = "cdckey_"

_KEY_BYTES = 32
_CHECK_BYTES = 4


def encode_key(form: str, key: bytes) -> str:
    """Write a key of 32 bytes as text; `form` is PUBLIC or PRIVATE."""
    return form + base64.urlsafe_b64encode(key + _check(form, key)).decode()


def decode_key(form: str, text: str) -> bytes:
    """Read the 32 bytes of a key from its text. Raises ValueError, whose message never quotes the text."""
    try:
        content = base64.urlsafe_b64decode(text.removeprefix(form))
    except ValueError:
        content = b""
    key = content[:_KEY_BYTES]
    if len(key) != _KEY_BYTES or encode_key(form, key) != text:
        raise ValueError(f"is not {form} and 48 letters, digits, - and _ that fit together: look for a slip")
    return key


def decode_identity(text: str) -> list[bytes]:
    """Read private keys from a text that has one a line; what follows a # is a comment. Raises ValueError."""
    words = [word for line in text.splitlines() for word in line.partition("#")[0].split()]
    if not words:
        raise ValueError("holds no key")
    return [decode_key(PRIVATE, word) for word in words]


def key_id(public: bytes) -> str:
    """The recipient's name in an object's header: 16 hexadecimal digits."""
    return sha256(public).hexdigest()[:16]


def _check(form: str, key: bytes) -> bytes:
    return sha256(form.encode() + key).digest()[:_CHECK_BYTES]
