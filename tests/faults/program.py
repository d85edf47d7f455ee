"""The checker as a process of its own: it looks on from the outside while a run lasts, and judges at its end.

    python -m tests.faults.checker --dsn ADMIN_DSN --archive URL [--endpoint URL] [--cache URL] [--config cdc.toml]

Start it before the service. It makes its witness, says `watching`, and samples until its standard input ends; by then
nobody must write any more, and both sinks must have caught up. It prints the verdict as one line of JSON, and the exit
code is 1 if there are findings. `--config` names the service's configuration: with it, random moments of the run are
restored and compared.

    with CheckerProcess("--dsn", dsn, "--archive", url) as checker:
        ...
        verdict = checker.verdict()
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import botocore.config
import botocore.exceptions
import botocore.session

from tests.faults.checker import TABLES, Verdict, acknowledgement_sampler, cache_sampler, check, read_table
from tests.faults.objects import directory_tail, read_archive, read_directory
from tests.faults.restore_points import Moments, check_restores
from tests.faults.witness import Witness

_PATIENCE_S = 900.0
_CONFIG = botocore.config.Config(
    request_checksum_calculation="when_required", response_checksum_validation="when_required"
)


class BucketReader:
    """An S3 bucket as a stranger reads it."""

    def __init__(self, url: str, endpoint_url: str | None) -> None:
        parts = urlsplit(url)
        self._bucket, self._prefix = parts.netloc, parts.path.strip("/")
        self._client: Any = botocore.session.get_session().create_client(
            "s3", region_name="auto", endpoint_url=endpoint_url, config=_CONFIG
        )
        self._seq, self._tail = -1, b""

    def objects(self) -> dict[str, bytes]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
        keys = [found["Key"] for page in pages for found in page.get("Contents", ())]
        return {key: self._get(key) or b"" for key in keys}

    def tail(self) -> bytes | None:
        """The last segment. The log is dense, so the search goes on where the last one ended."""
        while (body := self._get(f"{self._prefix}/log/{self._seq + 1:016d}.ndjson.zst")) is not None:
            self._seq, self._tail = self._seq + 1, body
        return self._tail or None

    def _get(self, key: str) -> bytes | None:
        try:
            found: bytes = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except self._client.exceptions.NoSuchKey:
            return None
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise ConnectionError(str(error)) from error
        return found


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    objects, tail = _archive(options)
    witness = Witness(options.dsn, TABLES)
    before = read_table(options.dsn, TABLES[0]).rows
    cache = cache_sampler(options.cache, dsn=options.dsn, flushed=options.flushed) if options.cache else None
    acknowledgements = acknowledgement_sampler(options.dsn, tail, options.slot)
    moments = Moments(options.dsn, limit=options.moments if options.config else 0, mean_pause_s=options.pause_s)
    with ExitStack() as looking:
        for sampler in (acknowledgements, cache, moments):
            if sampler is not None:
                looking.enter_context(sampler)
        print("watching", flush=True)
        sys.stdin.read()
    told = witness.transactions()
    verdict = check(
        options.dsn,
        objects(),
        options.cache,
        told,
        breaks_are_told=options.breaks_are_told,
        reads=cache.reads if cache else None,
        before=before,
    )
    verdict.findings += acknowledgements.findings + moments.findings + (cache.findings if cache else [])
    verdict.figures |= {"acknowledgement_samples": acknowledgements.looks, "cache_samples": cache.looks if cache else 0}
    if options.config:
        archive = read_archive(objects())
        # After the last that was told, nothing obliges the archive to have come to where a moment was taken.
        told_upto = max((transaction.end_lsn for transaction in told), default=0)
        taken = [moment for moment in moments.taken if moment.lsn <= told_upto]
        compared, findings = check_restores(options.dsn, options.config, taken, told, archive, limit=options.moments)
        verdict.findings += findings
        verdict.figures["restores"] = compared
    print(json.dumps(asdict(verdict)))
    return 1 if verdict.findings else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.checker", description=__doc__.splitlines()[0])
    parser.add_argument("--dsn", required=True, help="a superuser's, of the database that is replicated")
    parser.add_argument("--archive", required=True, help="file:// or s3://")
    parser.add_argument("--endpoint", help="of the bucket; credentials come from the usual AWS chain")
    parser.add_argument("--cache", help="redis://")
    parser.add_argument("--slot", default="cdc")
    parser.add_argument("--config", type=Path, help="cdc.toml of the service, to restore with")
    parser.add_argument("--moments", type=int, default=20, help="to restore at the end, at most")
    parser.add_argument("--pause-s", type=float, default=1.0, help="between two moments, on the average")
    parser.add_argument("--flushed", action="store_true", help="somebody empties the cache during the run")
    parser.add_argument("--breaks-are-told", action="store_true", help="gaps and forks are meant, and recorded")
    return parser.parse_args(arguments)


def _archive(options: argparse.Namespace) -> tuple[Callable[[], dict[str, bytes]], Callable[[], bytes | None]]:
    url: str = options.archive
    if url.startswith("file:"):
        return lambda: read_directory(url), lambda: directory_tail(url)
    bucket = BucketReader(url, options.endpoint)
    return bucket.objects, bucket.tail


class CheckerProcess:
    """The program, for as long as the block takes; killed at its end if nobody has asked for the verdict."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.checker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=None if environment is None else dict(environment),
            cwd=Path(__file__).parents[2],
            text=True,
        )

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if said != "watching":
            self._process.kill()
            raise RuntimeError(f"the checker did not start: {said!r}, exit code {self._process.wait()}")
        return self

    def verdict(self) -> Verdict:
        """Nobody writes any more, and both sinks have caught up: what does it say?"""
        said, _ = self._process.communicate(timeout=_PATIENCE_S)
        if not said.strip():
            return Verdict([f"the checker ended without a verdict, exit code {self._process.returncode}"])
        return Verdict(**json.loads(said.splitlines()[-1]))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
