"""Which executors there are, as PSI/J descriptors. PSI/J reads this while it is being imported itself."""

from __future__ import annotations

from packaging.version import Version

from psij.descriptor import Descriptor

_VERSION = Version("0.1.0")
_CLASSES = {
    "process": ("Processes of this machine", "ProcessExecutor"),
    "ssh": ("Processes of another machine", "SSHExecutor"),
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
