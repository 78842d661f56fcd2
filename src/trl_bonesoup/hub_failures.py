"""What went wrong between this machine and the Hub, and what helps, in words."""

from __future__ import annotations

__all__ = ["cause_of", "explained", "first_line", "is_ours", "status_of"]


def cause_of(error: BaseException) -> BaseException:
    """Return what went wrong with a request; uploads of the client wrap it."""
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    return error


def status_of(error: BaseException | None) -> int | None:
    """Return the status with which the Hub answered; None if it did not."""
    return getattr(getattr(error, "response", None), "status_code", None)


def is_ours(error: BaseException) -> bool:
    """Return whether something on this machine is to blame, such as a file that is gone, and not the connection."""
    return status_of(error) is None and (isinstance(error, ValueError) or bool(getattr(error, "filename", None)))


def first_line(error: BaseException | None) -> str:
    """Return the first line of an error's message; its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def explained(error: BaseException, endpoint: str, *, token: str, place: str, again: str) -> str:
    """Return why an upload failed and what helps against it.

    Args:
        error: from `cause_of`.
        endpoint: address of the Hub.
        token: the settings that go before what `hf auth login` stores.
        place: the settings that say where the upload goes.
        again: what to do after a failure that may pass.
    """
    from huggingface_hub.errors import LocalTokenNotFoundError

    status, said = status_of(error), getattr(error, "server_message", None) or first_line(error)
    if isinstance(error, LocalTokenNotFoundError):
        return f"you are not logged in to the Hub. Log in with `hf auth login`, or set {token}."
    if is_ours(error):
        return said
    if status == 401:
        return (
            "the Hub does not accept your token (401). It may have been revoked: log in again with `hf auth login`, "
            f"or check {token}, which goes before it."
        )
    if status == 403:
        return (
            f"your token may not do that (403: {said}). Use one that may write there, from {endpoint}/settings/tokens, "
            f"or choose another {place}."
        )
    if status == 404:
        return f"it is not there, or your token does not see it (404: {said}). Choose another {place}."
    if status == 412:
        return f"somebody else committed meanwhile. {again}"
    if status == 429:
        return f"the Hub allows no more requests for now (429: {said}). Wait some minutes. {again}"
    if status is None:
        return f"the connection to {endpoint} broke off or was not made ({said}). {again}"
    if status >= 500:
        return f"the Hub has a problem of its own ({status}: {said}). {again}"
    return f"the Hub answered {status}: {said}"
