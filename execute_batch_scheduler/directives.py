"""The head of a script: which lines are options for the scheduler, and which words they hold. Pure.

Measured on sbatch: what it reads, what it passes over and what it refuses.
"""

from __future__ import annotations

from execute_batch_scheduler.errors import BadUsage

_MARK = "#SBATCH"
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
    for number, line in enumerate(script.split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            break
        if line.startswith(_MARK):
            line_words = words(line[len(_MARK) :], f"line {number} of the script, {line!r}")
            if line_words[:1] in (["hetjob"], ["packjob"]):
                raise BadUsage(f"line {number} of the script: heterogeneous jobs ({line_words[0]}) are not supported")
            found += line_words
    return found


def words(text: str, where: str) -> list[str]:
    """Split as sbatch does: spaces part words, quotes of both kinds join them, ``#`` outside quotes ends the line.

    A backslash goes, and what stands behind it counts as it is, but a space outside quotes parts words all the same.
    """
    found: list[str] = []
    word, quote, inside, escaped = "", "", False, False
    for char in text:
        if escaped and (quote or char not in _SPACES):
            word += char
            inside, escaped = True, False
        elif char == "\\":
            escaped = True
        elif quote:
            if char == quote:
                quote = ""
            else:
                word += char
        elif char in "'\"":
            quote, inside = char, True
        elif char == "#":
            break
        elif char in _SPACES:
            if inside:
                found.append(word)
            word, inside, escaped = "", False, False
        else:
            word += char
            inside = True
    if quote:
        raise BadUsage(f"a quote is not closed in {where}")
    if inside:
        found.append(word)
    return found
