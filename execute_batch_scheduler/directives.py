"""The head of a script: which lines are options for the scheduler, and which words they hold. Pure.

Measured on sbatch, and read in its source (get_argument in src/sbatch/opt.c): what it reads, passes over and refuses.
"""

from __future__ import annotations

from collections.abc import Iterator

from execute_batch_scheduler.errors import BadUsage

_MARKS = ("#SBATCH", "#SLURM")  # of the second sbatch says that it should be the first
_FOREIGN = ("#PBS", "#BSUB")
_SPACES = " \t\n\v\f\r"


def read(script: str) -> list[str]:
    """The words of a script's ``#SBATCH`` lines, in order.

    Comments and blank lines before, between and after them do not matter; from the first other line on nothing counts.

    Raises
    ------
    BadUsage
        For a line with a quote that is not closed, and for the parts of a heterogeneous job.
    """
    found = []
    for number, line in _head(script):
        mark = next((mark for mark in _MARKS if line.startswith(mark)), None)
        if mark is None:
            continue
        rest = line[len(mark) :]
        first = rest.split()[:1]
        if first and first[0].lower() in ("hetjob", "packjob"):
            raise BadUsage(f"line {number} of the script: heterogeneous jobs ({first[0]}) are not supported")
        found += words(rest, f"line {number} of the script, {line!r}")
    return found


def foreign(script: str) -> list[str]:
    """The lines of other schedulers' directives, as they are: sbatch understands those of PBS and of LSF."""
    return [line for _, line in _head(script) if line.startswith(_FOREIGN)]


def first_command(script: str) -> str:
    """The first line that is neither blank nor a comment; '' if there is none."""
    rest = script.split("\n")[sum(1 for _ in _head(script)) :]
    return rest[0].strip() if rest else ""


def line_of(word: str) -> str:
    """The ``#SBATCH`` line that holds one word, whatever is in it."""
    quoted = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'{_MARKS[0]} "{quoted}"'


def words(text: str, where: str) -> list[str]:
    """Split as sbatch does: spaces part words, quotes of both kinds join them, ``#`` outside quotes ends the line.

    A backslash goes, and what stands behind it counts as it is. A word of nothing but quotes ends the line. Before
    release 23 a space behind a backslash parted words all the same, which sbatch then refused.

    Raises
    ------
    BadUsage
        For a quote that is not closed, and for a colon where a word should begin.
    """
    found: list[str] = []
    word, quote, begun, escaped = "", "", False, False
    for char in f"{text}\n":
        if escaped and char != "\n" and (quote or char not in _SPACES[1:]):
            word, escaped = word + char, False
        elif char == "\\":
            begun = escaped = True
        elif quote and char != "\n":
            if char == quote:
                quote = ""
            else:
                word += char
        elif char in "'\"":
            quote, begun = char, True
        elif char in _SPACES or char == "#":
            if word:
                found.append(word)
            if char == "#" or (begun and not word):
                break
            word, begun, escaped = "", False, False
        elif char == ":" and not begun:
            raise BadUsage(f"a colon where an option should begin in {where}")
        else:
            word, begun = word + char, True
    if quote:
        raise BadUsage(f"a quote is not closed in {where}")
    return found


def _head(script: str) -> Iterator[tuple[int, str]]:
    """The lines up to the first that is neither blank nor a comment, with their numbers."""
    for number, line in enumerate(script.split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            return
        yield number, line
