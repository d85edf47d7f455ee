"""Words that must not be found: planted as secrets and as rows, and looked for in everything that leaves the program.

`leaks` looks for each word as it is, and as it would look in base64, in a URL, in hexadecimal and in JSON. Every
service of the suites has its log searched when its test ends (tests/support/cdc_process.py), for the secrets it was
given.
"""

import base64
import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote, unquote, urlsplit

_KEYS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_PASSWORD = re.compile(r"password\s*=\s*'?([^'\s]+)")


def leaks(said: Mapping[str, str], canaries: Mapping[str, str]) -> list[str]:
    """Which canary was found where, with some of what stood around it."""
    return [
        f"{name} is in {place}: {text[max(0, at - 80) : at + 80]!r}"
        for name, canary in canaries.items()
        for place, text in said.items()
        for spelling in _spellings(canary)
        if (at := text.find(spelling)) >= 0
    ]


def _spellings(word: str) -> set[str]:
    data = word.encode()
    # Inside a longer text base64 begins at any of three places; what depends on the neighbours is cut off.
    in_base64 = {base64.b64encode(b"\0" * shift + data).decode()[(0, 4, 4)[shift] : -4] for shift in range(3)}
    return {word, quote(word, safe=""), data.hex(), *(text for text in in_base64 if len(text) >= 12)}


def secrets_of(sections: Mapping[str, Mapping[str, object]], environment: Mapping[str, str]) -> dict[str, str]:
    """The secrets that a service is given: passwords of its addresses, its token, its key for S3."""
    found = dict(_passwords(sections))
    token, ping_url = (sections.get("http", {}).get(name) for name in ("token", "ping_url"))
    found |= {"http.token": str(token)} if token else {}
    found |= {"http.ping_url": urlsplit(str(ping_url)).path} if ping_url else {}
    found |= {name: environment[name] for name in _KEYS if name in environment}
    # A short word may be in a log by chance.
    return {name: secret for name, secret in found.items() if len(secret) >= 8}


def _passwords(sections: Mapping[str, Mapping[str, object]]) -> Iterator[tuple[str, str]]:
    for section, option in (("postgres", "dsn"), ("cache", "url")):
        address = str(sections.get(section, {}).get(option, ""))
        match = _PASSWORD.search(address)
        password = match[1] if match else unquote(urlsplit(address).password or "") if "://" in address else ""
        if password:
            yield f"{section}.{option}", password
