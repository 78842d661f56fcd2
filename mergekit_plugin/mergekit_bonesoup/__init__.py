"""The mergekit method `bone_soup`: backbones and a preference in, the soup out.

Installing the package is enough for `mergekit-yaml` to know the method (see `mergekit_bonesoup.autoload`).
This module imports nothing, because the start-up file imports it in every interpreter.
"""

METHOD_NAME = "bone_soup"

__all__ = ["METHOD_NAME", "bone_soup", "register"]


def register():
    """Make mergekit know `bone_soup` now, whether or not the start-up file did, or is turned off.

    Raises:
        DependencyError: if mergekit is not installed or lacks what the method is built on.
    """
    from mergekit_bonesoup.autoload import install
    from trl_bonesoup.errors import DependencyError

    try:
        import mergekit_bonesoup.method  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            f"bone_soup needs mergekit 0.1.5 or newer: pip install 'mergekit>=0.1.5'. ({error})"
        ) from error
    install()


def __getattr__(name):
    if name == METHOD_NAME:
        from mergekit_bonesoup.method import bone_soup

        return bone_soup
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
