"""A server on the loopback interface that speaks as much of OpenAI's protocol as the tests need."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class TinyEndpoint(ThreadingHTTPServer):
    """Answers every request with what `answer` makes of its messages or its prompt, and counts requests under way."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        self.answer: Callable[[Any], Any] = lambda asked: "7"
        self.delay = 0.0
        self.requests: list[dict] = []
        self.keys: list[str | None] = []
        self.paths: set[str] = set()
        self.lock = threading.Lock()
        self.open = self.most_open = 0
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def questions(self) -> list[str]:
        return [request["messages"][0]["content"] for request in self.requests]


class _Handler(BaseHTTPRequestHandler):
    server: TinyEndpoint

    def do_POST(self) -> None:
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append(request)
            server.keys.append(self.headers.get("Authorization"))
            server.paths.add(self.path)
            server.open += 1
            server.most_open = max(server.most_open, server.open)
        time.sleep(server.delay)
        answer = server.answer(request.get("messages", request))
        with server.lock:
            server.open -= 1
        if not isinstance(answer, tuple):
            answer = 200, _reply(answer, "messages" in request)
        status, body, *headers = answer
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *arguments: Any) -> None:
        """Keep quiet."""


def _reply(text: str | None, chat: bool) -> str:
    said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return json.dumps(
        {
            "id": "1",
            "created": 1,
            "model": "tiny",
            "object": "chat.completion" if chat else "text_completion",
            "choices": [{"index": 0, "finish_reason": "stop", **said}],
        }
    )


@contextmanager
def serving() -> Iterator[TinyEndpoint]:
    """Serve until the block ends."""
    server = TinyEndpoint()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
