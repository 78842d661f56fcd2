"""`bonesoup push`: publish a family of soups on the Hub."""

from __future__ import annotations

import argparse
from typing import Any

from trl_bonesoup.cli import options
from trl_bonesoup.cli.settings_file import Repeat, new_parser
from trl_bonesoup.cli.text_forms import parse_extrapolation

_EPILOG = """\
Log in first with `hf auth login`, or set HF_TOKEN. Then look at what would be sent, and send it:

  bonesoup push run --repo me/soup --license apache-2.0 --dry-run
  bonesoup push run --repo me/soup --license apache-2.0

That is one repository with all backbones, soup.json, the front and its card. Anyone picks a preference with
BoneSoup.from_pretrained("me/soup"). A base model that is a local folder goes along; if the same model is on
the Hub, name it and it does not:

  bonesoup push run --repo me/soup --base-model org/sft

Some preferences, each as an adapter (or with --full a checkpoint) in a repository of its own, and all of it in a
collection:

  bonesoup push run --repo me/soup --grid 0.25 --collection "Helpful or harmless"
  bonesoup push run --repo me/soup --preference helpful=0.7,harmless=0.3 --full

The same command again sends only what is new or changed, also after a failure. More in docs/hub.md.
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = new_parser(subparsers, "push", run, "Publish a family of soups on the Hub.", _EPILOG)
    parser.add_argument("soup", metavar="SOUP", help="folder of soup.json, or id of a soup on the Hub")
    parser.add_argument("--repo", metavar="ID", required=True, help="repository of the family: org/name or user/name")
    parser.add_argument(
        "--preference", action=Repeat, metavar="MU", help="publish the soup of this preference; may be repeated"
    )
    parser.add_argument("--grid", type=float, metavar="STEP", help="publish all preferences in steps of this")
    parser.add_argument("--sample", type=int, metavar="K", help="publish K preferences, as `bonesoup sweep` draws them")
    options.add_extrapolation(parser)
    parser.add_argument("--full", action="store_true", help="publish those as full checkpoints instead of adapters")
    parser.add_argument("--collection", metavar="NAME", help="put all of it into the collection of this title or slug")
    parser.add_argument("--private", action="store_true", help="make new repositories and collections private")
    parser.add_argument("--branch", metavar="NAME", default="main", help="commit to this branch (main)")
    parser.add_argument("--tag", metavar="NAME", help="tag the commits, such as v1; a tag is never moved")
    parser.add_argument("--front", metavar="FILE", help="measured rewards for the cards (front.json beside soup.json)")
    parser.add_argument(
        "--base-model", metavar="ID", help="Hub id of the base model, to be named in place of uploading a local one"
    )
    options.add_card_metadata(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be sent, with sizes, and send nothing")


def run(arguments: argparse.Namespace) -> None:
    """Publish what is not there yet."""
    from trl_bonesoup.hub.plan import size_text
    from trl_bonesoup.hub.push import push
    from trl_bonesoup.soup.source import open_soup

    options.show_warnings_plainly()
    source = open_soup(arguments.soup)
    wants_soups = arguments.preference or arguments.grid is not None or arguments.sample is not None
    done = push(
        source,
        arguments.repo,
        preferences=options.parse_grid(arguments, source.manifest) if wants_soups else None,
        extrapolation=parse_extrapolation(arguments.extrapolation),
        full=arguments.full,
        front=arguments.front,
        private=arguments.private or None,
        collection=arguments.collection,
        branch=arguments.branch,
        tag=arguments.tag,
        dry_run=arguments.dry_run,
        say=lambda text: print(text, flush=True),
        base_model=arguments.base_model,
        license=arguments.license,
        language=arguments.language,
        datasets=arguments.dataset,
    )
    sent = [entry for entry in done if entry.state != "unchanged"]
    size = size_text(sum(entry.sent_bytes for entry in sent))
    if arguments.dry_run:
        print(f"Nothing was sent. A push would change {len(sent)} of {len(done)} repositories and send {size}.")
        return
    print(f"{len(sent)} of {len(done)} repositories changed, {size} sent. Load it with:")
    print(f'  BoneSoup.from_pretrained("{arguments.repo}")')
