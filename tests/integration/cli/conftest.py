"""A command on servers of the session, and the slot that it is configured with."""

from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.cdc_process import Command


@pytest.fixture
def slot() -> str:
    return f"cdc_{uuid4().hex[:12]}"


@pytest.fixture
def cdc(database: str, redis_url: str, archive_dir: str, slot: str, tmp_path: Path) -> Command:
    """A command whose database has sql/ installed."""
    command = Command(
        {
            "CDC_POSTGRES__DSN": database,
            "CDC_POSTGRES__ALLOW_INSECURE": "true",
            "CDC_POSTGRES__SLOT": slot,
            "CDC_ARCHIVE__URL": archive_dir,
            "CDC_ARCHIVE__LINGER_S": "0.1",
            "CDC_CACHE__URL": redis_url,
        },
        tmp_path,
    )
    done = command("init")
    assert done.returncode == 0, done.stderr
    return command
