"""Keys of an encrypted archive as text, so that they can be pasted, and a slip of the hand is noticed. Pure.

    cdcpub_<48 characters>    a recipient: whoever writes the archive needs no more than these
    cdckey_<48 characters>    an identity: it reads what was encrypted to its recipient

The characters are URL-safe base64 of the 32 bytes of an X25519 key and of the first 4 bytes of the SHA-256 of the name
before them and the key. Without that check a recipient with one wrong letter would be noticed on the day it is needed.
"""

import base64
from hashlib import sha256
from typing import Final

PUBLIC: Final = "cdcpub_"
PRIVATE: Final = "cdckey_"

_KEY_BYTES = 32
_CHECK_BYTES = 4


def encode_key(form: str, key: bytes) -> str:
    """32 bytes as text."""
    return form + base64.urlsafe_b64encode(key + _check(form, key)).decode()


def decode_key(form: str, text: str) -> bytes:
    """The 32 bytes of such a text. Raises ValueError, which never quotes it."""
    try:
        content = base64.urlsafe_b64decode(text.removeprefix(form))
    except ValueError:
        content = b""
    key = content[:_KEY_BYTES]
    if len(key) != _KEY_BYTES or encode_key(form, key) != text:
        raise ValueError(f"is not {form} and 48 letters, digits, - and _ that fit together: look for a slip")
    return key


def decode_identity(text: str) -> list[bytes]:
    """The private keys of a text with one a line; what follows a # is a remark. Raises ValueError."""
    words = [word for line in text.splitlines() for word in line.partition("#")[0].split()]
    if not words:
        raise ValueError("holds no key")
    return [decode_key(PRIVATE, word) for word in words]


def key_id(public: bytes) -> str:
    """The name by which an object says to whom it is encrypted: 16 hexadecimal digits."""
    return sha256(public).hexdigest()[:16]


def _check(form: str, key: bytes) -> bytes:
    return sha256(form.encode() + key).digest()[:_CHECK_BYTES]
