"""Which code a report is about."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def revision() -> str:
    """The commit of the working tree; with `+` where it differs."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ("+" if git("status", "--porcelain") else "")
