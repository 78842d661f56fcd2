"""Reward functions as text: what soup.json records and what commands take."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.privacy import hide_tokens
from trl_bonesoup.rewards.protocol import reward_name

BUILT_IN = ("positivity", "neutrality", "plainness", "brevity")
"""Names of the scorers in `trl_bonesoup.rewards.offline`, which a spec may use alone."""

PUBLIC = ("helpful", "harmless", "humor", "faithful_summary", "summary_quality")
"""Names of the reward models in `trl_bonesoup.rewards.public`, which a command may use alone.

soup.json records them in full, since a script's own function may well be called helpful.
"""


def load_reward(spec: str) -> Callable[..., Any]:
    """Return the reward function that a spec names.

    Args:
        spec: a built-in scorer ("positivity", "neutrality", "plainness", "brevity"), a public
            reward model ("helpful", "harmless", "humor", "faithful_summary", "summary_quality") or
            `module:attribute`, the name of a function or of an instance such as a
            `ClassifierReward`. Importing a module runs its code, so take specs from people, not
            from files of others.

    Raises:
        ConfigurationError: if it has another form, or names nothing callable.
    """
    for names, home in ((BUILT_IN, "offline"), (PUBLIC, "public")):
        if spec in names:
            spec = f"trl_bonesoup.rewards.{home}:{spec}"
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise ConfigurationError(
            f"A reward is one of {', '.join(BUILT_IN)}, or module:attribute such as my_rewards:helpful, or a public "
            f"model: {', '.join(PUBLIC)}; got {spec!r}. To score with another model, name a ClassifierReward in a "
            "module of yours."
        )
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigurationError(f"The module of reward {spec!r} is no name of a module, such as my_rewards.")
    try:
        found: Any = importlib.import_module(module_name)
    except (ImportError, RecursionError) as error:  # the second: parents are imported one inside the other
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]:
            hint = f" Start in the folder of {error.name}.py (this is {Path.cwd()}), or put that on PYTHONPATH."
        raise ConfigurationError(f"The module of reward {spec!r} cannot be imported: {error}.{hint}") from error
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ConfigurationError(f"Reward {spec!r} is not a callable in module {module_name}.")
    return found


def can_be_named(spec: str) -> bool:
    """Whether a spec has a form that `load_reward` takes; what soup.json says of an instance has not.

    >>> [can_be_named(spec) for spec in ("brevity", "my_rewards:helpful", "org/model(logit=1)", "helpful(k=1)")]
    [True, True, False, False]
    """
    module, separator, attribute = spec.partition(":")
    parts = [*module.split("."), *attribute.split(".")] if separator else []
    named = bool(parts) and module != "__main__" and all(part.isidentifier() for part in parts)
    return named or spec in (*BUILT_IN, *PUBLIC)


def reward_spec(reward_func: Any) -> str:
    """Return what soup.json says about a reward function: the inverse of `load_reward` where there is one.

    A Hub id stays as it is, and an instance says what its attribute `spec` says. A function defined
    in a script or a lambda is recorded by its name only, after "__main__:" if a scorer of this
    package has that name. Keywords that are secrets by their name, such as api_key, are not recorded.
    """
    if isinstance(reward_func, str):
        return reward_func
    if isinstance(reward_func, functools.partial):
        keywords = hide_tokens(reward_func.keywords)
        settings = ", ".join(f"{key}={value!r}" for key, value in sorted(keywords.items()))
        return f"{reward_spec(reward_func.func)}({settings})"
    if isinstance(spec := getattr(reward_func, "spec", None), str):
        return spec
    module = getattr(reward_func, "__module__", "__main__")
    qualified = getattr(reward_func, "__qualname__", "")
    if module in ("__main__", "builtins") or not qualified or "<" in qualified:
        name = reward_name(reward_func)
        return f"__main__:{name}" if name in BUILT_IN else name
    if module == "trl_bonesoup.rewards.offline":
        return qualified
    return f"{module}:{qualified}"
