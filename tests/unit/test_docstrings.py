"""Docstrings of `cdc/` say in plain words who does what, so that a reader understands them at the first reading."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "cdc").rglob("*.py"))

BANNED = re.compile(r"\b(?:whoever|nobody|somebody|lest|of\s+which|for\s+ever|looking\s+again)\b", re.IGNORECASE)
INVERTED = re.compile(r"(?:What|Who|Whether|Where|How|Why)\b")
SHORTEST_WORDS = 3

# Here `nobody` is the Unix user of that name.
UNIX_USER = {"cdc/embedded/launch.py"}

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def faults(source: str, name: str) -> list[str]:
    """What is wrong with the docstrings of a file, each with its place and its first words."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, Documented)]
    documented = ((node, text) for node in nodes if (text := ast.get_docstring(node)))
    return [f"{place(node, name)}: {fault}" for node, text in documented for fault in faults_of(node, text, name)]


def place(node: Documented, name: str) -> str:
    return name if isinstance(node, ast.Module) else f"{name}, {node.name}"


def faults_of(node: Documented, text: str, name: str) -> list[str]:
    words = [word for word in BANNED.findall(text) if not (word == "nobody" and name in UNIX_USER)]
    found = [f"{' '.join(word.split())!r}" for word in words]
    if isinstance(node, ast.Module) and INVERTED.match(text):
        found.append(f"opens with {text.split()[0]}")
    if len(text.split()) < SHORTEST_WORDS:
        found.append(f"is only {text!r}")
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_are_plain(source: Path) -> None:
    assert faults(source.read_text(), str(source.relative_to(ROOT))) == []


def test_only_a_file_that_speaks_of_the_unix_user_may_name_it() -> None:
    assert [name for name in UNIX_USER if "nobody" not in (ROOT / name).read_text()] == []


@pytest.mark.parametrize(
    "word", ["whoever", "Nobody", "somebody", "lest", "of which", "for ever", "looking\n    again"]
)
@pytest.mark.parametrize(
    "planted",
    [
        '"""Reads rows, {} of old."""',
        'class Rows:\n    """Holds rows, {} of old."""',
        'async def read() -> None:\n    """Read rows, {} of old."""',
        'class Rows:\n    def read(self) -> None:\n        """Read rows, {} of old."""',
    ],
    ids=["module", "class", "function", "method"],
)
def test_a_banned_word_is_found(planted: str, word: str) -> None:
    found = faults(planted.format(word), "cdc/planted.py")
    assert [fault.rpartition(": ")[2] for fault in found] == [repr(" ".join(word.split()))]


@pytest.mark.parametrize("word", ["What", "Who", "Whether", "Where", "How", "Why"])
def test_a_module_that_opens_with_a_question_is_found(word: str) -> None:
    assert faults(f'"""{word} rows are read."""', "cdc/planted.py") == [f"cdc/planted.py: opens with {word}"]


def test_a_docstring_of_two_words_is_found() -> None:
    assert faults('def f() -> None:\n    """Read rows."""', "cdc/planted.py") == [
        "cdc/planted.py, f: is only 'Read rows.'"
    ]


def test_words_that_only_hold_a_banned_one_and_the_unix_user_are_left_alone() -> None:
    assert faults('"""Reads the wholest of the nobodyish files."""', "cdc/planted.py") == []
    assert faults('"""Becomes the user nobody."""', "cdc/embedded/launch.py") == []
