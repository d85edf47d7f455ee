"""`cdc doctor --fix`, and a shell that runs what it printed, as an operator would after reading it.

`psql`, `redis-cli` and `aws` are small programs of ours that take the arguments which the script uses: not every
machine of the tests has the real ones.
"""

import asyncio
import os
import stat
import subprocess
import sys
from pathlib import Path

from cdc.config import load
from cdc.doctor import examine, script
from cdc.doctor.script import OPTIONAL
from cdc.finding import Finding
from cdc.postgres.install import apply
from tests.support.cdc_process import Command

# Statement after statement, as psql sends them, and the end at the first that fails.
_PSQL = """
import sys, psycopg
arguments = sys.argv[1:]
assert arguments[:4] == ["-X", "-q", "-v", "ON_ERROR_STOP=1"], arguments
text = arguments[6] if arguments[5:6] == ["-c"] else sys.stdin.read()
with psycopg.connect(arguments[4], autocommit=True) as connection:
    for statement in text.split(";"):
        if statement.strip():
            connection.execute(statement)
"""

_REDIS_CLI = """
import sys, redis
assert sys.argv[1] == "-u", sys.argv
with redis.Redis.from_url(sys.argv[2]) as client:
    client.execute_command(*sys.argv[3:])
"""

_AWS = """
import json, sys, boto3
from botocore.config import Config
command, options = sys.argv[2], dict(zip(sys.argv[3::2], sys.argv[4::2]))
assert sys.argv[1] == "s3api", sys.argv
client = boto3.client("s3", endpoint_url=options.pop("--endpoint-url", None), region_name=options.pop("--region", None),
    config=Config(request_checksum_calculation="when_required", s3={"addressing_style": "path"}))
names = {"--bucket": "Bucket", "--lifecycle-configuration": "LifecycleConfiguration",
         "--versioning-configuration": "VersioningConfiguration"}
arguments = {names[name]: json.loads(value) if value.startswith("{") else value for name, value in options.items()}
getattr(client, command.replace("-", "_"))(**arguments)
"""

_PROGRAMS = {"psql": _PSQL, "redis-cli": _REDIS_CLI, "aws": _AWS}


NOBODY = "postgresql://postgres@127.0.0.1:1/chat"


class Pasted:
    """An installation: `finds` asks the doctor, `paste` runs its script. Without a dsn there is no Postgres."""

    def __init__(
        self, directory: Path, dsn: str | None, archive_url: str, redis_url: str | None, *, slot: str, **settings: str
    ) -> None:
        self.dsn = dsn or NOBODY
        self._bin = directory / "bin"
        self._bin.mkdir(exist_ok=True)
        for name, program in _PROGRAMS.items():
            path = self._bin / name
            path.write_text(f"#!{sys.executable}\n{program}")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        self.cdc = Command(
            {
                "CDC_POSTGRES__DSN": self.dsn,
                "CDC_POSTGRES__SLOT": slot,
                "CDC_ARCHIVE__URL": archive_url,
                **({"CDC_CACHE__URL": redis_url} if redis_url else {}),
                **settings,
            },
            directory,
        )
        if dsn is not None:
            asyncio.run(apply(dsn))

    async def examine(self) -> list[Finding]:
        """In this process, which takes a tenth of the time of a command."""
        found = await examine(load(None, self.cdc.settings))
        await asyncio.sleep(0.01)  # connections that were cut off are closed by the loop, one step later
        return found

    def findings(self) -> list[Finding]:
        return asyncio.run(self.examine())

    def finds(self, words: str) -> bool:
        return any(words in found.message for found in self.findings())

    def script(self) -> str:
        return script(self.findings())

    def paste(self, *, optional: bool = False) -> None:
        """Run the script; `optional`: with the marks of what a person must want taken away."""
        lines = self.script()
        if optional:
            lines = "\n".join(line.removeprefix(OPTIONAL) for line in lines.split("\n"))
        environment = {
            **os.environ,
            **self.cdc.settings,
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "CDC_ADMIN_DSN": self.dsn,
        }
        done = subprocess.run(["sh"], input=lines, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{lines}\n{done.stderr}"

    def assert_mended(self, words: str, *, optional: bool = False) -> None:
        """It is found; after pasting the script it is not."""
        found = next((found for found in self.findings() if words in found.message), None)
        assert found is not None, self.findings()
        assert found.level != "ok"
        assert found.hint
        assert found.optional == optional
        self.paste(optional=optional)
        assert not self.finds(words), self.script()
