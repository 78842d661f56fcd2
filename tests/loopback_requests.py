"""Requests to the loopback Hub, answers, and which requests are made to fail."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from loopback_repos import Refused

Drop = Literal["request", "response", "reset", "answer"]
"""Where a connection ends on purpose; see `LoopbackHub.fail`."""


@dataclass(frozen=True)
class Request:
    """One request as it arrived; `body` is cut short where the connection was dropped on purpose."""

    method: str
    path: str
    body: bytes
    query: dict[str, list[str]]
    headers: dict[str, str]
    endpoint: str

    @property
    def writes(self) -> bool:
        """Whether it would change something; the Hub asks about files and batches by POST, too."""
        asks = ("validate-yaml", "/preupload/", "/paths-info/", "objects/batch")
        return self.method not in {"GET", "HEAD"} and not any(part in self.path for part in asks)

    def json(self) -> Any:
        try:
            return json.loads(self.body or b"{}")
        except ValueError as error:
            raise Refused(400, f"not JSON: {error}") from error


@dataclass
class Fault:
    """Which requests fail and how; `hits` counts those that did."""

    match: Callable[[Request], bool]
    status: int
    drop: Drop | None
    times: int | None
    after: int
    share: float
    headers: dict[str, str]
    random: random.Random
    hits: int = 0

    def strikes(self, request: Request) -> bool:
        if (self.times is not None and self.hits >= self.times) or not self.match(request):
            return False
        if self.after:
            self.after -= 1
            return False
        if self.random.random() >= self.share:
            return False
        self.hits += 1
        return True


@dataclass(frozen=True)
class Answer:
    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
