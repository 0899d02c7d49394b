"""Under this name the original package was configured; its lines in an ipython_config.py go on working.

>>> import execute_cell
>>> execute_cell._DEFAULT_LINE_CMD_ARGS = "--host=amachine"
>>> execute_cell._DEFAULT_MGR = "ssh"

What stands here wins over settings files and IPython's configuration: see docs/settings.md.
"""

from __future__ import annotations

from typing import Optional, Union

_DEFAULT_MGR: Optional[str] = None
"""The default backend."""

_DEFAULT_LINE_CMD_ARGS: Union[str, dict[str, str], None] = None
"""Default flags: for the default backend, or by backend."""

_DEFAULT_SLURM_OUTERR_FILE: Optional[str] = None
"""Output files of Slurm jobs, without the endings .out and .err; sbatch's patterns, such as ``%j``, may be in it."""
