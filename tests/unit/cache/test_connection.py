"""Commands as bytes, and Redis's errors in our words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions

from cdc.cache.connection import pack, translate
from cdc.errors import Invalid, Unavailable


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"x" * 4095, b"x" * 4096, b"x" * 100_000]), min_size=1))
def test_a_command_is_an_array_of_bulk_strings(arguments: list[bytes]) -> None:
    expected = b"*%d\r\n" % len(arguments)
    expected += b"".join(b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments)
    assert pack(arguments) == expected


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ConnectionError("Error 111 connecting to 127.0.0.1:1"),
        exceptions.TimeoutError("Timeout reading"),
        ConnectionResetError(),
        exceptions.BusyLoadingError("Redis is loading the dataset in memory"),
        exceptions.ReadOnlyError("You can't write against a read only replica."),
        exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        exceptions.ResponseError(
            "Error running script (call to f_1): @user_script:172: @user_script: 172: -OOM command not allowed"
        ),
        exceptions.ResponseError("READONLY You can't write against a read only replica. script: 1, on @user_script:1."),
        exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"),
        exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."),
        exceptions.ResponseError("BUSY Redis is busy running a script."),
        exceptions.ResponseError("max number of clients reached"),
    ],
)
def test_what_passes_by_itself_is_unavailable(error: Exception) -> None:
    assert isinstance(translate(error), Unavailable)


@pytest.mark.parametrize(
    "error",
    [
        exceptions.AuthenticationError("invalid username-password pair or user is disabled."),
        exceptions.AuthenticationError("Authentication required."),
        exceptions.NoPermissionError("this user has no permissions to run the 'evalsha' command"),
        exceptions.ResponseError("NOPERM this user has no permissions"),
        exceptions.ResponseError("CROSSSLOT Keys in request don't hash to the same slot"),
        exceptions.ResponseError("DB index is out of range"),
        exceptions.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
    ],
)
def test_what_somebody_must_mend_is_invalid_and_says_how(error: Exception) -> None:
    translated = translate(error)
    assert isinstance(translated, Invalid)
    assert translated.hint


def test_a_bug_of_ours_stays_what_it_is() -> None:
    assert translate(exceptions.ResponseError("unknown command 'FOO'")) is None


def test_what_redis_quotes_of_a_command_is_not_repeated() -> None:
    said = "NOPERM unknown command 'EVALSHA', with args beginning with: 'sha' '1' 'session:hunter2'"
    error = translate(exceptions.ResponseError(said))
    assert error is not None
    assert "hunter2" not in error.explain()
    assert "unknown command" in error.detail
