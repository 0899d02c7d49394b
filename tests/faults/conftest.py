"""What stands in front of Slurm's commands."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a script in front of a command, which it may call as $REAL; '' takes it away again."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def put(command: str, script: str) -> None:
        tool = folder / command
        tool.unlink(missing_ok=True)
        if script:
            tool.with_suffix(".new").write_text(f"#!/bin/bash\nREAL={shutil.which(command)}\n{script}\n")
            tool.with_suffix(".new").chmod(0o755)
            tool.with_suffix(".new").rename(tool)

    return put
