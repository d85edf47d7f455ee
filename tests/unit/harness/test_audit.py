"""The audit is red on a known vulnerability, loud on what it could not look at; the bill of materials is complete."""

import importlib.machinery
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("audit", str(ROOT / ".ci" / "audit"))
    loader.set_data = lambda *_args, **_options: None  # type: ignore[method-assign]
    spec = importlib.util.spec_from_loader("audit", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


CLEAN: dict[str, Any] = {"name": "orjson", "version": "3.11.0", "vulns": []}
SKIPPED = {"name": "redis", "skip_reason": "could not be audited"}
VULNERABLE = {
    "name": "jinja2",
    "version": "2.4.1",
    "vulns": [{"id": "PYSEC-2019-217", "fix_versions": ["2.10.1"], "aliases": [], "description": "sandbox escape"}],
}


def test_a_known_vulnerability_fails_and_says_where_it_is_mended(audit: ModuleType) -> None:
    code, lines = audit.judge({"dependencies": [CLEAN, VULNERABLE], "fixes": []})
    assert code == 1
    assert lines[0] == "VULNERABLE: jinja2 2.4.1: PYSEC-2019-217, mended in 2.10.1"
    assert audit.judge({"dependencies": [SKIPPED, VULNERABLE]})[0] == 1


def test_what_could_not_be_audited_is_said_loudly_and_is_no_vulnerability(audit: ModuleType) -> None:
    code, lines = audit.judge({"dependencies": [CLEAN, SKIPPED], "fixes": []})
    assert code == 0
    assert lines == ["WARNING: 1 of 2 could NOT be audited: redis", "1 of 2 audited, 0 vulnerabilities"]


def test_nothing_is_said_of_what_is_clean(audit: ModuleType) -> None:
    assert audit.judge({"dependencies": [CLEAN]}) == (0, ["1 of 1 audited, 0 vulnerabilities"])


def test_each_locked_package_and_digest_is_in_the_bill_of_materials(audit: ModuleType) -> None:
    lock = (ROOT / "requirements.lock").read_text()
    text = audit.bill_of_materials(lock)
    written = json.loads(text)
    assert (written["bomFormat"], written["specVersion"]) == ("CycloneDX", "1.6")
    named = {(one["name"], one["version"]): one for one in written["components"]}
    locked = re.findall(r"(?m)^([\w.-]+)(?:\[.*?\])?==([^\s;]+)", lock)
    assert len(locked) > 20
    assert set(named) == set(locked)
    assert set(re.findall(r"sha256:([0-9a-f]{64})", lock)) == {
        digest["content"] for one in named.values() for file in one["components"] for digest in file["hashes"]
    }
    assert all(one["purl"] == f"pkg:pypi/{name.lower()}@{version}" for (name, version), one in named.items())
    assert audit.bill_of_materials(lock) == text


def test_a_package_that_is_left_out_would_be_missed(audit: ModuleType) -> None:
    lock = (ROOT / "requirements.lock").read_text()
    shorter = "\n".join(lock.splitlines()[3:])
    assert len(audit.read_lock(shorter)) == len(audit.read_lock(lock)) - 1
