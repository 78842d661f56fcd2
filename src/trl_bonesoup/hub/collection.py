"""A collection on the Hub that holds a family: made if there is none, and given what it lacks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from trl_bonesoup.hub.client import HubClient

_SLUG = re.compile(r"[\w.-]+/[\w.-]+-[0-9a-f]{24}")

__all__ = ["collect"]


def collect(
    client: HubClient,
    name: str,
    namespace: str,
    items: Mapping[str, str | None],
    *,
    private: bool | None,
    dry_run: bool,
    say: Callable[[str], object],
) -> None:
    """Put repositories into a collection.

    Args:
        client: of the Hub.
        name: title of a collection of `namespace`, or the slug of any.
        namespace: in which it is made if there is none of that title.
        items: ids of the repositories, in order, each with a note or None.
        private: whether a new collection is private.
        dry_run: only say what would be done.
        say: called with each line.

    Raises:
        HubError: if the Hub refuses, or fails however often it is asked.
    """
    slug = name if _SLUG.fullmatch(name) else _find(client, name, namespace)
    there = set() if slug is None else _items(client, slug)
    missing = [item for item in items if item not in there]
    state = "exists" if slug else "new collection"
    say(f"{name}  ({state}), to add: {len(missing)} of {len(items)}")
    if dry_run:
        return
    if slug is None:
        slug = client.ask(
            f"Making the collection {name}",
            lambda: client.api.create_collection(name, namespace=namespace, private=bool(private), exists_ok=True),
        ).slug
    for item in missing:
        add = partial(client.api.add_collection_item, slug, item, "model", note=items[item], exists_ok=True)
        client.ask(f"Adding {item} to the collection {slug}", add)


def _items(client: HubClient, slug: str) -> set[str]:
    found = client.ask(f"Looking at the collection {slug}", lambda: client.api.get_collection(slug))
    return {item.item_id for item in found.items}


def _find(client: HubClient, title: str, namespace: str) -> str | None:
    owned: Any = client.ask(
        f"Looking for the collection {title}", lambda: list(client.api.list_collections(owner=namespace))
    )
    return next((found.slug for found in owned if found.title == title), None)
