"""What happens to Postgres, and what its other users do."""

import os
import random
import signal
from collections.abc import Iterator

import psycopg

from tests.faults.kinds.kind import Impossible, fault
from tests.faults.stage import Stage

# With a bucket that is away and a service that is suspended too; without the sentinel it would be for ever.
_SHUTDOWN_S = 30.0
_OURS = "usename = 'cdc_replicator'"


@fault("postgres", lasts_s=(0.0, 1.0))
def postgres_restarted_fast(stage: Stage, _dice: random.Random) -> Iterator[None]:
    stage.postgres.stop("fast", timeout_s=_SHUTDOWN_S)
    yield
    stage.postgres.start()


@fault("postgres", lasts_s=(0.0, 1.0))
def postgres_restarted_immediately(stage: Stage, _dice: random.Random) -> Iterator[None]:
    stage.postgres.stop("immediate")
    yield
    stage.postgres.start()


@fault("postgres", lasts_s=(0.0, 1.0))
def postmaster_killed(stage: Stage, _dice: random.Random) -> Iterator[None]:
    stage.postgres.kill()
    yield
    stage.postgres.start()


@fault("postgres", lasts_s=(0.0, 1.0), weight=3)
def postgres_promoted(stage: Stage, _dice: random.Random) -> Iterator[None]:
    """Archive recovery up to the end of its own WAL, and promoted there: the same rows and slots on a new timeline.

    It takes no connection until it is promoted: a writer could not tell a standby from a server that refuses.
    """
    with stage.cache_watch.away():  # which is filled again for the new timeline
        stage.postgres.stop("fast", timeout_s=_SHUTDOWN_S)
        yield
        stage.promoted = True
        stage.postgres.settings |= {"restore_command": "false", "hot_standby": "off"}
        (stage.postgres.data_dir / "recovery.signal").touch()
        stage.postgres.start()


@fault("postgres", lasts_s=(0.0, 0.3), weight=6)
def walsender_terminated(stage: Stage, _dice: random.Random) -> Iterator[None]:
    stage.query("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'cdc' AND active")
    yield


@fault("postgres", lasts_s=(0.0, 0.3))
def all_our_backends_terminated(stage: Stage, _dice: random.Random) -> Iterator[None]:
    stage.query(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_OURS}")
    yield


@fault("postgres", lasts_s=(0.3, 5.0), weight=3)
def walsender_suspended(stage: Stage, _dice: random.Random) -> Iterator[None]:
    found = stage.query("SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'cdc' AND active")
    if not found:
        raise Impossible
    os.kill(found[0][0], signal.SIGSTOP)
    yield
    try:
        os.kill(found[0][0], signal.SIGCONT)
    except ProcessLookupError:
        return


@fault("postgres", lasts_s=(0.0, 0.2), weight=2)
def checkpoint_and_new_wal_file(stage: Stage, _dice: random.Random) -> Iterator[None]:
    stage.query("CHECKPOINT")
    stage.query("SELECT pg_switch_wal()")
    yield


@fault("application", lasts_s=(2.0, 8.0), weight=3)
def long_transaction(stage: Stage, dice: random.Random) -> Iterator[None]:
    """It has written, so that everything after it must be kept until it ends, one way or the other."""
    with psycopg.connect(stage.dsn, connect_timeout=5) as connection:
        connection.execute(
            "INSERT INTO outbox (event_type, idempotency_key, payload) VALUES ('long', now()::text, '1')"
        )
        yield
        if dice.random() < 0.5:
            connection.rollback()


@fault("application", lasts_s=(0.5, 2.0), weight=3)
def table_locked(stage: Stage, dice: random.Random) -> Iterator[None]:
    with psycopg.connect(stage.dsn, connect_timeout=5) as connection:
        connection.execute("SET LOCAL lock_timeout = '2s'")
        connection.execute(dice.choice([b"LOCK TABLE turns", b"LOCK TABLE outbox"]))
        yield


@fault("application", lasts_s=(0.0, 0.5), weight=3)
def column_added(stage: Stage, dice: random.Random) -> Iterator[None]:
    """No row says so: those of before have it in Postgres alone, until each is written again at the round's end."""
    name, table = f"added_{dice.getrandbits(32):x}", dice.choice(["turns", "outbox"])
    definition = dice.choice(["text", "int NOT NULL DEFAULT 7", "jsonb DEFAULT '{\"a\": [1.50]}'", "numeric[]"])
    stage.rewritten = True
    stage.query(f"ALTER TABLE {table} ADD COLUMN {name} {definition}")
    yield


@fault("application", lasts_s=(0.0, 0.5), weight=2)
def column_dropped(stage: Stage, dice: random.Random) -> Iterator[None]:
    found = stage.query(
        "SELECT attrelid::regclass::text, attname FROM pg_attribute WHERE NOT attisdropped AND attname LIKE 'added%%'"
        " AND attrelid IN ('turns'::regclass, 'outbox'::regclass) ORDER BY 1, 2"
    )
    if not found:
        raise Impossible
    table, name = dice.choice(found)
    stage.query(f"ALTER TABLE {table} DROP COLUMN {name}")
    yield


@fault("application", lasts_s=(0.1, 1.0), weight=2)
def index_created_and_dropped(stage: Stage, _dice: random.Random) -> Iterator[None]:
    stage.query("CREATE INDEX IF NOT EXISTS passing ON turns (role, created_at)")
    yield
    stage.query("DROP INDEX passing")
