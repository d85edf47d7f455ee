"""What happens to the bucket: refusals, lost answers, and PUTs that are applied long after they were given up."""

import random
from collections.abc import Iterator

from tests.faults.kinds.kind import fault
from tests.faults.stage import Stage
from tests.faults.venue import Venue

_ALL = "PUT GET HEAD"


def on_bucket(venue: Venue) -> bool:
    return not venue.on_disk


def _refusing(stage: Stage, dice: random.Random, status: int) -> Iterator[None]:
    stage.s3.fail(status, methods=dice.choice(["PUT", "GET HEAD", _ALL]))
    yield
    stage.s3.heal()


@fault("bucket", where=on_bucket)
def bucket_answers_500(stage: Stage, dice: random.Random) -> Iterator[None]:
    yield from _refusing(stage, dice, 500)


@fault("bucket", where=on_bucket)
def bucket_answers_503(stage: Stage, dice: random.Random) -> Iterator[None]:
    yield from _refusing(stage, dice, 503)


@fault("bucket", where=on_bucket)
def bucket_answers_429(stage: Stage, dice: random.Random) -> Iterator[None]:
    yield from _refusing(stage, dice, 429)


@fault("bucket", where=on_bucket, weight=6)
def bucket_answer_lost(stage: Stage, _dice: random.Random) -> Iterator[None]:
    """Applied, and the connection cut: what is sent again meets its own object, and 412."""
    stage.s3.lose_answer(times=1, key_contains="log/")
    yield
    stage.s3.heal()


@fault("bucket", where=on_bucket, lasts_s=(1.0, 4.0))
def bucket_storm_of_412(stage: Stage, _dice: random.Random) -> Iterator[None]:
    """Every answer is lost: each PUT ends in a 412 of our own object, some of which nobody hears either."""
    stage.s3.lose_answer(times=None, methods="PUT")
    yield
    stage.s3.heal()


@fault("bucket", where=on_bucket, lasts_s=(0.5, 4.0), weight=6)
def bucket_applies_late(stage: Stage, dice: random.Random) -> Iterator[None]:
    """Longer than a PUT is waited for, so that it is applied among those that come after it."""
    stage.s3.delay(before_s=dice.uniform(1.5, 4.0), times=dice.randint(1, 3), key_contains="log/")
    yield
    stage.s3.heal()


@fault("bucket", where=on_bucket, lasts_s=(0.5, 4.0))
def bucket_answers_late(stage: Stage, dice: random.Random) -> Iterator[None]:
    stage.s3.delay(after_s=dice.uniform(0.2, 4.0), methods=dice.choice(["PUT", _ALL]))
    yield
    stage.s3.heal()


@fault("bucket", where=on_bucket)
def bucket_slow(stage: Stage, dice: random.Random) -> Iterator[None]:
    stage.s3.delay(before_s=dice.uniform(0.05, 0.5), after_s=dice.uniform(0.05, 0.5), methods=_ALL)
    yield
    stage.s3.heal()


@fault("bucket", where=on_bucket)
def bucket_refuses_connections(stage: Stage, _dice: random.Random) -> Iterator[None]:
    stage.s3.refuse_connections()
    yield
    stage.s3.heal()
