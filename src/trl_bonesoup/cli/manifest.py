"""`bonesoup manifest`: write the soup.json of models that were trained elsewhere, and name preferences in one."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_bonesoup.cli.seek import combination_weights
from trl_bonesoup.cli.settings_file import Repeat, new_parser
from trl_bonesoup.cli.text_forms import read_preference
from trl_bonesoup.errors import ConfigurationError, ManifestError
from trl_bonesoup.manifest import FILE_NAME, SoupManifest

if TYPE_CHECKING:
    from trl_bonesoup.soup.assemble import Assembly

_EPILOG = """\
A backbone is a folder or an id on the Hub, and named for what it is good at. All start from one base model.

examples:
  bonesoup manifest soup --base-model org/sft --backbone friendly=adapters/friendly --backbone concise=org/concise-lora
  bonesoup manifest soup --preset cautious=friendly=0.2,concise=0.8   name a preference; any soup takes one
  bonesoup manifest soup                                              list its backbones and presets
"""
_OF_A_NEW_SOUP = ("base_model", "dominance", "combination_weights", "overwrite")

_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank takes."""


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = new_parser(
        subparsers, "manifest", run, "Write the soup.json of models that were trained elsewhere.", _EPILOG
    )
    parser.add_argument("soup", metavar="SOUP", help="folder of soup.json, which is made if it is not there")
    parser.add_argument(
        "--backbone", action=Repeat, metavar="NAME=MODEL", help="an adapter or a full checkpoint; repeated"
    )
    parser.add_argument(
        "--base-model", metavar="MODEL", help="what all started from; by default what the adapters name"
    )
    parser.add_argument(
        "--dominance",
        type=float,
        metavar="BETA",
        help="β of the circulant weights they were trained on; by default each was trained on one reward alone",
    )
    parser.add_argument("--combination-weights", metavar="JSON", help="a whole matrix B, such as [[0.8,0.3],[0.2,0.7]]")
    parser.add_argument(
        "--preset",
        action=Repeat,
        metavar="NAME=MU",
        help="a preference with a name: cautious=friendly=0.2,concise=0.8; may be repeated",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a soup.json that is there")


def run(arguments: argparse.Namespace) -> None:
    """Write, add to or list a soup.json."""
    presets = _by_name("--preset", "NAME=PREFERENCE", arguments.preset)
    presets = {name: read_preference(preference) for name, preference in presets.items()}
    if arguments.backbone:
        _assemble(arguments, presets)
        return
    given = [f"--{name.replace('_', '-')}" for name in _OF_A_NEW_SOUP if getattr(arguments, name)]
    file = Path(arguments.soup)
    if not (file if file.is_file() else file / FILE_NAME).is_file():
        raise ConfigurationError(
            f"There is no {FILE_NAME} in {file} yet: say with --backbone NAME=MODEL what it is of."
        )
    if given:
        raise ConfigurationError(f"{', '.join(given)} says of what a new soup is made: give each --backbone, too.")
    manifest = SoupManifest.load(file)
    for name, preference in presets.items():
        manifest = manifest.with_preset(name, preference)
    if presets:
        _save(manifest, file)
    _show(manifest)


def _assemble(arguments: argparse.Namespace, presets: dict[str, Any]) -> None:
    from trl_bonesoup.soup.assemble import assemble

    backbones = _by_name("--backbone", "NAME=MODEL", arguments.backbone)
    one_reward_each = arguments.dominance is None and arguments.combination_weights is None
    weights = None if one_reward_each else combination_weights(arguments, len(backbones))
    made = assemble(
        {name: str(model) for name, model in backbones.items()},
        arguments.soup,
        base_model=arguments.base_model,
        combination_weights=weights,
        presets=presets,
        overwrite=arguments.overwrite,
    )
    for part in made.parts:
        ending = f". {part.obstacle}" if part.obstacle else ", mixes as it is."
        print(f"{part.name}: {part.what}{ending}")
    if made.other_base:
        print(made.other_base)
    print(f"Wrote {made.path}.{_of_rank(made.rank)}")
    print(f"Next: {_next(arguments, made)}")


def _of_rank(rank: int | None) -> str:
    if rank is None:
        return ""
    fitting = [largest for largest in _VLLM_RANKS if largest >= rank]
    if fitting:
        return f" An exact adapter of it has rank {rank}, for which vLLM needs --max-lora-rank {fitting[0]}."
    return (
        f" An exact adapter of it has rank {rank}, more than the {_VLLM_RANKS[-1]} that vLLM takes: give merge --rank."
    )


def _next(arguments: argparse.Namespace, made: Assembly) -> str:
    folder = str(made.path.parent if Path(arguments.soup).name == FILE_NAME else arguments.soup)
    if any(part.obstacle for part in made.parts):
        words = ["bonesoup", "to-full", folder, f"{folder.rstrip('/')}-full"]
    else:
        words = ["bonesoup", "merge", folder, "out", "--preference", "equal"]
    if made.other_base:
        words += ["--base-model", arguments.base_model]
    return shlex.join(words)


def _show(manifest: SoupManifest) -> None:
    names = manifest.objective_names
    print(f"{len(names)} backbones on {manifest.base_model.id}:")
    for name, backbone in zip(names, manifest.backbones, strict=True):
        print(f"  {name}: {backbone.kind}, {backbone.path}")
    print(f"Presets of every soup: equal, {', '.join(names)}.{' Its own:' if manifest.presets else ''}")
    for preset, shares in manifest.presets.items():
        print(f"  {preset}: {', '.join(f'{name}={share:g}' for name, share in shares.items())}")


def _save(manifest: SoupManifest, where: Path) -> None:
    try:
        manifest.save(where)
    except OSError as error:
        raise ManifestError(f"{where} cannot be written to: {error.strerror}.") from error


def _by_name(flag: str, form: str, given: Any) -> dict[str, Any]:
    """Return values by name, from "name=value" texts and mappings that YAML made."""
    found: dict[str, Any] = {}
    for part in given or []:
        pairs = part if isinstance(part, dict) else dict([str(part).partition("=")[::2]])
        for name, value in pairs.items():
            if not name or value in ("", None):
                raise ConfigurationError(f"{flag} needs {form}; got {part!r}.")
            if name in found:
                raise ConfigurationError(f"{flag} names {name!r} twice.")
            found[str(name)] = value
    return found
