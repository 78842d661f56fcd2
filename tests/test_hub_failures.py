"""Failures of the Hub in words: each says what happened, whose fault it is, and what the caller can set against it."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalTokenNotFoundError

from trl_bonesoup.hub_failures import cause_of, explained, is_ours


def answered(status: int) -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError("said", response=response)


@pytest.mark.parametrize(
    ("error", "ours", "says"),
    [
        (answered(401), False, r"does not accept your token \(401\).*`hf auth login`, or check MY_TOKEN"),
        (answered(403), False, r"may not do that \(403: said\).*https://hub\.example/settings/tokens.*another --place"),
        (answered(404), False, r"is not there, or your token does not see it \(404: said\)\. Choose another --place"),
        (answered(412), False, r"somebody else committed meanwhile\. Once more!"),
        (answered(429), False, r"\(429: said\)\. Wait some minutes\. Once more!"),
        (answered(502), False, r"a problem of its own \(502: said\)\. Once more!"),
        (answered(418), False, r"the Hub answered 418: said$"),
        (
            ConnectionResetError(104, "reset by peer"),
            False,
            r"connection to https://hub\.example broke off.*Once more!",
        ),
        (HTTPError("timed out"), False, r"broke off or was not made \(timed out\)\. Once more!"),
        (LocalTokenNotFoundError("Token is required"), False, r"not logged in.*`hf auth login`, or set MY_TOKEN"),
        (FileNotFoundError(2, "No such file", "/x"), True, r"^\[Errno 2\] No such file: '/x'$"),
        (HFValidationError("no such name\nat all"), True, r"^no such name$"),
    ],
)
def test_a_failure_is_explained(error: Exception, ours: bool, says: str) -> None:
    wrapped = RuntimeError("while uploading")
    wrapped.__cause__ = error
    cause = cause_of(wrapped)
    text = explained(cause, "https://hub.example", token="MY_TOKEN", place="--place", again="Once more!")
    assert is_ours(cause) is ours
    assert re.search(says, text), text
