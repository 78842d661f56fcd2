"""Snippets for cards: how to load a soup or a family, and how to make a soup again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence

import numpy as np
import yaml

from trl_bonesoup.card_metadata import YOUR_BASE_MODEL, hub_id
from trl_bonesoup.errors import ConfigurationError, SoupError
from trl_bonesoup.hub.metadata import BaseModelName
from trl_bonesoup.manifest import BaseModelRef, Preference, SoupManifest
from trl_bonesoup.markdown import fenced, hide_local_paths
from trl_bonesoup.soup.recipe import mergekit_yaml
from trl_bonesoup.weights import FloatArray

THIS_FOLDER = "path/to/this/folder"
FAMILY_FOLDER = "path/to/the/folder/with/soup.json"
_PLAIN_NAME = re.compile(r"\w[\w.-]*")

__all__ = [
    "adapter_example",
    "merge_command",
    "place",
    "portable_recipe",
    "recipe",
    "rows_example",
    "soup_example",
    "transformers_example",
]


def place(name: str | None, otherwise: str) -> str:
    """Return the repository by which something is loaded, or a folder to be filled in if `name` is none."""
    return name if name and "/" in name and hub_id(name) else otherwise


def transformers_example(where: str, tokenizer: str, base_model: str | None = None) -> str:
    """Return how transformers loads a checkpoint, an adapter with the base model that it names, or onto another."""
    load = f'model = AutoModelForCausalLM.from_pretrained("{base_model or where}")\n'
    load += f'model.load_adapter("{where}")\n' if base_model else ""
    return fenced(
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"{load}"
        f'tokenizer = AutoTokenizer.from_pretrained("{tokenizer}")',
        "python",
    )


def adapter_example(where: str, base: BaseModelName, tokenizer: str) -> str:
    """Return how PEFT loads an adapter, onto a base model that the reader names if the adapter cannot."""
    if base.argument is None:
        return fenced(
            "from peft import AutoPeftModelForCausalLM\n\n"
            f'model = AutoPeftModelForCausalLM.from_pretrained("{where}")\n'
            "model = model.merge_and_unload()  # optional: a plain model, without the adapter's layers",
            "python",
        )
    return fenced(
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base.argument}")\n'
        f'model = PeftModel.from_pretrained(base, "{where}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{tokenizer}")',
        "python",
    )


def soup_example(manifest: SoupManifest, base: BaseModelName, family: str | None) -> str:
    """Return how BoneSoup loads the family and sets a preference."""
    share = 1.0 / len(manifest.objectives)
    even = ", ".join(f"{_literal(name)}: {share:.7g}" for name in manifest.objective_names)
    base_model = "" if base.argument is None else f', base_model="{base.argument}"'
    return fenced(
        "from trl_bonesoup import BoneSoup\n\n"
        f'soup = BoneSoup.from_pretrained("{place(family, FAMILY_FOLDER)}"{base_model})\n'
        f"soup.set_preference({{{even}}})\n"
        "model, tokenizer = soup.model, soup.tokenizer",
        "python",
    )


def rows_example(manifest: SoupManifest) -> str:
    """Return how every row of a batch gets a preference of its own."""
    vertices = np.eye(len(manifest.objectives))[:2]
    rows = ", ".join(f"[{', '.join(f'{weight:g}' for weight in row)}]" for row in vertices)
    return fenced(
        'prompts = ["One prompt", "Another prompt"]\n'
        'batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")\n'
        f"with soup.preferences([{rows}]):\n"
        "    answers = soup.model.generate(**batch, max_new_tokens=64)",
        "python",
    )


def merge_command(
    manifest: SoupManifest,
    base: BaseModelName,
    family: str | None,
    preference_N: FloatArray,
    extrapolation: float | Sequence[float] = 0.0,
    *,
    full: bool = False,
    rank: int | None = None,
) -> str:
    """Return the command that writes one soup of the family."""
    shares = [f"{share:.12g}" for share in preference_N]
    names = manifest.objective_names
    if all(_PLAIN_NAME.fullmatch(name) for name in names):
        shares = [f"{name}={share}" for name, share in zip(names, shares, strict=True)]
    words = ["bonesoup", "merge", place(family, FAMILY_FOLDER), "out", "--preference", ",".join(shares)]
    if np.any(np.asarray(extrapolation) != 0.0):
        words += ["--extrapolation", ",".join(f"{alpha:.12g}" for alpha in np.atleast_1d(extrapolation))]
    words += ["--full"] if full else []
    words += [] if rank is None else ["--rank", str(rank)]
    words += [] if base.argument is None else ["--base-model", base.argument]
    return fenced(shlex.join(words), "bash")


def recipe(manifest: SoupManifest, text: str | None, base: BaseModelName, family: str | None) -> dict[str, str]:
    """Return a mergekit recipe as a code block, without folders of this machine, and how a reader comes to run it.

    Raises:
        ConfigurationError: if it is not YAML.
    """
    if not text:
        return {"recipe": ""}
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"mergekit_yaml must be the text of a mergekit recipe in YAML; {error}.") from error
    portable = hide_local_paths(content)
    where, replace = place(family, ""), base.argument == YOUR_BASE_MODEL
    if portable != content or hide_local_paths(text) != text:
        text, replace = yaml.safe_dump(portable, sort_keys=False, allow_unicode=True), True
    adapters = any(backbone.kind == "adapter" for backbone in manifest.backbones)
    return {
        "recipe": fenced(text, "yaml"),
        "recipe_command": "mergekit-yaml recipe.yml out/" + (" --lora-merge-cache cache/" if adapters else ""),
        "recipe_note": ", after replacing its folders by yours" if replace else "",
        "recipe_folder": f" (`hf download {where} --local-dir family` fetches it)" if where else "",
    }


def portable_recipe(
    manifest: SoupManifest,
    base: BaseModelName,
    preference: Preference,
    extrapolation: float | Sequence[float] = 0.0,
) -> str | None:
    """Return the mergekit recipe to publish beside soup.json; None if mergekit cannot name the backbones."""
    if base.hub_id and base.argument:
        manifest = manifest.model_copy(update={"base_model": BaseModelRef(id=base.hub_id)})
    try:
        return mergekit_yaml(manifest, None, preference, extrapolation)
    except SoupError:
        return None


def _literal(name: str) -> str:
    shown = hide_local_paths(name)
    return json.dumps(shown, ensure_ascii=False) if shown.isprintable() else repr(shown)
