"""Which executors there are, as PSI/J descriptors. Importing this file makes them known to PSI/J."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

_main = threading.current_thread() is threading.main_thread()
_handler = signal.getsignal(signal.SIGCHLD) if _main else None
from psij import JobExecutor  # noqa: E402

if _handler is not None:  # PSI/J takes SIGCHLD on import, without chaining. It is the user's.
    signal.signal(signal.SIGCHLD, _handler)

from packaging.version import Version  # noqa: E402
from psij.descriptor import Descriptor  # noqa: E402

_VERSION = Version("0.1.0")
_CLASSES = {
    "process": ("Processes of this machine", "ProcessExecutor"),
    "tracked-slurm": ("Slurm, tracked", "TrackedSlurmExecutor"),
}


def descriptors(package: str) -> list[Descriptor]:
    """Descriptors whose classes PSI/J loads from ``<package>/executors.py`` below the root it is given.

    PSI/J executes that file outside ``sys.modules``; it only re-exports, so the classes are the ordinary ones.
    """
    return [
        Descriptor(name=name, nice_name=title, version=_VERSION, cls=f"{package}.executors.{cls}")
        for name, (title, cls) in _CLASSES.items()
    ]


def register() -> None:
    """Make our executors known to PSI/J where its own search has not found them, as in an editable install."""
    folder = Path(__file__).resolve().parent
    for descriptor in descriptors(folder.name):
        if descriptor.name not in JobExecutor.get_executor_names():
            JobExecutor.register_executor(descriptor, str(folder.parent))


register()
