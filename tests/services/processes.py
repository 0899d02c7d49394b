"""How processes of this machine are."""

from __future__ import annotations

from pathlib import Path
from typing import Union


def alive(pid: Union[int, str]) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter of one that ends while it is read
        return False
