"""How Sphinx builds the documentation into build/site: `make docs`."""

import argparse
import os
from importlib.metadata import version as version_of
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

project = "trl-bonesoup"
author = copyright = "The trl-bonesoup authors"
release = version = version_of(project)

# Sources are read from the root of the repository, so that a link in a page means the same on the site and in a
# listing of files. A link to a file that is no page becomes a download; one to nothing is an error.
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = ["docs/**", "benchmarks/**README.md", "examples/**README.md", "README.md", "C*.md"]
exclude_patterns = ["docs/_*", "docs/first-soup", ".*", "build", "dist", "runs", "src", "tests"]
root_doc = "docs/index"
myst_heading_anchors = 4
nb_execution_mode = "off"  # tests/test_notebook.py runs it

smartquotes_action = "D"  # dashes alone: quotes in docstrings are often code
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_type_aliases = {name: name for name in ("ArrayLike", "FloatArray", "Preference", "Prompt", "RewardFunctions")}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "code"  # docstrings write `names` in single backticks
python_maximum_signature_line_length = 100
add_module_names = False

html_theme = "furo"
html_title = "trl-bonesoup"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "redirect.html"}
templates_path = ["_templates"]
html_copy_source = False
html_show_sphinx = False


def describe_settings(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Add what the settings of PPO mean, which is in the metadata of their fields, where `--help` finds it, too."""
    if not name.endswith("MultiRewardPPOConfig"):
        return
    for setting in obj.__annotations__:
        field = obj.__dataclass_fields__[setting]
        lines += ["", f"``{setting}`` = ``{field.default!r}``", f"    {field.metadata['help']}"]


class CommandHelp(Directive):
    """A section for each command of `bonesoup`, with what its `--help` prints."""

    def run(self) -> list[nodes.Node]:
        """Make the sections."""
        from trl_bonesoup.cli import _COMMANDS

        os.environ["COLUMNS"] = "90"
        subparsers = argparse.ArgumentParser(prog="bonesoup").add_subparsers()
        for command in _COMMANDS:
            command.add_parser(subparsers)
        sections = []
        for name, parser in subparsers.choices.items():
            section = nodes.section(ids=[name], names=[name])
            text = parser.format_help()
            section += [nodes.title(text=f"bonesoup {name}"), nodes.literal_block(text, text, language="none")]
            sections.append(section)
        return sections


def setup(app: Any) -> None:
    """Connect what is defined here."""
    app.connect("autodoc-process-docstring", describe_settings)
    app.add_directive("command-help", CommandHelp)
