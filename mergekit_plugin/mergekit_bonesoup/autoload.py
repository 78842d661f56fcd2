"""Waits, from interpreter start on, for mergekit to be imported, so that its own commands know `bone_soup`.

The start-up files call `start`. As every interpreter pays for it, nothing is imported here but what
Python itself has already loaded; the work is in `mergekit_bonesoup.registration`.
"""

import os
import sys

SWITCH = "MERGEKIT_BONESOUP_AUTOLOAD"
"""Environment variable that turns the start-up off when it is one of `OFF`, in upper or lower case."""

OFF = ("0", "false", "no", "off")

WATCHED = frozenset(
    {
        "mergekit.merge",
        "mergekit.merge_methods",
        "mergekit.plan",
        "mergekit.scripts.merge_raw_pytorch",
    }
)
"""Modules after whose import `registration.after_import` has something to do."""


class _ThenLoader:
    """Stands in for a module's loader until the module has executed, then calls `after_import`."""

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _after_import(module)


class MergekitFinder:
    """Finder on `sys.meta_path` that finds the watched modules where the other finders do."""

    def find_spec(self, fullname, path=None, target=None):
        """Return the spec of a watched module with its loader wrapped, or None for any other module."""
        if fullname not in WATCHED:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, MergekitFinder) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _ThenLoader(spec.loader)  # type: ignore[assignment]
                return spec
        return None


def install():
    """Watch for mergekit's modules, and do at once what is due for those already imported."""
    if not any(isinstance(finder, MergekitFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, MergekitFinder())
    for name in sorted(WATCHED.intersection(sys.modules)):
        _after_import(sys.modules[name])


def start():
    """Install the finder unless the environment variable MERGEKIT_BONESOUP_AUTOLOAD turns it off."""
    if os.environ.get(SWITCH, "").strip().lower() not in OFF:
        install()


def _after_import(module):
    from mergekit_bonesoup.registration import after_import

    after_import(module)
