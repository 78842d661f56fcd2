"""An evaluation under way: its answers and scores in a file beside the front, from which the same one goes on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.front.policies import Answer, Row
from trl_bonesoup.front.provenance import differences

Score = float | None

__all__ = ["AnswerStore", "open_store", "unfinished_path"]


def unfinished_path(front_path: str | Path) -> Path:
    """Return where the answers are while the evaluation for this front.json is under way."""
    path = Path(front_path)
    return path.with_name(f".{path.name}.unfinished")


class AnswerStore:
    """Answers and scores, each computed once and then remembered; without a file, for as long as nobody asks again.

    A line of the file is what one batch was answered, or what one objective gave it. It is written as a
    whole, so that a process that is killed leaves at most one incomplete line, at the end. A resumed
    evaluation then has the batches that it would have had, and the same numbers to the last bit.

    Attributes:
        kept: how many answers were there from the start.
    """

    def __init__(self, file: IO[bytes] | None = None) -> None:
        self._file = file
        self._answers: dict[Row, Answer] = {}
        self._scores: dict[tuple[str, Row], Score] = {}
        self.kept = 0

    def answers(self, batch: Sequence[Row], answer: Callable[[list[Row]], list[Answer]]) -> list[Answer]:
        """Return the answers of a batch; `answer` gives those that are not remembered."""
        missing = [row for row in batch if row not in self._answers]
        new = dict(zip(missing, answer(missing), strict=True)) if missing else {}
        if missing:
            self._write({"answers": [[*_place(row), a.text, a.token_ids] for row, a in new.items()]})
        return [new[row] if row in new else self._answers[row] for row in batch]

    def scores(self, reward: str, batch: Sequence[Row], score: Callable[[list[int]], Sequence[Score]]) -> list[Score]:
        """Return the scores of a batch by one reward; `score` gives those at the places in it that it is told.

        Args:
            reward: all that the scores depend on besides the answers.
        """
        missing = [place for place, row in enumerate(batch) if (reward, row) not in self._scores]
        new = dict(zip(missing, score(missing), strict=True)) if missing else {}
        if missing:
            self._write({"reward": reward, "scores": [[*_place(batch[place]), s] for place, s in new.items()]})
        return [new[p] if p in new else self._scores[reward, row] for p, row in enumerate(batch)]

    def read(self, line: Mapping[str, Any]) -> None:
        """Remember what a line of the file says."""
        for *place, text, token_ids in line.get("answers", ()):
            self._answers[Row(*place)] = Answer(text, token_ids)
        for *place, score in line.get("scores", ()):
            self._scores[line["reward"], Row(*place)] = score
        self.kept = len(self._answers)

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            _append(self._file, line)


@contextlib.contextmanager
def open_store(front_path: str | Path | None, request: Mapping[str, Any]) -> Iterator[AnswerStore]:
    """Start to remember an evaluation, or go on with the same one where it was interrupted.

    The file is removed when the block ends without an exception, and kept otherwise if it has answers.

    Args:
        front_path: the front.json that the evaluation is for; None remembers nothing.
        request: all that the answers depend on, in what JSON can hold.

    Raises:
        ConfigurationError: if another evaluation for the same front.json is unfinished, or under way.
    """
    if front_path is None:
        yield AnswerStore()
        return
    path = unfinished_path(front_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _lock(file, front_path)
        store = AnswerStore(file)
        try:
            _read_into(store, file, path, json.loads(json.dumps(request)))
            yield store
        except BaseException:
            if not _has_answers(file):
                path.unlink()
            raise
        path.unlink()


def _read_into(store: AnswerStore, file: IO[bytes], path: Path, request: Mapping[str, Any]) -> None:
    lines, size = _complete_lines(file)
    if lines and (changed := sorted(differences(request, lines[0].get("request")))):
        if len(lines) > 1:
            raise ConfigurationError(
                f"There is an unfinished evaluation of another request in {path}; what differs is "
                f"{', '.join(changed)}. Ask for the same to continue it, delete that file to start over, or write to "
                "another front."
            )
        lines, size = [], 0
    file.truncate(size)
    for line in lines[1:]:
        store.read(line)
    if not lines:
        _append(file, {"request": request})


def _complete_lines(file: IO[bytes]) -> tuple[list[dict[str, Any]], int]:
    """Return the lines up to one that a killed process did not finish, and how many bytes they are."""
    lines, size = [], 0
    file.seek(0)
    for text in file:
        try:
            lines.append(json.loads(text if text.endswith(b"\n") else b""))
        except ValueError:
            break
        size += len(text)
    return lines, size


def _has_answers(file: IO[bytes]) -> bool:
    file.seek(0)
    return sum(1 for _ in zip(range(2), file, strict=False)) == 2


def _append(file: IO[bytes], line: Mapping[str, Any]) -> None:
    file.write((json.dumps(line, allow_nan=False) + "\n").encode("ascii"))
    file.flush()


def _place(row: Row) -> tuple[int, int, int]:
    return row.model, row.prompt, row.sample


def _lock(file: IO[bytes], front_path: str | Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two evaluations for one front are then not noticed
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigurationError(
            f"Another process is evaluating the front {front_path}; wait for it to finish, or write to another file."
        ) from error
