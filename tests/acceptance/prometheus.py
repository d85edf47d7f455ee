"""Debian's Prometheus over one service, with the alert rules as they are deployed but for their times.

    with Prometheus(directory, "127.0.0.1:9187") as prometheus:
        prometheus.wait_firing("WaltierArchiveLag")

Nobody can wait an hour in a test, so `shorten` rewrites every time of the rules, and nothing else: see there.
"""

import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.cdc_process import wait_until

RULES = Path(__file__).parents[2] / "deploy" / "prometheus"

# What a minute, an hour and a day of an expression last in a test.
_UNITS_S = {"60": 0.25, "3600": 8.0, "86400": 5.0}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def shorten(rules: str) -> str:
    """The rules with shorter times.

    - `for: 5m` lasts a ninetieth, but of 1 s to 10 s: here a scrape, and an evaluation, is a second;
    - `[15m]` is a forty-fifth, but of 10 s to 20 s: less holds too few scrapes, more nobody waits for;
    - `N * 60`, `N * 3600` and `N * 86400` are N times what `_UNITS_S` says.
    """
    rules = re.sub(r"for: (\d+)([smhd])", lambda m: f"for: {min(10, max(1, _s(m) // 90))}s", rules)
    rules = re.sub(r"\[(\d+)([smhd])\]", lambda m: f"[{min(20, max(10, _s(m) // 45))}s]", rules)
    return re.sub(r"\* (60|3600|86400)\b", lambda m: f"* {_UNITS_S[m[1]]}", rules)


def _s(duration: re.Match[str]) -> int:
    return int(duration[1]) * _SECONDS[duration[2]]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


class Prometheus:
    """Runs while the `with` lasts, scrapes once a second, and says which alerts fire."""

    def __init__(self, directory: Path, target: str) -> None:
        self._directory = directory
        self._target = target
        self._address = f"127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._directory.mkdir()
        (self._directory / "alerts.yml").write_text(shorten((RULES / "alerts.yml").read_text()))
        configuration = (RULES / "prometheus.yml").read_text()
        configuration = configuration.replace("15s", "1s").replace("127.0.0.1:9187", self._target)
        (self._directory / "prometheus.yml").write_text(configuration)
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    shutil.which("prometheus") or "prometheus",
                    f"--config.file={self._directory}/prometheus.yml",
                    f"--storage.tsdb.path={self._directory}/data",
                    f"--web.listen-address={self._address}",
                ],
                stdout=log,
                stderr=log,
            )
        wait_until(self._is_up, "Prometheus is up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """An instant query: its series, with `metric` and `value`."""
        found: list[dict[str, Any]] = self._ask("query", query=expression)["result"]
        return found

    def firing(self, alert: str, **labels: str) -> bool:
        """Whether it fires, with these labels among others."""
        return any(
            found["state"] == "firing" and found["labels"].items() >= {"alertname": alert, **labels}.items()
            for found in self._ask("alerts")["alerts"]
        )

    def wait_firing(self, alert: str, **labels: str) -> None:
        wait_until(lambda: self.firing(alert, **labels), f"{alert} {labels or ''} fires", poll_s=0.2)

    def wait_clear(self, *alerts: str) -> None:
        for alert in alerts:
            wait_until(lambda alert=alert: not self.firing(alert), f"{alert} is clear", poll_s=0.2)  # type: ignore[misc]

    def wait_all_clear(self, *, but: str) -> None:
        wait_until(lambda: self._pending() <= {but}, f"no alert but {but} is pending or fires", poll_s=0.2)

    def _pending(self) -> set[str]:
        """The alerts that fire, or are about to."""
        return {found["labels"]["alertname"] for found in self._ask("alerts")["alerts"]}

    def _is_up(self) -> bool:
        try:
            return bool(self.query("up"))
        except OSError:
            return False

    def _ask(self, what: str, **parameters: str) -> dict[str, Any]:
        url = f"http://{self._address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)["data"]
        return found
