"""Tracebacks say what was raised and where, and quote nobody's data."""

import json
import subprocess
import sys

import psycopg
import pytest
import structlog

from cdc import log
from cdc.errors import DataError
from cdc.log import describe

CANARY = "what somebody wrote"


def raised(*, kind: type[BaseException] = ValueError, text: str = CANARY) -> BaseException:
    try:
        raise kind(text)  # noqa: TRY301 it is caught at once on purpose
    except BaseException as error:
        return error


def test_the_message_of_a_bug_is_withheld_and_its_type_and_place_are_not() -> None:
    text = describe(raised())
    assert CANARY not in text
    assert "builtins.ValueError: (message withheld" in text
    assert "test_tracebacks.py" in text
    assert "raise kind(text)" in text


@pytest.mark.parametrize("kind", [psycopg.errors.CheckViolation, KeyError, structlog.DropEvent])
def test_a_driver_s_message_is_withheld_too(kind: type[Exception]) -> None:
    assert CANARY not in describe(raised(kind=kind))


def test_our_own_messages_and_those_of_the_machine_are_shown() -> None:
    assert "DataError: the header is damaged" in describe(raised(kind=DataError, text="the header is damaged"))
    assert "no such file" in describe(raised(kind=FileNotFoundError, text="no such file"))


def test_causes_contexts_and_groups_are_told_and_withheld_as_well() -> None:
    try:
        try:
            int(CANARY)
        except ValueError as error:
            raise DataError("damaged") from error
    except DataError as error:
        chained = describe(ExceptionGroup("two", [error, KeyError(CANARY)]))
    assert CANARY not in chained
    assert chained.index("ValueError") < chained.index("DataError: damaged") < chained.index("KeyError")
    assert "1 of 2 in the group" in chained


def test_a_circle_of_causes_ends() -> None:
    first, second = raised(), raised(kind=KeyError)
    first.__cause__, second.__cause__ = second, first
    assert describe(first).count("Traceback") == 2


def test_who_asks_for_debug_sees_the_messages() -> None:
    assert CANARY in describe(raised(), frankly=True)


PROGRAM = f"""
import asyncio, logging, structlog
from cdc import log

log.to_stderr(LEVEL)

async def run():
    asyncio.create_task(fail(), name="forgotten")
    await asyncio.sleep(0)
    try:
        raise ValueError({CANARY!r})
    except ValueError as error:
        structlog.get_logger().exception("crashed")
        structlog.get_logger().error("died", exc_info=error)
        logging.getLogger("library").exception("crashed")

async def fail():
    raise KeyError({CANARY!r})

asyncio.run(run())
raise ValueError({CANARY!r})
"""


@pytest.mark.parametrize("level", ["info", "debug"])
def test_a_process_that_crashes_quotes_nobody_either(level: str) -> None:
    program = PROGRAM.replace("LEVEL", repr(level)).replace(f"raise ValueError({CANARY!r})", "raise ValueError(text())")
    program = program.replace(f"raise KeyError({CANARY!r})", "raise KeyError(text())")
    program = f"def text():\n    return {' + '.join(repr(letter) for letter in CANARY)}\n{program}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (CANARY in done.stderr) is (level == "debug")
    assert done.stderr.count("ValueError") >= 4
    assert "Task exception was never retrieved" in done.stderr
    logged = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert all("exception" in line for line in logged)


def test_the_log_of_the_page_quotes_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    log.to_stderr()
    log.recent.clear()
    structlog.get_logger().error("died", exc_info=raised())
    assert CANARY not in str(list(log.recent)) + capsys.readouterr().err
    assert "ValueError" in log.recent[0]["exception"]
