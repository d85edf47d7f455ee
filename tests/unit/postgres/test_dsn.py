"""The connection string: who may be talked to, and what a mistake in it says."""

import pytest

from cdc.config import PostgresSettings
from cdc.errors import Invalid, SlotLost, Unavailable
from cdc.postgres.refusal import Refusal, SlotActive, at_slot, in_session, in_stream, while_connecting
from cdc.postgres.session import check_dsn


def _settings(dsn: str, **changes: object) -> PostgresSettings:
    return PostgresSettings.model_validate({"dsn": dsn, **changes})


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGHOSTADDR", "PGSSLMODE", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "dsn",
    [
        "dbname=app",
        "host=/var/run/postgresql dbname=app",
        "host=@abstract",
        "postgresql://cdc@localhost/app",
        "postgresql://cdc@127.0.0.1:5433/app",
        "postgresql://cdc@127.8.8.8/app",
        "postgresql://cdc@[::1]/app",
        "host=db.example.com hostaddr=127.0.0.1",
        "postgresql://cdc@db.example.com/app?sslmode=verify-full",
        "host=db1.example.com,db2.example.com sslmode=verify-full",
    ],
)
def test_a_local_host_and_a_verified_one_are_allowed(dsn: str) -> None:
    check_dsn(_settings(dsn))


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://cdc:hunter2@db.example.com/app",
        "postgresql://cdc:hunter2@db.example.com/app?sslmode=require",
        "host=10.1.2.3 password=hunter2 sslmode=verify-ca",
        "host=localhost,db.example.com password=hunter2",
        "host=localhost hostaddr=10.1.2.3 password=hunter2",
        "service=production password=hunter2",
    ],
)
def test_a_remote_host_without_verify_full_is_refused_with_the_piece_to_paste(dsn: str) -> None:
    with pytest.raises(Invalid) as refused:
        check_dsn(_settings(dsn))
    assert "sslmode=verify-full" in refused.value.hint
    assert "hunter2" not in refused.value.explain()


def test_a_remote_host_of_the_environment_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example.com")
    with pytest.raises(Invalid, match=r"db\.example\.com"):
        check_dsn(_settings("dbname=app"))
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    check_dsn(_settings("dbname=app"))


def test_an_insecure_network_may_be_allowed() -> None:
    check_dsn(_settings("host=db.example.com", allow_insecure=True))


@pytest.mark.parametrize(
    "dsn", ["host=localhost password=my hunter2", "postgresql://cdc:hunter2@[::1/app", "host=localhost hunter2"]
)
def test_a_broken_connection_string_is_never_quoted(dsn: str) -> None:
    with pytest.raises(Invalid) as refused:
        check_dsn(_settings(dsn))
    assert "hunter2" not in refused.value.explain()
    assert refused.value.hint
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    "said",
    [
        'FATAL:  password authentication failed for user "cdc"',
        "fe_sendauth: no password supplied",
        'FATAL:  role "cdc" does not exist',
        'FATAL:  database "app" does not exist',
        'FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "cdc", database "app", no encryption',
        'FATAL:  Peer authentication failed for user "cdc"',
        "FATAL:  must be superuser or replication role to start walsender",
        "FATAL:  permission denied to start WAL sender",
        'FATAL:  permission denied for database "app"',
        "SSL error: certificate verify failed",
        "server does not support SSL, but SSL was required",
        'FATAL:  role "cdc" is not permitted to log in',
    ],
)
def test_what_only_a_person_can_mend_is_invalid_with_a_hint(said: str) -> None:
    error = while_connecting(Refusal("", said))
    assert isinstance(error, Invalid)
    assert error.hint
    assert said in error.detail


@pytest.mark.parametrize(
    "said",
    [
        "Connection refused",
        "connection timeout expired",
        "FATAL:  the database system is starting up",
        "FATAL:  the database system is shutting down",
        "FATAL:  sorry, too many clients already",
        'could not translate host name "db" to address: Name or service not known',
        "FEHLER: etwas in einer anderen Sprache",
    ],
)
def test_what_may_pass_is_unavailable(said: str) -> None:
    assert isinstance(while_connecting(Refusal("", said)), Unavailable)


@pytest.mark.parametrize(
    ("sqlstate", "said", "kind"),
    [
        ("55006", 'replication slot "cdc" is active for PID 77', SlotActive),
        ("42704", 'replication slot "cdc" does not exist', SlotLost),
        ("55000", 'can no longer get changes from replication slot "cdc"', SlotLost),
        ("55000", 'can no longer access replication slot "cdc"', SlotLost),
        ("55000", "logical decoding requires wal_level >= logical", Invalid),
        ("55000", "cannot use physical replication slot for logical decoding", Invalid),
        ("55000", 'replication slot "cdc" was not created in this database', Invalid),
        ("55000", "etwas in einer anderen Sprache", Unavailable),
        ("57P03", "the database system is starting up", Unavailable),
    ],
)
def test_a_refused_start_says_what_became_of_the_slot(sqlstate: str, said: str, kind: type[Exception]) -> None:
    error = at_slot(Refusal(sqlstate, said), "cdc")
    assert type(error) is kind
    assert said in error.detail


def test_a_stream_that_ends_says_whether_to_try_again() -> None:
    administrator = Refusal("57P01", "terminating connection due to administrator command")
    assert type(in_stream(administrator, "cdc", "cdc")) is Unavailable
    unknown = Refusal("42704", 'publication "cdc" does not exist')
    assert type(in_stream(unknown, "cdc", "cdc")) is Invalid
    assert "CREATE PUBLICATION" in in_stream(unknown, "cdc", "cdc").hint
    assert type(in_session(Refusal("53400", "all replication slots are in use"))) is Invalid
    assert type(in_session(Refusal("", "server closed the connection unexpectedly"))) is Unavailable


@pytest.mark.parametrize(
    ("sqlstate", "said", "detail", "shown"),
    [
        ("23505", 'duplicate key value violates unique constraint "a"', "Key (id)=(hunter2) already exists.", '"a"'),
        ("23514", 'new row for relation "t" violates "c"', "Failing row contains (7, hunter2).", '"c"'),
        ("22P02", 'invalid input syntax for type integer: "hun"hunter2"', "", "type integer"),
        ("22P02", "invalid input syntax for type json", 'Token "hunter2" is invalid.', "type json"),
        ("44000", 'new row violates check option for view "v"', "Failing row contains (hunter2).", '"v"'),
        ("P0001", "no more turns for hunter2", "hunter2", "trigger"),
    ],
)
def test_what_a_server_says_of_a_row_is_told_without_the_row(sqlstate: str, said: str, detail: str, shown: str) -> None:
    explained = Refusal(sqlstate, said, detail).explanation
    assert "hunter2" not in explained
    assert shown in explained
    assert sqlstate in explained
