"""Makes a pair of keys. The private one goes into a file that only its owner can read, the public one to the caller."""

import os
from pathlib import Path

from cdc.archive.format.encryption import generate_key
from cdc.errors import Invalid


def write_identity(path: Path) -> str:
    """Draw a pair, write the private key to a new file, and return the public key.

    Raises Invalid if the file exists or cannot be written.
    """
    public, private = generate_key()
    text = f"# The key below decrypts what is encrypted to\n# {public}\n{private}\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
    except FileExistsError:
        raise Invalid(
            f"{path} exists; a private key is never overwritten",
            hint=f"cdc key generate --out {path}.new",
        ) from None
    except OSError as error:
        raise Invalid(
            f"the key cannot be written to {path}", detail=error.strerror or "", hint=f"ls -ld {path.parent}"
        ) from None
    return public
