"""`cdc run` tells as metrics what other commands have proved, and is not held up by not knowing it."""

import asyncio
import contextlib

import pytest
from prometheus_client import generate_latest

from cdc.archive.bucket.memory import MemoryBucket
from cdc.archive.proof import proofs as proof
from cdc.archive.proof.proofs import AGAINST_KEY, DRILL_KEY, VERIFY_KEY, read_proofs, remember_run, success, watch
from cdc.archive.proof.verification import Prover
from cdc.errors import Unavailable
from cdc.metrics import REGISTRY
from tests.support.transactions import batch, opened, transaction

NOW_US = 1_795_000_000_000_000


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


async def watch_once(bucket: MemoryBucket, archive: str, monkeypatch: pytest.MonkeyPatch, times: int = 1) -> None:
    monkeypatch.setattr(proof, "WATCH_S", 0.01)
    for _ in range(times):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await watch(bucket, archive)


async def proved(bucket: MemoryBucket) -> str:
    sink = await opened(bucket)
    await sink.write(batch(transaction(1)))
    run = await Prover(bucket).run()
    return run.report.archive


async def test_gauges_say_what_was_proved_last_and_go_red(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = MemoryBucket()
    archive = await proved(bucket)
    equal = success(NOW_US, 148, {"public.turns": 10})
    restored = success(NOW_US, 148, {"public.turns": 10}, changes=30, seconds=2.0)
    await remember_run(bucket, AGAINST_KEY, archive=archive, command="", now_us=NOW_US, success=equal)
    await remember_run(bucket, DRILL_KEY, archive=archive, command="", now_us=NOW_US, success=restored)
    await watch_once(bucket, archive, monkeypatch)
    assert [value("cdc_proof_ok", proof=name) for name in ("verify", "against", "drill")] == [1, 1, 1]
    assert value("cdc_proof_lsn", proof="verify") == 148
    assert value("cdc_proof_timestamp_seconds", proof="drill") == NOW_US / 1e6
    assert (value("cdc_drill_seconds"), value("cdc_drill_rows_per_second")) == (2.0, 20.0)

    bucket.objects["log/strange"] = b""
    assert not (await Prover(bucket).run()).report.intact
    failed = "2 differences"
    await remember_run(
        bucket, DRILL_KEY, archive=archive, command="", now_us=NOW_US + 9_000_000, failure=failed, success=None
    )
    await watch_once(bucket, archive, monkeypatch)
    assert [value("cdc_proof_ok", proof=name) for name in ("verify", "against", "drill")] == [0, 1, 0]
    assert value("cdc_proof_timestamp_seconds", proof="drill") == NOW_US / 1e6  # when it last succeeded
    assert b"cdc_proof_ok" in generate_latest(REGISTRY)


async def test_the_proofs_of_another_archive_say_nothing_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = MemoryBucket()
    await proved(bucket)
    monkeypatch.setattr(proof, "export", lambda proofs: seen.append(proofs))
    seen: list[proof.Proofs] = []
    await watch_once(bucket, "another", monkeypatch)
    assert seen[0] == proof.Proofs()


class Away(MemoryBucket):
    async def get(self, key: str) -> bytes | None:
        raise Unavailable("the bucket does not answer")


async def test_a_bucket_that_is_away_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    await watch_once(Away(), "a", monkeypatch, times=3)


async def test_a_result_that_cannot_be_written_down_says_why() -> None:
    why = await remember_run(Away(), DRILL_KEY, archive="a", command="", now_us=NOW_US, success=None)
    assert why == "the bucket does not answer"


async def test_what_is_no_proof_is_none() -> None:
    bucket = MemoryBucket()
    bucket.objects = {VERIFY_KEY: b"{", AGAINST_KEY: b"[]", DRILL_KEY: b'{"cdc":1,"archive":"a"}'}
    assert await read_proofs(bucket) == proof.Proofs()
