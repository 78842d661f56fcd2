"""Models behind an address that speaks OpenAI's protocol: keys, retries, and only so many requests at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from trl_bonesoup.errors import ConfigurationError, EndpointError

# 4xx answers that another attempt may turn into an answer: timeout, conflict, too early, too many requests.
_TEMPORARY = (408, 409, 425, 429)

T = TypeVar("T")

__all__ = ["Connection", "Endpoint", "Secret", "chat_text", "completion_text"]


class Secret:
    """An API key that copies keep, and that neither `repr` nor pickle shows."""

    def __init__(self, value: str | None = None):
        self.value = value

    def __repr__(self) -> str:
        return "<hidden>"

    def __deepcopy__(self, memo: dict) -> Secret:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (Secret, ())


@dataclass(eq=False)
class Endpoint:
    """How an endpoint is asked.

    Args:
        base_url: without /chat/completions, such as http://127.0.0.1:8000/v1.
        who: what is asked, for messages.
        api_key_env: environment variable that holds the key; without one (and without `api_key`)
            the endpoint gets none.
        api_key: the key itself, or a `Secret`. It is not shown by `repr`, and not pickled.
        concurrency: conversations under way at once.
        timeout: seconds for one request.
        retries: further attempts after an error of the network or the server (5xx, 408, 409, 425,
            429, a malformed reply), `backoff` · 2^k seconds after attempt k = 0, 1, …, or later if the
            server asks for it (Retry-After), but not by more than `timeout`.

    Raises:
        ConfigurationError: if a setting is out of range.
    """

    base_url: str
    who: str = "The endpoint"
    api_key_env: str | None = None
    api_key: Any = field(default=None, repr=False)
    concurrency: int = 8
    timeout: float = 60.0
    retries: int = 3
    backoff: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.api_key, str):
            self.api_key = Secret(self.api_key)
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigurationError(f"base_url is an address such as http://127.0.0.1:8000/v1; got {self.base_url!r}.")
        if "@" in urlsplit(self.base_url).netloc:
            raise ConfigurationError("base_url is recorded, so it must hold no password; use api_key_env.")
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0:
            raise ConfigurationError(
                "An endpoint needs concurrency >= 1, retries >= 0 and timeout > 0; "
                f"got {self.concurrency}, {self.retries} and {self.timeout}."
            )

    async def converse(self, conversations: Sequence[Callable[[Connection], Awaitable[T]]]) -> list[T]:
        """Run conversations with the endpoint and return what they come to, in order.

        Client and semaphore belong to the running loop, so they live as long as this call.

        Raises:
            EndpointError: if the endpoint refuses, or all attempts at a request fail.
            ConfigurationError: if the key is missing, or HF_HUB_OFFLINE is set.
        """
        from huggingface_hub import get_async_session, is_offline_mode

        if is_offline_mode():
            raise ConfigurationError(
                "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, and huggingface_hub's client then reaches no address, "
                "not even a local one. Unset it to use an endpoint; models named by their folders still load from "
                "there."
            )
        key = self.key()
        free = asyncio.Semaphore(self.concurrency)
        async with get_async_session() as client:
            connection = Connection(self, client, key)

            async def run(conversation: Callable[[Connection], Awaitable[T]]) -> T:
                async with free:
                    return await conversation(connection)

            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(run(conversation)) for conversation in conversations]
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    def key(self) -> str | None:
        """Return the key to send.

        Raises:
            ConfigurationError: if it is not in its variable, or was lost on the way here.
        """
        if isinstance(self.api_key, Secret):
            if self.api_key.value is None:
                raise ConfigurationError(
                    f"{self.who} was pickled, which drops its api_key; name an environment variable with api_key_env "
                    "instead."
                )
            return self.api_key.value
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env)
        if not key:
            raise ConfigurationError(f"{self.who} needs its key in the variable {self.api_key_env}.")
        return key

    @property
    def root(self) -> str:
        """The address that the names of calls are appended to: a base_url that names no version means v1."""
        url = self.base_url.rstrip("/").removesuffix("/chat/completions")
        return url if url.endswith("/v1") else f"{url}/v1"


class Connection:
    """An endpoint while it is asked."""

    def __init__(self, endpoint: Endpoint, client: Any, key: str | None) -> None:
        self._endpoint, self._client, self._key = endpoint, client, key

    async def post(self, call: str, body: dict[str, Any], read: Callable[[Any], T]) -> T:
        """Return what `read` makes of the reply, after as many attempts as it takes and `retries` allows.

        Args:
            call: "chat/completions" or "completions".
            body: of the request, without what is None.
            read: raises if the reply is malformed.

        Raises:
            EndpointError: if the endpoint refuses, or all attempts fail.
        """
        settings = self._endpoint
        for attempt in range(settings.retries + 1):
            try:
                return read(await self._send(call, body))
            except Exception as error:
                status = getattr(getattr(error, "response", None), "status_code", None)
                final = status is not None and 400 <= status < 500 and status not in _TEMPORARY
                if final or attempt == settings.retries:
                    # Not chained: an endpoint may repeat the key in what it says.
                    raise EndpointError(self._failure(error, attempt + 1)) from None
                asked = min(_wait_asked_for(error), settings.timeout)
                await asyncio.sleep(max(settings.backoff * 2**attempt, asked))
        raise AssertionError("unreachable")

    async def _send(self, call: str, body: dict[str, Any]) -> Any:
        from huggingface_hub.utils import hf_raise_for_status

        response = await self._client.post(
            f"{self._endpoint.root}/{call}",
            json={name: value for name, value in body.items() if value is not None},
            headers={} if self._key is None else {"Authorization": f"Bearer {self._key}"},
            timeout=self._endpoint.timeout,
        )
        hf_raise_for_status(response)
        return response.json()

    def _failure(self, error: Exception, attempts: int) -> str:
        text = f"{type(error).__name__}: {error}"
        if self._key:
            text = text.replace(self._key, "<hidden>")
        return f"{self._endpoint.who} at {self._endpoint.base_url} gave no reply in {attempts} attempt(s): {text}"


def _wait_asked_for(error: Exception) -> float:
    """Return the seconds that a reply's Retry-After asks for, in its two forms; 0 where it has none."""
    asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    if asked.isdecimal():
        return float(asked)
    try:
        return (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):  # not a date; the first: a date that names no zone
        return 0.0


def chat_text(reply: Any) -> str:
    """Return the text of a reply to chat/completions."""
    return str(reply["choices"][0]["message"]["content"] or "")


def completion_text(reply: Any) -> str:
    """Return the text of a reply to completions."""
    return str(reply["choices"][0]["text"])
