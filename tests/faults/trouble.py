"""Where everybody in a round writes down what is wrong, from whatever thread."""

import threading


class Findings:
    def __init__(self) -> None:
        self._texts: list[str] = []
        self._lock = threading.Lock()

    def add(self, text: str, detail: str = "") -> None:
        with self._lock:
            self._texts.append(f"{text}\n{detail}".rstrip())

    def all(self) -> list[str]:
        with self._lock:
            return list(self._texts)
