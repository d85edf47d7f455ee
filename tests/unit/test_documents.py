"""What the documents say about the code is there, and the top level holds nothing else."""

import ast
import hashlib
import re
import subprocess
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import typer
from typer.core import TyperGroup

from cdc.cli import app
from cdc.crash import CrashPoint

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/**/*.md"))]


TOP_LEVEL = {".ci", ".gitignore", "ARCHITECTURE.md", "CHANGELOG.md", "Makefile", "README.md", "cdc", "deploy", "docs"}
TOP_LEVEL |= {"pyproject.toml", "requirements-dev.lock", "requirements-servers.lock", "requirements.lock", "setup.py"}
TOP_LEVEL |= {"LICENSE", "sql", "tests"}

# Reports of long runs, where some are kept.
MAY_BE_THERE = {"findings"}


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_the_top_level_holds_only_what_is_conventional() -> None:
    """What a program left in the working directory was committed once."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=False, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git repository")
    assert {name.split("/")[0] for name in listed.stdout.splitlines()} - MAY_BE_THERE == TOP_LEVEL


def test_the_licence_is_the_apache_licence_word_for_word() -> None:
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # apache.org/licenses


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_architecture_begins_with_the_invariant_and_the_crash_table() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    assert headings[:2] == ["The invariant", "What a crash leaves"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=names(DOCUMENTS))
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        assert (document.parent / link).exists(), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=names(DOCUMENTS))
def test_tests_and_modules_that_are_named_are_there(document: Path) -> None:
    for name in re.findall(r"`((?:tests|cdc|deploy|sql|docs|findings)/[\w./-]+)`", document.read_text()):
        assert list(ROOT.glob(name.rstrip("/"))) or (ROOT / f"{name}.py").exists(), name


def test_every_promise_has_tests_that_are_there() -> None:
    rows = re.findall(r"^\| \*\*(P\d) .*\| (.+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [promise for promise, _ in rows] == [f"P{number}" for number in range(1, 9)]
    for promise, cell in rows:
        guards = re.findall(r"`(test_\w+)` \(\[[\w./]+\]\((tests/[\w/.]+)\)\)", cell)
        assert guards, promise
        assert [name for name, file in guards if f"def {name}(" not in (ROOT / file).read_text()] == []


# What the code says of files and tests -----------------------------------------------------------------------------

SOURCES = sorted((ROOT / "cdc").rglob("*.py"))
PATH_IN_PROSE = re.compile(
    r"(?<![\w./*-])(?:[\w-]+/)*[\w-]+\.(?:py|md|sql|lua)\b|(?<![\w./-])(?:tests|docs|sql)/[\w./-]*\w"
)
TEST_IN_PROSE = re.compile(r"\btest_\w+\b(?!\.py)")

# Documents that only their authors could open.
OUTSIDE = re.compile(r"\b(?:DESIGN|PITFALLS|HOUSE|STYLE)\b")
OURS = [path for room in ("cdc", "tests", "docs") for path in sorted((ROOT / room).rglob("*.*"))]
TEXTS = [path for path in OURS if path.suffix in (".py", ".md", ".toml", ".sql", ".lua") and path != Path(__file__)]


def prose(source: Path) -> str:
    """The docstrings and comments of a file."""
    with source.open("rb") as lines:
        comments = [token.string for token in tokenize.tokenize(lines.readline) if token.type == tokenize.COMMENT]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, documented)]
    return "\n".join([*comments, *(ast.get_docstring(node) or "" for node in nodes)])


def is_there(name: str, source: Path) -> bool:
    """A path from the top; or one from the file's own place, from its room, or from `cdc/`."""
    room = source.parents[len(source.relative_to(ROOT).parts) - 3] if source.parent != ROOT / "cdc" else ROOT / "cdc"
    return any((place / name).exists() for place in (ROOT, source.parent, ROOT / "cdc")) or any(room.rglob(name))


def missing_names(said: str, source: Path, tests: str) -> list[str]:
    """Files and tests that are named in the prose of a file, and that are not there."""
    files = [name for name in PATH_IN_PROSE.findall(said) if not is_there(name, source)]
    return files + [name for name in TEST_IN_PROSE.findall(said) if f"{name}(" not in tests and name != "test_decoding"]


@pytest.fixture(scope="module")
def all_tests() -> str:
    return "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))


def test_files_and_tests_that_docstrings_name_are_there(all_tests: str) -> None:
    found = {source: missing_names(prose(source), source, all_tests) for source in SOURCES}
    assert {str(source.relative_to(ROOT)): names for source, names in found.items() if names} == {}


@pytest.mark.parametrize("name", ["restore.py", "cdc/nothing.py", "docs/nowhere.md", "tests/unit/gone", "test_of_old"])
@pytest.mark.parametrize("text", ['"""It is as {}."""', 'def f() -> None:\n    """See `{}`."""', "x = 1  # kept by {}"])
def test_a_name_of_what_is_not_there_is_found(tmp_path: Path, all_tests: str, text: str, name: str) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(f"{text.format(name)}\n")
    assert missing_names(prose(planted), ROOT / "cdc" / "archive" / "reader" / "tail.py", all_tests) == [name]


def test_nothing_refers_to_documents_outside_the_repository() -> None:
    found = {str(path.relative_to(ROOT)): OUTSIDE.findall(path.read_text()) for path in TEXTS}
    assert {path: words for path, words in found.items() if words} == {}


def runs_in_make_test(name: str, file: str) -> bool:
    """Whether at least one case of it is neither `wide` nor `faults`."""
    module = ast.parse((ROOT / file).read_text())
    marks = [one.value for one in module.body if isinstance(one, ast.Assign)]
    marks += [mark for one in marks if isinstance(one, ast.List) for mark in one.elts]
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            marks += node.decorator_list
    return not {"pytest.mark.wide", "pytest.mark.faults"} & {ast.unparse(mark) for mark in marks}


def test_every_promise_has_a_guard_in_make_test() -> None:
    for line in re.findall(r"^\| \*\*P\d .*$", (ROOT / "README.md").read_text(), re.MULTILINE):
        guards = re.findall(r"`(test_\w+)` \(\[[\w./]+\]\((tests/[\w/.]+)\)\)", line)
        assert any(runs_in_make_test(name, file) for name, file in guards), line


def rows_of_the_crash_tables() -> list[list[str]]:
    """The cells of both tables, what is killed and what fails; an empty first cell continues the row above."""
    section = re.split(r"^## ", (ROOT / "ARCHITECTURE.md").read_text(), flags=re.MULTILINE)[2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    return [row for row in rows if set(row[0]) != {"-"} and row[-1] != "proved by"]


CRASH_ROWS = rows_of_the_crash_tables()


@pytest.mark.parametrize("row", CRASH_ROWS, ids=[row[0] or row[1] for row in CRASH_ROWS])
def test_every_row_of_the_crash_tables_names_a_proof_that_is_there(row: list[str]) -> None:
    tests = re.findall(r"`(test_\w+)` \(\[[\w./]+\]\((tests/[\w/.]+)\)\)", row[-1])
    points = set(re.findall(r"`([a-z_]+)`", row[-1])) - {name for name, _ in tests}
    assert tests or points
    assert [name for name, file in tests if f"def {name}(" not in (ROOT / file).read_text()] == []
    assert points <= set(get_args(CrashPoint))
    assert points or any(runs_in_make_test(name, file) for name, file in tests)


def test_every_crash_point_is_in_the_crash_tables() -> None:
    named = {point for row in CRASH_ROWS for point in re.findall(r"`(\w+)`", row[-1])}
    assert set(get_args(CrashPoint)) <= named
    assert len(CRASH_ROWS) > 30


def test_the_floors_are_those_that_the_contract_keeps() -> None:
    _, _, block = (ROOT / "ARCHITECTURE.md").read_text().partition("## Rooms and floors")
    drawn = [re.split(r"\s{2,}", line)[0].split(" │ ") for line in block.split("```")[1].strip().splitlines()]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    kept = [layer.replace("cdc.", "").split(" | ") for layer in contracts[0]["layers"]]
    assert [name for floor in drawn for name in floor] == [name for floor in kept for name in floor]


def commands_of(group: TyperGroup, name: str = "cdc") -> Iterator[str]:
    """The full name of each command of the program, those of its groups too."""
    for short, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands_of(command, f"{name} {short}")
        else:
            yield f"{name} {short}"


def commands_of_the_table() -> set[str]:
    """The full names in the README's table: `cdc archive ls`, `cat` in one cell are two commands of one group."""
    named: set[str] = set()
    for cell in re.findall(r"^\| (`cdc .+?) \| ", (ROOT / "README.md").read_text(), re.MULTILINE):
        first, *others = (re.match(r"[a-z ]+[a-z]", code)[0] for code in re.findall(r"`([^`]+)`", cell))  # type: ignore[index]
        named |= {first, *(f"{first.rpartition(' ')[0]} {other}" for other in others)}
    return named


def test_each_question_of_a_newcomer_is_answered_with_one_file() -> None:
    _, _, section = (ROOT / "ARCHITECTURE.md").read_text().partition("## Where to look")
    questions, additions = ([*table.splitlines()[2:]] for table in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE))
    answers = [re.findall(r"`(cdc/[\w/]+\.py)`", line) for line in questions]
    assert len(answers) >= 10
    assert [line for line, files in zip(questions, answers, strict=True) if len(files) != 1] == []
    begins = " ".join(re.findall(r"^\| (?:a|an) (\w+)", "\n".join(additions), re.MULTILINE))
    assert {"sink", "metric", "option", "command"} <= set(begins.split())


def test_every_command_is_in_the_readme_and_no_other() -> None:
    program = typer.main.get_command(app)
    assert isinstance(program, TyperGroup)
    commands = set(commands_of(program))
    assert {"cdc run", "cdc archive verify", "cdc key generate"} < commands
    assert commands_of_the_table() == commands


def keys_of_the_runbook() -> Iterator[str]:
    for heading in re.findall(r"^### (.+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE):
        yield from re.findall(r'["`]([^"`]+)["`]', heading)


@pytest.mark.parametrize("key", list(keys_of_the_runbook()))
def test_the_runbook_is_keyed_by_what_the_program_says(key: str) -> None:
    """Messages are broken over lines of source, so the literals are joined first."""
    source = "\n".join(path.read_text() for path in (ROOT / "cdc").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    assert key in joined


def test_decisions_are_numbered_without_holes_and_have_their_four_parts() -> None:
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(path.name[:4]) for path in decisions] == list(range(len(decisions)))
    for path in decisions:
        parts = re.findall(r"^## (.+)$", path.read_text(), re.MULTILINE)
        assert parts == ["Context", "Decision", "Rejected", "Consequences"], path.name


# `make bench` writes docs/benchmarks.md as it likes.
WRITTEN = [path for path in DOCUMENTS if path.name != "benchmarks.md"]


@pytest.mark.parametrize("document", WRITTEN, ids=names(WRITTEN))
def test_lines_are_no_longer_than_code(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith(("|", "![", "    "))]
    assert long == []
