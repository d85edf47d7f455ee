"""psycopg's errors are caught in one place: `session.Connection` and `refusal.refused_as`. Who else does, says why."""

import ast
from pathlib import Path
from typing import Final

import pytest

ROOT = Path(__file__).parents[3]

CATCHES: Final = {
    "cdc/postgres/session.py": "the door, and the words of a connection that does not come about",
    "cdc/postgres/refusal.py": "the door for what psycopg's own connection does: COPY, the pump",
    "cdc/postgres/install.py": "the operator's files: an administrator's dsn, and words of their own for each refusal",
    "cdc/postgres/stream/pump.py": "a broken connection is remembered until what had arrived before is handed out",
    "cdc/postgres/stream/replication.py": "writing a status never raises, and closing is no place to complain",
    "cdc/postgres/stream/sentinel.py": "the end of its session is what it waits for",
}


def _catches(source: str) -> bool:
    """Whether an error of psycopg's is caught or suppressed, under whatever name it was imported."""
    tree = ast.parse(source)
    names = {"psycopg"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {one.asname for one in node.names if one.name.startswith("psycopg") and one.asname}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "psycopg":
            names |= {one.asname or one.name for one in node.names}
    return any(
        isinstance(part, ast.Name) and part.id in names
        for node in ast.walk(tree)
        for caught in _caught(node)
        for part in ast.walk(caught)
    )


def _caught(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.ExceptHandler):
        return [node.type] if node.type is not None else []
    is_suppress = isinstance(node, ast.Call) and ast.unparse(node.func) in ("suppress", "contextlib.suppress")
    return node.args if is_suppress and isinstance(node, ast.Call) else []


def test_only_the_door_and_those_with_a_reason_catch_psycopgs_errors() -> None:
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cdc").rglob("*.py") if _catches(path.read_text())}
    assert found == CATCHES.keys()


@pytest.mark.parametrize(
    "planted",
    [
        "import psycopg\ntry:\n    pass\nexcept psycopg.Error as error:\n    raise in_session(error) from None\n",
        "import psycopg\ntry:\n    pass\nexcept (TimeoutError, psycopg.errors.UndefinedObject):\n    pass\n",
        "from psycopg import Error as Trouble\ntry:\n    pass\nexcept Trouble:\n    pass\n",
        "import psycopg as driver\ntry:\n    pass\nexcept driver.Error:\n    pass\n",
        "import psycopg\nwith contextlib.suppress(psycopg.Error):\n    pass\n",
    ],
    ids=["a copy of the old way", "one among several", "under another name", "the module renamed", "suppressed"],
)
def test_a_planted_copy_is_found(planted: str) -> None:
    assert _catches(planted)
