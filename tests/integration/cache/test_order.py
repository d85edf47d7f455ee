"""The script's own idea of order, which knows only text, against exact numbers."""

import asyncio
import math
from collections.abc import Sequence
from decimal import Decimal

from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr

from cdc.cache.order import time_us
from cdc.cache.sink import CacheSink
from cdc.change import CREATE, Batch, Column, Relation, RowChange
from cdc.config import CacheSettings, LatestProjection
from tests.support.cache_model import EPOCH, NOW_US, START, snapshot, transaction

PROJECTION = LatestProjection(table="public.t", key="k:{k}", order_by="o", columns=("n",), time_column=None)
quick = hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


async def _newest(url: str, type_oid: int, texts: Sequence[str]) -> int:
    """Insert rows with these orders, one call each; which is the latest then?"""
    columns = [Column(name, name, oid, -1, False) for name, oid in (("k", 25), ("o", type_oid), ("n", 23))]
    relation = Relation(1, "public", "t", "f", columns)
    sink = CacheSink(CacheSettings(url=SecretStr(url), projections=(PROJECTION,)), EPOCH)
    try:
        await sink.open()
        await sink.warm(snapshot(), START, NOW_US)
        for number, text in enumerate(texts, 1):
            change = RowChange(CREATE, 0, relation, [b"a", text.encode(), b"%d" % number], None)
            await sink.write(Batch([transaction(number, NOW_US, change)]))
        value: bytes = await sink._connection.call(b"GET", b"k:a")
        return int(value.rsplit(b":", 1)[1].rstrip(b"}")) - 1
    finally:
        await sink.close()


def _last_greatest(ranks: Sequence[float | Decimal]) -> int:
    return max(range(len(ranks)), key=lambda index: (ranks[index], index))


@quick
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(2**53, 2**53 + 9), min_size=2, max_size=9))
def test_integers_of_any_size(redis_url: str, numbers: list[int]) -> None:
    newest = asyncio.run(_newest(redis_url, 20, [str(number) for number in numbers]))
    assert newest == _last_greatest(numbers)


@quick
@given(st.lists(st.decimals(allow_nan=False) | st.sampled_from([Decimal("1e40"), Decimal("-0.5")]), min_size=2))
def test_numerics_of_any_scale(redis_url: str, numbers: list[Decimal]) -> None:
    texts = [f"{number:f}" for number in numbers]
    newest = asyncio.run(_newest(redis_url, 1700, texts))
    assert newest == _last_greatest(numbers)


@quick
@given(st.lists(st.floats(), min_size=2, max_size=9))
def test_floats(redis_url: str, numbers: list[float]) -> None:
    texts = [repr(number).replace("inf", "Infinity").replace("nan", "NaN") for number in numbers]
    newest = asyncio.run(_newest(redis_url, 701, texts))
    # NaN is greater than infinity, and equal to itself.
    assert newest == max(
        range(len(numbers)), key=lambda i: (math.isnan(numbers[i]), 0 if math.isnan(numbers[i]) else numbers[i], i)
    )


_DATES = st.sampled_from(["0044-03-15", "0044-03-16", "2026-11-22", "9999-12-31", "10000-01-01", "294276-12-31"])
_TIMES = st.sampled_from(["", " 00:00:00", " 18:07:13", " 18:07:13.8", " 18:07:13.802498", " 23:59:59.999999"])
_MOMENTS = st.builds(lambda date, time, era: date + (time and time + "+00") + era, _DATES, _TIMES,
                     st.sampled_from(["", "", " BC"]))  # fmt: skip


@quick
@given(st.lists(_MOMENTS | st.sampled_from(["infinity", "-infinity"]), min_size=2, max_size=9))
def test_moments_of_any_year(redis_url: str, texts: list[str]) -> None:
    newest = asyncio.run(_newest(redis_url, 1184, texts))
    assert newest == _last_greatest([time_us(text.encode()) for text in texts])
