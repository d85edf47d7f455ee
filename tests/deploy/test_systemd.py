"""The systemd units, judged by systemd's own tools. They are also started for real: docs/deploy.md says how."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cdc.config import options
from cdc.errors import ChangesLost, Diverged, Fenced, Invalid

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
# systemd calls 0 to 2 "safe" to "ok"; what is left open is the network, and sockets to reach it.
THRESHOLD = 2.0

needs_systemd = [
    pytest.mark.wide,
    pytest.mark.skipif(
        shutil.which("systemd-analyze") is None, reason="systemd-analyze is in Debian's package systemd"
    ),
]


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A copy whose command is a program that every machine has, as `verify` looks for it."""
    copied = tmp_path / "units"
    shutil.copytree(UNITS, copied)
    for service in copied.glob("*.service"):
        service.write_text(service.read_text().replace("=/usr/local/bin/cdc ", "=/bin/true "))
    return copied


def _complaints(units: Path) -> str:
    files = [str(path) for kind in ("service", "timer") for path in sorted(units.glob(f"*.{kind}"))]
    done = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 and not done.stderr else f"{done.returncode}: {done.stderr}"


def _exposure(unit: Path) -> float:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    return float(found[1])


class TestBySystemd:
    pytestmark = needs_systemd

    def test_systemd_understands_every_line(self, units: Path) -> None:
        assert _complaints(units) == ""

    def test_a_line_that_systemd_does_not_understand_is_found(self, units: Path) -> None:
        unit = units / "waltier.service"
        unit.write_text(unit.read_text().replace("ProtectSystem=strict", "ProtectSystems=strict"))
        assert "ProtectSystems" in _complaints(units)

    @pytest.mark.parametrize("name", SERVICES)
    def test_a_unit_exposes_little(self, units: Path, name: str) -> None:
        assert _exposure(units / name) <= THRESHOLD

    def test_an_open_unit_is_found(self, units: Path) -> None:
        unit = units / "waltier.service"
        unit.write_text(
            re.sub(r"^(Protect|Restrict|Private|SystemCall)\w+=.*\n", "", unit.read_text(), flags=re.MULTILINE)
        )
        assert _exposure(unit) > THRESHOLD


def _values(name: str, unit: str = "waltier.service") -> list[str]:
    return re.findall(rf"^{name}=(.*)$", (UNITS / unit).read_text(), re.MULTILINE)


def test_what_a_person_must_mend_is_not_started_again() -> None:
    (codes,) = _values("RestartPreventExitStatus")
    assert set(codes.split()) == {str(error.exit_code) for error in (Invalid, Fenced, Diverged, ChangesLost)}


@pytest.mark.parametrize("unit", ["waltier.service", "cdc-.service.d/waltier.conf"])
def test_every_credential_is_a_secret_option_from_the_credential_store(unit: str) -> None:
    loaded = dict(value.split(":") for value in _values("LoadCredential", unit))
    secrets = {option.full_name for option in options() if option.secret} | {"aws"}
    assert set(loaded) <= secrets
    if unit == "waltier.service":
        assert set(loaded) == secrets
    # A relative path is looked for in /etc/credstore, and may be missing (systemd.exec(5)).
    assert all(path == f"waltier.{name}" for name, path in loaded.items())


def test_the_user_of_the_units_is_made() -> None:
    (user,) = _values("User")
    assert re.search(rf"^u {user} ", (UNITS / "waltier.sysusers.conf").read_text(), re.MULTILINE)


def test_a_command_by_hand_has_the_credentials_of_the_timers() -> None:
    by_hand = re.findall(r"LoadCredential=(\S+)", (UNITS / "waltier-cdc").read_text())
    assert by_hand == _values("LoadCredential", "cdc-.service.d/waltier.conf")
