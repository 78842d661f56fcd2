"""What every test shares: no network, one thread per operation, reproducible examples, and a Hub on the loopback."""

import atexit
import gc
import os
import shutil
import socket
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from loopback_hub import LoopbackHub

_HUB = LoopbackHub()
_HF_HOME = Path(tempfile.mkdtemp(prefix="bonesoup-tests-"))
atexit.register(shutil.rmtree, _HF_HOME, ignore_errors=True)

# Read when torch and huggingface_hub are first imported, so set before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"  # the loopback Hub has LFS alone
os.environ["HF_ENDPOINT"] = _HUB.endpoint
os.environ["HF_HOME"] = str(_HF_HOME)
for _name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
    os.environ.pop(_name, None)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("bonesoup", deadline=None, derandomize=True)
settings.load_profile("bonesoup")

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@pytest.fixture(autouse=True, scope="module")
def imports_are_no_garbage() -> None:
    """Keep what is imported out of collections of garbage, one of which belongs to every training.

    They were half of the time of the tests of training: with torch, transformers and TRL each takes a second.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Fail the test that opens a connection to another machine; the loopback interface stays open."""
    connect = socket.socket.connect

    def connect_to_loopback_only(sock: socket.socket, address: Any) -> None:
        if sock.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in _LOOPBACK:
            pytest.fail(f"A test tried to reach {address[0]}: tests must not need the network.")
        connect(sock, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_to_loopback_only)
        yield


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """An empty Hub that huggingface_hub is online with, logged in as ann, in this process and in those it starts.

    The client's cache is empty, and its waits between retries are written down in `hub.waits` instead of waited.
    """
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http, close_session

    _HUB.reset()
    _HUB.start()
    _HUB.cache = Path(constants.HF_HUB_CACHE)
    shutil.rmtree(_HUB.cache, ignore_errors=True)
    close_session()  # of an earlier test, which may have been cut off
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_TOKEN", _HUB.token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    no_waits = types.SimpleNamespace(sleep=_HUB.waits.append)
    monkeypatch.setattr(_http, "time", no_waits)
    monkeypatch.setattr(file_download, "time", no_waits)
    yield _HUB
    close_session()
