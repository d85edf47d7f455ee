"""A new pair of keys. The private one goes into a file that only its owner reads, the public one to the caller."""

import os
from pathlib import Path

from cdc.archive.format.encryption import generate_key
from cdc.errors import Invalid


def write_identity(path: Path) -> str:
    """Draw a pair, make the file with the private key, and return the public one. Never overwrites. Raises Invalid."""
    public, private = generate_key()
    text = f"# Whoever has the key below reads what is encrypted to\n# {public}\n{private}\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
    except FileExistsError:
        raise Invalid(
            f"{path} is there already, and a key that is overwritten is lost with all that it reads",
            hint=f"cdc key generate --out {path}.new",
        ) from None
    except OSError as error:
        raise Invalid(
            f"the key cannot be written to {path}", detail=error.strerror or "", hint=f"ls -ld {path.parent}"
        ) from None
    return public
