"""What a user or a site may set, and where it comes from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Optional


@dataclass
class Settings:
    """Attributes of this object may be set at any time; they count from the next job on.

    Attributes
    ----------
    wlm
        The backend where none is named; None finds one.
    shell
        What runs a script that has no ``#!`` line.
    job_directory
        The root under which job directories are made; compute nodes must see it. None is ``$EXECUTE_JOB_DIRECTORY``,
        or ``~/.execute_batch_scheduler``.
    """

    wlm: Optional[str] = None
    shell: str = "/bin/bash"
    job_directory: Optional[str] = None

    @property
    def root(self) -> str:
        """The root of job directories, absolute."""
        named = self.job_directory or os.environ.get("EXECUTE_JOB_DIRECTORY") or "~/.execute_batch_scheduler"
        return os.path.abspath(Path(named).expanduser())


settings = Settings()
