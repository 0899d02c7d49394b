"""What a user or a site may set, and whose word counts. docs/settings.md tells it in full."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, Union

from execute_batch_scheduler import settings_file
from execute_batch_scheduler.errors import BadUsage
from execute_batch_scheduler.flags import Flag, parse

_BUILT_IN = {
    "shell": "/bin/bash",
    "job_directory": "~/.execute_batch_scheduler",
    "on_interrupt": "cancel",
    "ssh_client": "paramiko",
}
_INSTALLED = "execute_batch_scheduler_defaults"  # a module that an installation with options writes beside the package
_SITE_FILE = "/etc/execute_batch_scheduler.toml"
_FILE = "execute_batch_scheduler.toml"
# The original package's names, and ours.
_ORIGINAL = {"_DEFAULT_MGR": "wlm", "_DEFAULT_LINE_CMD_ARGS": "flags"}


@dataclass(frozen=True)
class Place:
    """Where settings come from, and what it says.

    Attributes
    ----------
    name
        As a message says it; the path of a file.
    values
        What is set there, by key.
    file
        Whether it is a file, which need not be there.
    """

    name: str
    values: Mapping[str, Any]
    file: bool = False


@dataclass(frozen=True)
class _Flags:
    """Default flags: where they come from, and the default backend as it was known there; None if it was not."""

    place: str
    value: Union[str, Mapping[str, str]]
    wlm: Optional[str]


@dataclass(frozen=True)
class Choice:
    """What counts for one job, of all that is set anywhere.

    Attributes
    ----------
    wlm
        The default backend; None if it is to be found.
    shell
        What runs a script that has no ``#!`` line.
    root
        The directory under which job directories are made, absolute.
    on_interrupt
        ``"cancel"`` or ``"detach"``.
    host, identity, prologue, environment, executor_config
        The target's.
    root_there
        The target's root of job directories on its host, as it is written; None if it names none.
    ssh_client
        ``"paramiko"`` or ``"program"``.
    flags
        All default flags, the strongest first; `default_flags` tells which count.
    """

    wlm: Optional[str]
    shell: str
    root: str
    on_interrupt: str
    host: Optional[str] = None
    identity: Optional[str] = None
    root_there: Optional[str] = None
    ssh_client: str = "paramiko"
    prologue: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    executor_config: Any = None
    flags: tuple[_Flags, ...] = ()
    outputs: Optional[str] = None

    def default_flags(self, names: Collection[str], default: Callable[[], str]) -> list[Flag]:
        """The default flags for a backend: the strongest that speak of it.

        Parameters
        ----------
        names
            How the backend may be called.
        default
            Tells the default backend. Flags that are given without a backend's name are meant for it.
        """
        for flags in self.flags:
            if isinstance(flags.value, str):
                text = flags.value if (flags.wlm or default()) in names else None
            else:
                text = next((flags.value[name] for name in names if name in flags.value), None)
            if text is not None:
                return settings_file.parse_flags(text)
        return []

    def default_outputs(self, names: Collection[str]) -> list[Flag]:
        """The original's names for output files, as flags; it had them for Slurm alone."""
        if self.outputs is None or "slurm" not in names:
            return []
        return parse([f"--output={self.outputs}.out", f"--error={self.outputs}.err"])


@dataclass
class Settings:
    """Attributes of this object may be set at any time; they count from the next job on. None says nothing.

    Attributes
    ----------
    wlm
        The backend where none is named.
    shell
        What runs a script that has no ``#!`` line.
    job_directory
        The root under which job directories are made; compute nodes must see it.
    on_interrupt
        What Ctrl-C does to the job of a cell: ``"cancel"`` or ``"detach"``.
    ssh_client
        What connects to other machines: ``"paramiko"``, or ``"program"`` for the ssh program.
    flags
        Default flags: a text for the default backend, or a dict of texts by backend.
    executor_config
        A PSI/J configuration for the executor, or a dict of its attributes.
    """

    wlm: Optional[str] = None
    shell: Optional[str] = None
    job_directory: Optional[str] = None
    on_interrupt: Optional[str] = None
    ssh_client: Optional[str] = None
    flags: Union[str, Mapping[str, str], None] = None
    executor_config: Any = None

    @property
    def root(self) -> str:
        """The root of job directories that counts, absolute."""
        return self.choose().root

    def choose(self, target: Optional[str] = None) -> Choice:
        """What counts now, of all places.

        Parameters
        ----------
        target
            The name of a target in the settings files.

        Raises
        ------
        BadUsage
            With the file and line that is wrong; or for a target that is in no file.
        """
        places = self.places()
        named = _target(places, target) if target is not None else None
        if named is not None:
            places.append(named)
        said: dict[str, Any] = {}
        flags: list[_Flags] = []
        for place in places:  # the weakest first
            said.update({key: value for key, value in place.values.items() if key not in ("flags", "targets")})
            if "flags" in place.values:
                flags.insert(0, _Flags(place.name, place.values["flags"], said.get("wlm")))
        return Choice(
            wlm=said.get("wlm"),
            shell=said["shell"],
            root=os.path.abspath(os.path.expanduser(said["job_directory"])),
            on_interrupt=said["on_interrupt"],
            host=said.get("host"),
            identity=said.get("identity"),
            root_there=named.values.get("job_directory") if named is not None else None,
            ssh_client=said["ssh_client"],
            prologue=said.get("prologue", ""),
            environment={name: str(value) for name, value in said.get("environment", {}).items()},
            executor_config=said.get("executor_config"),
            flags=tuple(flags),
            outputs=getattr(sys.modules.get("execute_cell"), "_DEFAULT_SLURM_OUTERR_FILE", None),
        )

    def places(self) -> list[Place]:
        """All places that may say something about every job, the weakest first.

        Raises
        ------
        BadUsage
            With the file and line that is wrong.
        """
        here = {name: value for name, value in vars(self).items() if value is not None}
        if "job_directory" in here:
            here["job_directory"] = os.fspath(here["job_directory"])
        directory = os.environ.get("EXECUTE_JOB_DIRECTORY")
        return [
            Place("built-in", _BUILT_IN),
            _checked("the defaults of this installation", _installed()),
            _file("EXECUTE_SITE_CONFIG", _SITE_FILE),
            _file("EXECUTE_CONFIG", os.path.join(os.environ.get("XDG_CONFIG_HOME") or "~/.config", _FILE)),
            Place("$EXECUTE_JOB_DIRECTORY", {"job_directory": directory} if directory else {}),
            _checked("settings, or c.ExecuteMagics", here),
            _checked("execute_cell", _original()),
        ]


def _checked(name: str, values: Mapping[str, Any]) -> Place:
    for at, complaint in settings_file.complaints({k: v for k, v in values.items() if k != "executor_config"}):
        raise BadUsage(f"{name}: {'.'.join(at)}: {complaint}")
    return Place(name, values)


def _installed() -> Mapping[str, Any]:
    if _INSTALLED in sys.modules or _has_installed():
        return dict(importlib.import_module(_INSTALLED).DEFAULTS)
    return {}


@functools.cache
def _has_installed() -> bool:
    return importlib.util.find_spec(_INSTALLED) is not None


def _original() -> dict[str, Any]:
    """What the original's configuration lines said; nobody who does not use them has imported that module."""
    module = sys.modules.get("execute_cell")
    found = {ours: getattr(module, name, None) for name, ours in _ORIGINAL.items()}
    return {name: value for name, value in found.items() if value is not None}


def _file(variable: str, usual: str) -> Place:
    named = os.environ.get(variable)
    path = os.path.expanduser(named or usual)
    return Place(path, settings_file.read(path, must_exist=bool(named)), file=True)


def _target(places: list[Place], name: str) -> Place:
    """A target; where several files have it, the stronger one's keys count."""
    tables = {one: table for place in places for one, table in place.values.get("targets", {}).items()}
    if name not in tables:
        there = f"there are {', '.join(sorted(tables))}" if tables else "no settings file has any"
        raise BadUsage(f"there is no target {name!r}; {there}")
    values: dict[str, Any] = {}
    for place in places:
        values.update(place.values.get("targets", {}).get(name, {}))
    return Place(f"target {name}", values)


settings = Settings()


class _Module(types.ModuleType):
    """The module bears the name under which the package offers the object; both are to mean the same."""

    def __getattr__(self, name: str) -> Any:
        return getattr(settings, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(settings):
            setattr(settings, name, value)
        else:
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Module
