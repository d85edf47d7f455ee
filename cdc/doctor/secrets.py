"""Judges how secrets are kept: can other users of this machine read them, and is the right key here? Pure."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from cdc.archive.format.encryption import Keys
from cdc.config import ArchiveSettings
from cdc.finding import Finding


def judge_files(exposed: Sequence[Path]) -> list[Finding]:
    """Judge files with secrets that any user of this machine may read."""
    findings = []
    for file in exposed:
        message = f"{file} holds a secret, and every user of this machine may read it"
        command = f"chmod o-rwx {shlex.quote(str(file.resolve()))}"
        findings.append(Finding("secrets", message, command, command=command))
    return findings


def judge_encryption(settings: ArchiveSettings) -> list[Finding]:
    """Judge whether `archive.identity` opens what is encrypted to `archive.recipients`, before it is needed."""
    if not settings.recipients:
        return []
    written = f"what is archived is encrypted to {len(settings.recipients)} keys"
    if settings.identity is None:
        return [Finding("secrets", f"{written}, none of which is here", level="ok")]
    if Keys.parse(settings.identity.get_secret_value()).open_for(settings.recipients):
        return [Finding("secrets", f"{written}, and archive.identity is one of them", level="ok")]
    message = f"{written}, and archive.identity is none of them: the cache cannot catch up from the archive"
    hint = "add the line of the right key to the identity's file   # docs/encryption.md"
    return [Finding("secrets", message, hint, level="error")]
