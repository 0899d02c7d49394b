"""Builds the package, with defaults that whoever installs it may choose.

::

    pip install . -C workloadmanager=slurm -C workloadmanagercmdargs='--qos=x'
    python setup.py install --workloadmanager=slurm --workloadmanagercmdargs='{"slurm": "--qos=x"}'

It is setuptools' own build backend (PEP 517) with two settings more, and the commands of setup.py that heed them. The
defaults become a module beside the installed package: of a package that is installed from a checkout for editing, there
is nothing else in the place of installation, and the checkout stays as it is.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Optional, Union

from setuptools import build_meta
from setuptools.command.build_py import build_py
from setuptools.command.install import install

MODULE = "execute_batch_scheduler_defaults"
_KEYS = {"workloadmanager": "wlm", "workloadmanagercmdargs": "flags"}
_chosen: dict[str, Any] = {}

Settings = Optional[dict[str, Any]]  # of PEP 517

get_requires_for_build_sdist = build_meta.get_requires_for_build_sdist
get_requires_for_build_wheel = build_meta.get_requires_for_build_wheel
get_requires_for_build_editable = build_meta.get_requires_for_build_editable
prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable
build_sdist = build_meta.build_sdist


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: Optional[str] = None
) -> str:
    """See PEP 517."""
    choose(config_settings or {})
    return str(build_meta.build_wheel(wheel_directory, config_settings, metadata_directory))


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: Optional[str] = None
) -> str:
    """See PEP 660."""
    choose(config_settings or {})
    return str(build_meta.build_editable(wheel_directory, config_settings, metadata_directory))


def choose(options: Mapping[str, Any]) -> None:
    """Note the defaults for what is built next."""
    unknown = [name for name in options if name.startswith("workload") and name not in _KEYS]
    if unknown:
        raise SystemExit(f"error: unknown setting {unknown[0]}; there are {', '.join(_KEYS)}")
    _chosen.clear()
    _chosen.update(defaults(options.get("workloadmanager"), options.get("workloadmanagercmdargs")))


def defaults(name: object, flags: object) -> dict[str, Any]:
    """The settings that the options stand for, checked; SystemExit says what is wrong with them."""
    found: dict[str, Any] = {}
    if name is not None:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.+:-]+", name):
            raise SystemExit(f"error: workloadmanager must be the name of a backend, such as slurm, and not {name!r}")
        found["wlm"] = name
    if flags is not None:
        found["flags"] = _flags(flags)
    return found


def _flags(text: object) -> Union[str, dict[str, str]]:
    """A text of flags, or JSON of texts by backend. It is never evaluated."""
    what = "workloadmanagercmdargs"
    if not isinstance(text, str):
        raise SystemExit(f"error: {what} must be given once, and it is {text!r}")
    if text.lstrip()[:1] not in ("{", "["):
        return _flag_text(text)
    form = """flags, or JSON of flags by backend such as {"slurm": "--qos=x", "ssh": "--host=amachine"}"""
    try:
        table = json.loads(text)
    except ValueError as error:
        raise SystemExit(f"error: {what} must be {form}, and {text!r} is no JSON: {error}") from None
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise SystemExit(f"error: {what} must be {form}, and not {text!r}")
    return {backend: _flag_text(value) for backend, value in table.items()}


def _flag_text(text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise SystemExit(f"error: workloadmanagercmdargs: {error} in {text!r}") from None
    if words and not words[0].startswith("-"):
        raise SystemExit(f"error: workloadmanagercmdargs: flags begin with a dash, and {text!r} does not")
    return text


class BuildPy(build_py):
    """Writes the defaults into what is built."""

    editable_mode: bool

    def run(self) -> None:
        """See setuptools."""
        super().run()
        path = self._path()
        path.unlink(missing_ok=True)  # a build directory may be left from a build with other options
        if _chosen:
            path.parent.mkdir(parents=True, exist_ok=True)
            values = "".join(f"    {key!r}: {value!r},\n" for key, value in _chosen.items())
            path.write_text(f'"""Chosen at the installation."""\n\nDEFAULTS = {{\n{values}}}\n')

    def get_outputs(self, include_bytecode: int = 1) -> list[str]:
        """See setuptools."""
        outputs = super().get_outputs(include_bytecode)
        return [*outputs, str(self._path())] if _chosen and not self.editable_mode else list(outputs)

    def _path(self) -> Path:
        # In an editable build, nothing that lies in build_lib is kept; install_lib is what the wheel is made of.
        root = self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib
        return Path(root) / f"{MODULE}.py"


class Install(install):
    """Takes the defaults as options.

    Files are laid out plainly with every setuptools, as the newest does by itself: PSI/J looks for our executors in
    the directories of sys.path, and eggs would bring their own versions of what this package needs.
    """

    user_options = [
        *install.user_options,
        ("workloadmanager=", None, "the default backend"),
        ("workloadmanagercmdargs=", None, "default flags, as a text or as JSON of texts by backend"),
    ]

    def initialize_options(self) -> None:
        """See setuptools."""
        super().initialize_options()
        self.workloadmanager = None
        self.workloadmanagercmdargs = None

    def run(self) -> None:
        """See setuptools."""
        if self.workloadmanager is not None or self.workloadmanagercmdargs is not None:
            _chosen.update(defaults(self.workloadmanager, self.workloadmanagercmdargs))
        super(install, self).run()  # of distutils
        missing = [requirement for requirement in self.distribution.install_requires if _is_missing(requirement)]
        if missing:
            print(f"It needs packages that are not installed: python -m pip install {shlex.join(missing)}")


def _is_missing(requirement: str) -> bool:
    name, _, marker = requirement.partition(";")
    try:
        version(re.match(r"[\w.-]+", name)[0])  # type: ignore[index]
    except PackageNotFoundError:
        return not marker
    return False
