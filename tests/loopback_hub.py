"""A Hub on the loopback interface, in memory, that huggingface_hub's own client talks to.

It knows two people (`LoopbackHub.token` is ann's, a member of `org`; `other_token` is ben's, a member of `others`),
keeps every request, and fails the requests that `LoopbackHub.fail` is told to. It speaks only the part of the protocol
that models need: repositories, commits, the basic LFS transfer, downloads, revisions and collections.
"""

from __future__ import annotations

import json
import random
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_api import ROUTES
from loopback_repos import Blob, Collection, Refused, Repo
from loopback_requests import Answer, Drop, Fault, Request


@dataclass(frozen=True)
class User:
    name: str
    namespaces: tuple[str, ...]
    may_write: bool = True


@dataclass
class LoopbackHub:
    """The Hub; use as a context manager, or through the fixture `hub`.

    Attributes:
        repos: by id; `files` and `commits` read them.
        collections: by slug.
        requests: all of them, in order of arrival.
        waits: seconds that the client would have waited between its own retries (filled by the fixture).
        cache: where the client keeps what it downloads (set by the fixture).
    """

    token: str = "hf_annSecretTokenOfTheLoopbackHub"
    other_token: str = "hf_benSecretTokenOfTheLoopbackHub"
    read_token: str = "hf_annReadOnlyTokenOfTheLoopbackHub"
    repos: dict[str, Repo] = field(default_factory=dict)
    collections: dict[str, Collection] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    cache: Path | None = None
    _faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._server = _Server(self)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._users = {
            self.token: User("ann", ("ann", "org")),
            self.read_token: User("ann", ("ann", "org"), may_write=False),
            self.other_token: User("ben", ("ben", "others")),
        }

    def __enter__(self) -> LoopbackHub:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Answer requests. Until then the port is taken, but nobody listens."""
        if self._thread is None:
            self._server.server_activate()
            self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Answer no more requests, for good."""
        if self._thread is not None:
            self._server.shutdown()
        self._server.server_close()

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            for kept in (self.repos, self.collections, self.requests, self.waits, self._faults):
                kept.clear()

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a repository by path."""
        return {path: blob.data for path, blob in self.repos[repo_id].at(revision).files.items()}

    def commits(self, repo_id: str, branch: str = "main") -> list[str]:
        """Return the titles of the commits, the oldest first; the Hub's own first commit is one of them."""
        return [commit.title for commit in self.repos[repo_id].branches[branch]]

    def put(self, repo_id: str, files: dict[str, bytes], *, private: bool = False, title: str = "put") -> str:
        """Commit files without a client and return the hash of the commit: how a test sets the scene."""
        repo = self.repos.setdefault(repo_id, Repo(repo_id, private))
        blobs = {
            path: Blob(data, repo.upload_mode(path, len(data), data[:512]) == "lfs") for path, data in files.items()
        }
        repo.large |= {blob.sha256: blob.data for blob in blobs.values() if blob.lfs}
        return repo.commit("main", title, dict(blobs), "ann", None)

    def writes(self) -> list[Request]:
        """Return the requests that would change something."""
        return [request for request in self.requests if request.writes]

    def asked(self, pattern: str) -> list[Request]:
        """Return the requests whose `METHOD /path` has the regular expression `pattern` in it."""
        return [request for request in self.requests if re.search(pattern, f"{request.method} {request.path}")]

    def fail(
        self,
        match: str | Callable[[Request], bool] = ".*",
        *,
        status: int = 500,
        drop: Drop | None = None,
        times: int | None = 1,
        after: int = 0,
        share: float = 1.0,
        seed: int = 0,
        headers: dict[str, str] | None = None,
    ) -> Fault:
        """Make requests fail.

        Args:
            match: which requests: a regular expression for `METHOD /path`, or a function of the request.
            status: what they are answered with, and nothing is done.
            drop: end the connection instead: "request" half way through the body of the request, "response" half
                way through the body of the answer ("reset": not by closing it, but by resetting it), "answer" after
                doing what was asked and before saying so.
            times: how many fail; None for all of them, always.
            after: how many that match go through first.
            share: of those that match, the share that fails, at random.
            seed: of that randomness.
            headers: of the answer, such as Retry-After.
        """

        def matches(request: Request) -> bool:
            if isinstance(match, str):
                return re.search(match, f"{request.method} {request.path}") is not None
            return match(request)

        fault = Fault(matches, status, drop, times, after, share, headers or {}, random.Random(seed))
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Make no request fail any more."""
        with self._lock:
            self._faults.clear()

    def struck(self, request: Request) -> Fault | None:
        with self._lock:
            return next((fault for fault in self._faults if fault.strikes(request)), None)

    def user(self, request: Request) -> User | None:
        """Return who asks; None without a token."""
        given = request.headers.get("authorization", "")
        if not given:
            return None
        user = self._users.get(given.removeprefix("Bearer "))
        if user is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        return user

    def answer(self, request: Request) -> Answer:
        with self._lock:
            for method, pattern, handle in ROUTES:
                found = re.fullmatch(pattern, request.path)
                if found and request.method in method.split("|"):
                    return handle(self, request, *map(unquote, found.groups()))
        raise Refused(404, f"The loopback Hub does not know {request.method} {request.path}")

    def readable(self, request: Request, repo_id: str) -> Repo:
        user = self.user(request)
        repo = self.repos.get(repo_id)
        if repo is None or (repo.private and (user is None or repo_id.split("/")[0] not in user.namespaces)):
            if user is None:
                raise Refused(401, "Invalid username or password.", "RepoNotFound")
            raise Refused(404, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, request: Request, repo_id: str) -> Repo:
        self.may_write(request, repo_id.split("/")[0])
        return self.readable(request, repo_id)

    def may_write(self, request: Request, namespace: str) -> User:
        user = self.user(request)
        if user is None:
            raise Refused(401, "Invalid username or password.")
        if not user.may_write or namespace not in user.namespaces:
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        return user


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: LoopbackHub) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.server_bind()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of connections that the client or a fault cut."""


class _Dropped(Exception):
    """The connection was cut on purpose."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        hub = self.server.hub
        try:
            request, fault = self._read(hub)
            answer = self._answer(hub, request, fault)
            self._write(request, answer, cut=fault.drop if fault else None)
        except _Dropped:
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: `LoopbackHub.requests` has it all."""

    def _read(self, hub: LoopbackHub) -> tuple[Request, Fault | None]:
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        size = int(headers.get("content-length", 0))
        head = Request(self.command, url.path, b"", parse_qs(url.query, keep_blank_values=True), headers, hub.endpoint)
        fault = hub.struck(head)
        cut = fault is not None and fault.drop == "request"
        if "chunked" in headers.get("transfer-encoding", ""):
            body = self._chunks()
        else:
            body = self.rfile.read(size // 2 if cut else size)
        request = Request(head.method, head.path, body, head.query, headers, hub.endpoint)
        hub.requests.append(request)
        if cut:
            raise _Dropped
        return request, fault

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, hub: LoopbackHub, request: Request, fault: Fault | None) -> Answer:
        if fault is not None and fault.drop is None:
            return Answer({"error": f"The loopback Hub was told to answer {fault.status}"}, fault.status, fault.headers)
        try:
            answer = hub.answer(request)
        except Refused as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            answer = Answer({"error": refusal.message}, refusal.status, headers)
        if fault is not None and fault.drop == "answer":
            raise _Dropped
        return answer

    def _write(self, request: Request, answer: Answer, *, cut: Drop | None) -> None:
        body = answer.body
        if not isinstance(body, bytes):
            body = b"" if body is None else json.dumps(body).encode()
        self.send_response(answer.status)
        if not isinstance(answer.body, bytes):
            self.send_header("Content-Type", "application/json; charset=utf-8")
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if request.method == "HEAD":
            return
        if cut not in {"response", "reset"}:
            self.wfile.write(body)
            return
        self.wfile.write(body[: len(body) // 2])
        if cut == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _Dropped
