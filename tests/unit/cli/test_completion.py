"""Completion as an operator has it: a real bash, after `cdc --install-completion`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# What bash does when TAB is pressed behind the words: it calls the function that was registered for the command.
TAB = """
source ~/.bashrc
complete -p cdc >&2
COMP_WORDS=({words}) COMP_CWORD={last}
_cdc_completion cdc
printf '%s\\n' "${{COMPREPLY[@]}}"
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


def bash(home: Path, script: str) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": str(home), "PATH": f"{home / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(["bash", "-c", script], cwd=home, env=environment, check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a user who has `cdc` and has installed its completion."""
    home = tmp_path_factory.mktemp("home")
    command = home / "bin" / "cdc"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nimport sys\nfrom cdc.cli import main\n\nsys.exit(main())\n")
    command.chmod(0o755)
    done = bash(home, "cdc --install-completion; exit $?")
    assert "bash completion installed" in done.stdout
    return home


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("cdc dri", ["drill"]),
        ("cdc archive ''", ["cat", "ls", "verify"]),
        ("cdc restore --to-", ["--to-lsn", "--to-ordinal", "--to-time"]),
        ("cdc config sample sy", ["systemd"]),
    ],
)
def test_bash_offers_what_may_follow(home: Path, words: str, offered: list[str]) -> None:
    done = bash(home, TAB.format(words=words, last=len(words.split()) - 1))
    assert sorted(done.stdout.split()) == offered
    assert done.stderr == "complete -o default -F _cdc_completion cdc\n"
