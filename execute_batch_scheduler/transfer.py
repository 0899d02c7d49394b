"""Files to and from another machine, beside a job: pieces of bounded size, so that a broken connection costs one piece.

Names come from over there, so each is looked at before anything is written here.
"""

from __future__ import annotations

import itertools
import os
import secrets
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from execute_batch_scheduler.adapters.process import said_directory
from execute_batch_scheduler.adapters.transport import Result, Transport, TransportError
from execute_batch_scheduler.errors import BadUsage, ExecuteError

from psij import JobSpec

Progress = Callable[[str, int, int], None]
"""Called with the name of a file, how many bytes of all files are there, and how many there are in all."""

_TIMEOUT = 120.0
_TOLD = 5  # of what went wrong
# Patterns are expanded, and nothing else in them is: with no IFS they are not split, and no shell reads them again.
_LIST = """\
cd -- {directory} >/dev/null || exit
set -- {patterns}
shopt -s nullglob globstar
IFS=''
for pattern; do
  found=($pattern) names=()
  [ ! -e "$pattern" ] || found=("$pattern") # a name with brackets
  for name in "${{found[@]}}"; do
    if [ -e "$name" ]; then
      case $name in /*) ;; *) name=./$name ;; esac # find takes some names for options or expressions
      names+=("$name")
    elif [ -L "$name" ]; then
      printf '%s: a link that leads nowhere\\n' "$name" >&2
    fi
  done
  if [ ${{#names[@]}} != 0 ]; then
    printf '%s\\0' "${{names[@]}}" | LC_ALL=C xargs -0 /bin/bash -p -c '
      exec find -L "$@" "(" -type f -o -type d ")" -printf "%y %s %m %i\\\\0%H\\\\0%P\\\\0"
    ' bash
  elif [ ! -L "${{found[0]-}}" ]; then
    printf '%s: nothing there has such a name\\n' "$pattern" >&2
  fi
done
true
"""
# As much as the mode here allows and the umask there; but who copies must be able to write into it.
_MAKE = """\
mask=$(umask)
make() {{ # MODE FOLDER...
  printf -v mode %o $((8#$1 & ~8#$mask | 8#700))
  new=()
  for folder in "${{@:2}}"; do [ -d "$folder" ] || new+=("$folder"); done
  [ ${{#new[@]}} = 0 ] || printf '%s\\0' "${{new[@]}}" | xargs -0 mkdir -m "$mode" -- || exit
}}
mkdir -p -- {directory} || exit
{makes}
"""
_FINISH = 'chmod "$(printf %o $((8#{mode:o} & ~8#$(umask))))" -- {part} && mv -fT -- {part} {target}'
_LOOP = "File system loop detected"  # of a link to a directory that is read anyway


@dataclass(frozen=True)
class _File:
    source: str
    target: str
    size: int
    mode: int  # its permissions
    number: int = 0  # of the inode: another one is another file
    folder: bool = False


class _Tree:
    """Directories, the empty ones too, and files, as they are to be over there. Links are followed, loops not."""

    def __init__(self) -> None:
        self.folders: list[tuple[str, int]] = []
        """Paths there and permissions."""
        self.files: list[_File] = []
        self.left_out: list[str] = []

    def add(self, source: str, target: str, above: frozenset[str] = frozenset()) -> None:
        """Add what is here, and all in it."""
        here = os.path.realpath(source)
        if not (os.path.isfile(source) or os.path.isdir(source)):
            self.left_out.append(source)
            return
        status = os.stat(source)
        mode = status.st_mode & 0o777
        if os.path.isfile(source):
            self.files.append(_File(source, target, status.st_size, mode))
        elif here not in above:
            self.folders.append((target, mode))
            for name in sorted(os.listdir(source)):
                self.add(f"{source}/{name}", f"{target}/{name}", above | {here})

    def alike(self) -> Iterator[tuple[int, list[str]]]:
        """Directories that can be made at once, with their mode; what lies in another comes after it."""

        def likeness(folder: tuple[str, int]) -> tuple[int, int]:
            return folder[0].count("/"), folder[1]

        for (_, mode), group in itertools.groupby(sorted(self.folders, key=likeness), likeness):
            yield mode, [path for path, _ in group]


def working_directory(spec: JobSpec, transport: Transport) -> str:
    """Where a script runs on another machine."""
    return os.path.normpath(os.path.join(transport.environment["HOME"], said_directory(spec)))


def put(transport: Transport, paths: Sequence[str], directory: str, progress: Progress = lambda *_: None) -> list[str]:
    """Copy files, and directories with all in them, into a directory of another machine.

    Parameters
    ----------
    paths
        Here; each keeps its last name over there.
    directory
        Over there, absolute; made if it is not there.

    Returns
    -------
    list of str
        What was left out: links that lead nowhere, pipes, devices, sockets.

    Raises
    ------
    BadUsage
        If one of them is not there, or cannot be read.
    ExecuteError
        If one could not be written; files that are there are whole.
    """
    tree = _Tree()
    for path in paths:
        if not path:
            raise BadUsage("--put: an empty name")
        top = os.path.abspath(os.path.expanduser(path))
        if not os.path.exists(top):
            raise BadUsage(f"--put: there is no {path} on this machine")
        try:
            tree.add(top, os.path.join(directory, os.path.basename(top)))
        except OSError as error:
            raise BadUsage(f"--put: {error.filename}: {error.strerror}") from None
    total, done = sum(file.size for file in tree.files), 0
    makes = "\n".join(f"make {mode:o} {shlex.join(folders)}" for mode, folders in tree.alike())
    _shell(transport, _MAKE.format(directory=shlex.quote(directory), makes=makes))
    for file in tree.files:
        try:
            _send(transport, file, done, total, progress)
        except OSError as error:
            raise ExecuteError(f"{file.source} could not be copied to {transport.host}: {error}") from error
        done += file.size
    return tree.left_out


def get(
    transport: Transport,
    patterns: Sequence[str],
    directory: str,
    to: str,
    progress: Progress = lambda *_: None,
) -> list[Path]:
    """Copy files, and directories with all in them, from a directory of another machine.

    Parameters
    ----------
    patterns
        Names or patterns over there, seen from `directory`; ``*``, ``?``, ``[...]`` and ``**`` are as in bash.
    to
        The directory here. What is below `directory` keeps its path, anything else its last name.

    Returns
    -------
    list of pathlib.Path
        What was written.

    Raises
    ------
    ExecuteError
        If a name would lead out of `to`: then nothing was written. If there is no such file, or one cannot be read or
        written: all others were.
    """
    if not all(patterns):
        raise BadUsage("--get: an empty name")
    listed = _shell(transport, _LIST.format(directory=shlex.quote(directory), patterns=shlex.join(patterns)))
    found = list({file.source: file for file in _remote_files(listed.stdout, directory, to)}.values())
    files = [file for file in found if not file.folder]
    targets: dict[str, str] = {}
    for file in files:
        if targets.setdefault(file.target, file.source) != file.source:
            raise ExecuteError(f"both {targets[file.target]} and {file.source} would become {file.target}")
    failed = [line for line in listed.stderr.splitlines() if _LOOP not in line]
    if failed and not found:
        raise ExecuteError(f"on {transport.host}: " + "\n".join(failed[:_TOLD]))
    total, done, written = sum(file.size for file in files), 0, []
    for file in found:
        try:
            if file.folder:
                _make(Path(file.target), file.mode)
                continue
            written.append(_fetch(transport, file, done, total, progress))
        except (OSError, ExecuteError) as error:
            failed.append(f"{file.source}: {error}")
        done += file.size
    if failed:
        what = f"copied {len(written):,} file{'s' * (len(written) != 1)} from {transport.host}, and not all:"
        more = [f"... and {len(failed) - _TOLD:,} more"] if len(failed) > _TOLD else []
        raise ExecuteError("\n".join([what, *failed[:_TOLD], *more]))
    return written


def _part(target: str) -> str:
    """Where a file is written until it is whole: beside its place, under a name that is nobody's."""
    return os.path.join(os.path.dirname(target), f".{secrets.token_hex(8)}.part")


def _send(transport: Transport, file: _File, done: int, total: int, progress: Progress) -> None:
    """Copy one file there, after `done` bytes of others; what is there in the end is whole."""
    part = _part(file.target)
    progress(file.target, done, total)
    try:
        with open(file.source, "rb") as source:
            at = 0
            while (piece := source.read(transport.piece)) or at == 0:
                transport.write(part, at, piece)
                at += len(piece)
                progress(file.target, done + at, total)
                if not piece:
                    break
        words = {"part": shlex.quote(part), "target": shlex.quote(file.target)}
        _shell(transport, _FINISH.format(mode=file.mode, **words))
    except (OSError, ExecuteError):
        with suppress(OSError, TransportError):
            transport.remove([part])
        raise


def _fetch(transport: Transport, file: _File, done: int, total: int, progress: Progress) -> Path:
    """Copy one file here, after `done` bytes of others; what is here in the end is whole. Its path."""
    target, part = Path(file.target), Path(_part(file.target))
    progress(file.source, done, total)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags, file.mode)) as sink:
            # As much as it had when it was listed, so that one that grows comes to an end.
            while (left := file.size - sink.tell()) > 0:
                piece = transport.read(file.source, sink.tell(), min(transport.piece, left))
                if not piece:
                    break
                sink.write(piece)
                progress(file.source, done + sink.tell(), total)
            if file.size > transport.piece:
                found = _shell(transport, f"exec stat -L -c '%i %s' -- {shlex.quote(file.source)}").stdout.split()
                if int(found[0]) != file.number or int(found[1]) < file.size:
                    raise OSError("it was replaced while it was copied; try again")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _make(folder: Path, mode: int) -> None:
    """Make a directory as private as that over there, if it is not here yet; who copies writes into it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode | 0o700)


def _remote_files(listed: str, directory: str, to: str) -> Iterator[_File]:
    fields = listed.split("\0")
    for facts, top, below in zip(fields[::3], fields[1::3], fields[2::3]):
        kind, size, mode, number = facts.split()
        top = top[2:] if top.startswith("./") else top
        name = os.path.basename(top.rstrip("/")) if top.startswith("/") else top
        source, name = (os.path.join(one, below) if below else one for one in (os.path.join(directory, top), name))
        yield _File(source, _inside(to, name), int(size), int(mode, 8) & 0o777, int(number), kind == "d")


def _inside(to: str, name: str) -> str:
    """The path of a name below a directory, which it must not leave, not even by a link that lies there."""
    target = os.path.join(to, name)
    base = os.path.realpath(to)
    if ".." in PurePosixPath(name).parts or os.path.commonpath([base, os.path.realpath(target)]) != base:
        raise ExecuteError(f"{name!r} leads out of {to}, and is not copied; nothing was written")
    return target


def _shell(transport: Transport, script: str) -> Result:
    result = transport.script(script, timeout=_TIMEOUT)
    if result.exit_code != 0:
        said = (result.stderr.strip() or f"exit code {result.exit_code}").splitlines()[-1]
        raise ExecuteError(f"on {transport.host}: {said}")
    return result
