"""What long commands say while they work."""

from __future__ import annotations

import logging


def show_progress_in_words() -> None:
    """Print what this package logs about its progress, one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("trl_bonesoup")
    logger.handlers = [handler]  # of a second command in the same process, too, only one
    logger.setLevel(logging.INFO)
