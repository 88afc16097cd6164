"""What the doctor can find: one row each, which the page of the command line shows too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Code:
    """One thing that can be found. Numbers stay what they are from version to version."""

    number: str
    severity: Severity
    title: str
    change: str
    """The line to change, where it is the same for everybody."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that was found."""

    code: Code
    sentence: str
    change: str

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "code": self.code.number,
            "severity": self.code.severity,
            "title": self.code.title,
            "sentence": self.sentence,
            "change": self.change,
        }


_TABLE: Final[tuple[tuple[str, Severity, str, str], ...]] = (
    # the installation
    ("UK101", "error", "an option of the middleware is wrong", "what the sentence says"),
    ("UK102", "error", "a package that the application needs is not installed", "what the sentence says"),
    ("UK103", "error", "one request passes two middlewares with different keepers", "keeper=keeper, one for both"),
    ("UK104", "note", "a layer outside the middleware may answer by itself", "add UsageMiddleware after it"),
    ("UK105", "warning", "CORS headers are added inside the middleware", "add CORSMiddleware after UsageMiddleware"),
    ("UK106", "warning", "the keeper is switched off", "enabled=True"),
    # who the client is
    ("UK201", "error", "trusted_proxies trusts everybody", 'trusted_proxies=["10.0.0.0/8"]'),
    ("UK202", "warning", "the server and trusted_proxies both read the forwarded address", "leave trusted_proxies out"),
    ("UK203", "error", "the server believes forwarded addresses of everybody", "--forwarded-allow-ips=10.0.0.2"),
    ("UK204", "warning", "all clients seem to have one private address", "trusted_proxies=1"),
    ("UK205", "warning", "names made up by a client escape the limit", "a second policy on ClientAddress()"),
    # routes and policies
    ("UK301", "warning", "routes are watched and no policy limits them", "a policy for them"),
    ("UK302", "warning", "a pattern matches no route of the framework", "the pattern, or leave it out"),
    ("UK303", "note", "routes are not watched", 'routes=["*"]'),
    ("UK304", "note", "nothing is limited", 'policies=[Policy("default", limits=["100/minute"])]'),
    ("UK305", "error", "requests cost more than a limit ever allows", "a smaller cost, or a larger limit"),
    # counters and store
    ("UK401", "error", "each worker counts in its own memory", 'counters="sqlite:///usagekeeper.counters.db"'),
    ("UK402", "warning", "each worker keeps records in its own memory", 'store="sqlite:///usagekeeper.db"'),
    ("UK403", "error", "the counters cannot be used", 'counters="sqlite:////var/lib/shop/usage.counters.db"'),
    ("UK404", "error", "the store cannot be used", 'store="sqlite:////var/lib/shop/usage.db"'),
    ("UK405", "error", "SQLite files lie on a network file system", 'store="sqlite:////var/lib/shop/usage.db"'),
    ("UK406", "warning", "the disk is nearly full", 'retention="30 days", or a larger disk'),
    ("UK407", "warning", "the store is very large", 'retention="30 days"'),
    ("UK408", "note", "counts are in memory, which is right for one worker alone", "doctor --workers 1, or a file"),
    # clocks and traffic
    ("UK501", "error", "the clock stands behind what was written", "run a time service (NTP) on this machine"),
    ("UK502", "note", "requests that match no route", "block them in front of the application"),
)
CODES: Final = {row[0]: Code(*row) for row in _TABLE}


def finding(number: str, sentence: str, change: str | None = None) -> Finding:
    """A finding under *number*; *change* where the line to change is known better than the table knows it."""
    code = CODES[number]
    return Finding(code, sentence, code.change if change is None else change)
