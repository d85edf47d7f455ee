"""Writes the script of `cdc doctor --fix`: the lines that mend the findings, in order, each below its reason (pure).

The script is for sh, with psql, redis-cli or aws where they are needed, and it is only printed. A line that ends
something of others or costs something is a comment that begins with `#? `: a person removes the mark, or does not. A
finding without such a line becomes a comment with its hint. Addresses with passwords come from the environment.
"""

from collections.abc import Iterable, Iterator, Sequence

from cdc.finding import Finding

OPTIONAL = "#? "

_ADMIN = """\
: "${CDC_ADMIN_DSN:?export CDC_ADMIN_DSN=postgresql://postgres@HOST/DATABASE, an administrator}\""""
_CACHE = ': "${CDC_CACHE__URL:?export CDC_CACHE__URL=redis://HOST:6379/0, the url of [cache]}"'

_TITLE = """\
#!/bin/sh
# Printed by cdc doctor --fix; nothing was done. Read it, then: cdc doctor --fix >fix.sh; sh fix.sh
# Lines that begin with "#? " end something that others own, or cost something: take the mark away where you agree.
set -eu
"""

_PSQL = 'psql -X -q -v ON_ERROR_STOP=1 "$CDC_ADMIN_DSN"'


def script(findings: Sequence[Finding]) -> str:
    """Write the whole script. Findings of level `ok`, and info without a command, are left out."""
    troubled = [finding for finding in findings if finding.level != "ok" and _is_mended(finding)]
    if not troubled:
        return "# cdc doctor --fix: there is nothing to mend\n"
    parts = [_part(finding) for finding in _distinct(troubled)]
    return "\n".join([_TITLE + "\n".join(_needs(troubled)), *parts, *_last(troubled)]) + "\n"


def _is_mended(finding: Finding) -> bool:
    """True for what the script should mend: info without a command is only for reading."""
    return finding.level != "info" or bool(finding.sql or finding.command)


def _distinct(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield one finding for each command: a command may mend several, and is needed once."""
    seen: set[tuple[str, str]] = set()
    for finding in findings:
        key = (finding.sql, finding.command)
        if key == ("", "") or key not in seen:
            yield finding
        seen.add(key)


def _needs(findings: Sequence[Finding]) -> Iterator[str]:
    if any(finding.sql or "CDC_ADMIN_DSN" in finding.command for finding in findings):
        yield _ADMIN
    if any("CDC_CACHE__URL" in finding.command for finding in findings):
        yield _CACHE


def _part(finding: Finding) -> str:
    why = [f"# {finding.level}, {finding.subject}: {line}" for line in finding.message.splitlines()]
    if finding.sql:
        sql = finding.sql.split("\n")
        end = _delimiter(sql)
        lines = [f"{_PSQL} <<'{end}'", *sql, end]
    elif finding.command:
        lines = finding.command.split("\n")
    else:
        return "\n".join(["", *why, *(f"# by hand: {line.strip()}" for line in finding.hint.splitlines())])
    return "\n".join(["", *why, *(f"{OPTIONAL}{line}" if finding.optional else line for line in lines)])


def _delimiter(sql: Sequence[str]) -> str:
    """A line that does not occur in the SQL: names come from the database, and may hold a newline."""
    end = "SQL"
    while end in sql:
        end += "_"
    return end


def _last(findings: Sequence[Finding]) -> Iterator[str]:
    """The last lines. ALTER SYSTEM only writes a file, so the server must reload it; some settings need a restart."""
    settings = [finding for finding in findings if "ALTER SYSTEM" in finding.sql]
    if settings:
        mark = OPTIONAL if all(finding.optional for finding in settings) else ""
        yield f"\n# ALTER SYSTEM is read from here on.\n{mark}{_PSQL} -c 'SELECT pg_reload_conf()' >/dev/null"
    if any("restart Postgres" in finding.hint for finding in settings):
        yield "# Some of it needs a restart of Postgres: see above."
