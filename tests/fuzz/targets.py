"""What is fuzzed: each target takes bytes, and lets nothing out but what the parser's own contract allows."""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

_FOLDER = Path(tempfile.mkdtemp(prefix="bonesoup-fuzz-"))

MANIFEST = {
    "format_version": 1,
    "base_model": {"id": "org/sft", "revision": "main"},
    "objectives": [
        {"name": "helpful", "reward": "org/rm", "normalization": {"mean": 0.5, "std": 1.5}},
        {"name": "a=b", "reward": "rewards:brief"},
    ],
    "combination_weights": [[0.75, 0.25], [0.25, 0.75]],
    "backbones": [
        {"path": "b0", "kind": "adapter", "steps": 4, "seed": 1},
        {"path": "org/b1", "kind": "adapter", "revision": "v1"},
    ],
    "presets": {"cautious": {"a=b": 1.0}},
    "training": {"kl_coef": 0.2, "bf16": False, "note": None},
    "versions": {"trl": "1.16.0"},
}
FRONT = {
    "format_version": 1,
    "objectives": ["helpful", "brief"],
    "preferences": [[1.0, 0.0], [0.5, 0.5]],
    "coefficients": [[1.5, -0.5], [0.5, 0.5]],
    "rewards": [[0.25, -1.0], [0.5, -0.75]],
    "intervals": [[[0.0, 0.5], [-2.0, 0.0]], [[0.25, 0.75], [-1.0, -0.5]]],
    "n_samples": [[4, 4], [4, 4]],
    "markers": {"base": {"rewards": [0.0, 0.0], "intervals": None}},
    "provenance": {"seed": 0, "note": ["x"]},
}


def soup_json(content: bytes) -> None:
    """A valid manifest that is read back as it was written, or ManifestError."""
    from trl_bonesoup.errors import ManifestError
    from trl_bonesoup.manifest import SoupManifest

    try:
        manifest = SoupManifest.from_json(content)
    except ManifestError:
        return
    assert SoupManifest.from_json(manifest.model_dump_json().encode()) == manifest


def front_json(content: bytes) -> None:
    """A valid front that is read back as it was written, or FrontError."""
    from trl_bonesoup.errors import FrontError
    from trl_bonesoup.front.front import Front

    file = _FOLDER / "front.json"
    file.write_bytes(content)
    try:
        front = Front.from_json(file)
    except FrontError:
        return
    assert Front.from_json(front.to_json(_FOLDER / "again.json")) == front


def settings_yaml(content: bytes) -> None:
    """Arguments of `bonesoup sweep`, or ConfigurationError."""
    from trl_bonesoup.cli import sweep
    from trl_bonesoup.cli.settings_file import apply_config
    from trl_bonesoup.errors import ConfigurationError

    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    sweep.add_parser(commands)
    file = _FOLDER / "settings.yml"
    file.write_bytes(content)
    with contextlib.suppress(ConfigurationError):
        apply_config(parser, commands.choices, ["sweep", "SOUP", "OUT", "--config", str(file)])


def preference(content: bytes) -> None:
    """A point of the simplex, or an error of ours."""
    from trl_bonesoup.cli.text_forms import parse_preference
    from trl_bonesoup.errors import ConfigurationError, WeightsError
    from trl_bonesoup.manifest import SoupManifest

    try:
        mu_N = parse_preference(content.decode("utf-8", "replace"), SoupManifest.model_validate(MANIFEST))
    except (WeightsError, ConfigurationError):
        return
    assert mu_N.shape == (2,) and (mu_N >= 0).all() and abs(float(mu_N.sum()) - 1) < 1e-5


def reward_spec(content: bytes) -> None:
    """A callable, or ConfigurationError; modules that are not this package's are not imported."""
    from trl_bonesoup.errors import ConfigurationError
    from trl_bonesoup.rewards import spec

    real = spec.importlib.import_module

    def import_module(name: str) -> object:
        return real(name) if not name.strip(".").split(".")[0].isidentifier() or "trl_bonesoup" in name else argparse

    spec.importlib.import_module = import_module  # type: ignore[assignment]
    try:
        assert callable(spec.load_reward(content.decode("utf-8", "replace")))
    except ConfigurationError:
        return
    finally:
        spec.importlib.import_module = real


def tensor_file(content: bytes) -> None:
    """A checkpoint of which every tensor can be read in full, or SoupError.

    The bytes are a header and what follows a line break of their own; the length in front is made to fit.
    """
    from trl_bonesoup.errors import SoupError
    from trl_bonesoup.soup.checkpoints import Checkpoint

    header, separator, body = content.partition(b"\n\n")
    whole = len(header).to_bytes(8, "little") + header + body if separator else content
    (_FOLDER / "model.safetensors").write_bytes(whole)
    try:
        checkpoint = Checkpoint(_FOLDER)
    except SoupError:
        return
    for name, info in checkpoint.tensors.items():
        assert info.start + info.nbytes <= len(whole)
        checkpoint.read(name)


def adapter_config(content: bytes) -> None:
    """The settings of an adapter, or SoupError."""
    from trl_bonesoup.errors import SoupError
    from trl_bonesoup.soup.adapter_config import read_settings

    file = _FOLDER / "adapter_config.json"
    file.write_bytes(content)
    with contextlib.suppress(SoupError):
        assert read_settings(file)["peft_type"]


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


_HEADER = {"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}}
_ADAPTER = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q"], "rank_pattern": {"^q": 2}}

TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "soup_json": (soup_json, [_json(MANIFEST)]),
    "front_json": (front_json, [_json(FRONT)]),
    "settings_yaml": (
        settings_yaml,
        [b"grid: 0.1\nfull: true\npreference: [a=1, '0.5,0.5']\n", b"out: &a x\nsoup: *a"],
    ),
    "preference": (preference, [b"helpful=0.7,a=b=0.3", b"0.5,0.5", b"equal", b"cautious"]),
    "reward_spec": (reward_spec, [b"positivity", b"trl_bonesoup.rewards.offline:brevity", b"a.b:c.d"]),
    "tensor_file": (tensor_file, [_json(_HEADER) + b"\n\n" + bytes(8)]),
    "adapter_config": (adapter_config, [_json(_ADAPTER)]),
}
"""By name, each with inputs to start from."""
