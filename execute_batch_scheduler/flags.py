"""sbatch's options as data, and how words become flags. Pure.

From Slurm's manual, https://slurm.schedmd.com/sbatch.html, up to release 25.05, and the option table of 22.05.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Optional

from execute_batch_scheduler.errors import BadUsage

REQUIRED, OPTIONAL, NONE = "=", "?", "-"
_DASHES = tuple("\u2010\u2011\u2012\u2013\u2014\u2015\u2212")  # what word processors make of hyphens


@dataclass(frozen=True)
class Option:
    """One option: its long name, whether it takes a value, its letter, the variables that set it, its group.

    Where one of a group is said, what weaker sources say of the others does not count.
    """

    name: str
    value: str
    letter: str = ""
    variables: tuple[str, ...] = ()
    group: str = ""


@dataclass(frozen=True)
class Flag:
    """An option as somebody said it.

    `option` is None where it is not in the table; `word` is how it was typed; `weak` is what a directive or a default
    said.
    """

    name: str
    value: Optional[str]
    word: str
    option: Optional[Option] = None
    weak: bool = False


# name, value (= required, ? optional, - none), letter, variables without SBATCH_; "." for none. Groups stand below.
_TABLE = """
account = A ACCOUNT
acctg-freq = . ACCTG_FREQ
array = a ARRAY_INX
batch = . BATCH
bb = . BURST_BUFFER
bbf = . .
begin = b .
chdir = D .
cluster-constraint = . .
clusters = M CLUSTERS,SLURM_CLUSTERS
comment = . .
constraint = C CONSTRAINT
consolidate-segments - . .
container = . CONTAINER
container-id = . CONTAINER_ID
context = . .
contiguous - . .
core-spec = S CORE_SPEC
cores-per-socket = . .
cpu-freq = . CPU_FREQ_REQ
cpus-per-gpu = . CPUS_PER_GPU
cpus-per-task = c .
deadline = . .
delay-boot = . DELAY_BOOT
dependency = d .
distribution = m DISTRIBUTION
error = e ERROR
exclude = x .
exclusive ? . EXCLUSIVE
export = . EXPORT
export-file = . .
extra = . .
extra-node-info = B .
get-user-env ? . GET_USER_ENV
gid = . .
gpu-bind = . GPU_BIND
gpu-freq = . GPU_FREQ
gpus = G GPUS
gpus-per-node = . GPUS_PER_NODE
gpus-per-socket = . .
gpus-per-task = . GPUS_PER_TASK
gres = . GRES
gres-flags = . GRES_FLAGS
help - h .
hint = . HINT,SLURM_HINT
hold - H .
ignore-pbs - . IGNORE_PBS
input = i INPUT
job-name = J JOB_NAME
kill-on-invalid-dep = . .
licenses = L .
mail-type = . .
mail-user = . .
mcs-label = . .
mem = . MEM_PER_NODE
mem-bind = . MEM_BIND
mem-per-cpu = . MEM_PER_CPU
mem-per-gpu = . MEM_PER_GPU
mincpus = . .
network = . NETWORK
nice ? . .
no-kill ? k NO_KILL
no-requeue - . NO_REQUEUE
nodefile = F .
nodelist = w .
nodes = N .
ntasks = n .
ntasks-per-core = . .
ntasks-per-gpu = . .
ntasks-per-node = . .
ntasks-per-socket = . .
oom-kill-step ? . OOM_KILL_STEP
open-mode = . OPEN_MODE
output = o OUTPUT
overcommit - O OVERCOMMIT
oversubscribe - s .
parsable - . .
partition = p PARTITION
power = . POWER
prefer = . .
priority = . .
profile = . PROFILE
propagate ? . .
qos = q QOS
quiet - Q .
reboot - . .
requeue - . REQUEUE
reservation = . RESERVATION
resv-ports ? . .
segment = . SEGMENT_SIZE
signal = . SIGNAL
sockets-per-node = . .
spread-job - . SPREAD_JOB
spread-segments - . .
stepmgr - . STEPMGR
switches = . REQ_SWITCH
test-only - . .
thread-spec = . THREAD_SPEC
threads-per-core = . THREADS_PER_CORE
time = t TIMELIMIT
time-min = . .
tmp = . .
tres-bind = . TRES_BIND
tres-per-task = . TRES_PER_TASK
uid = . .
usage - . .
use-min-nodes - . USE_MIN_NODES
verbose - v DEBUG
version - V .
wait - W WAIT
wait-all-nodes = . WAIT_ALL_NODES
wckey = . WCKEY
wrap = . .
"""
_GROUPS = (
    {"mem", "mem-per-cpu", "mem-per-gpu"},
    {"requeue", "no-requeue"},
    {"exclusive", "oversubscribe"},
    {"core-spec", "thread-spec"},
)
# sbatch refuses these together, and of these what a script says counts before what a variable says of another.
_MEMORY = "mem|mem-per-cpu|mem-per-gpu"
_ADDED_UP = "mail-type"  # whoever says it
# Other spellings that sbatch takes, and those that it took once.
_SYNONYMS = {"cluster": "clusters", "tasks-per-node": "ntasks-per-node", "ntasks-per-tres": "ntasks-per-gpu"}
_FORMER = {"workdir": "chdir", "share": "oversubscribe"}


def _options() -> dict[str, Option]:
    options = {}
    for line in _TABLE.split("\n")[1:-1]:
        name, value, letter, names = line.split()
        group = next(("|".join(sorted(names)) for names in _GROUPS if name in names), name)
        variables = tuple(f"SBATCH_{key}".replace("SBATCH_SLURM_", "SLURM_") for key in names.split(",") if key != ".")
        options[name] = Option(name, value, letter.replace(".", ""), variables, group)
    return options


SBATCH: Mapping[str, Option] = _options()


_VARIABLES = {name for option in SBATCH.values() for name in option.variables}


def parse(words: Sequence[str], options: Mapping[str, Option] = SBATCH) -> list[Flag]:
    """Flags in the order in which they were said.

    Long names may be shortened as far as they stay unique, as sbatch takes them. An option that is not in the table is
    passed on with the word behind it, so that sbatch can say what it thinks of it.

    Raises
    ------
    BadUsage
        For a word that belongs to no option, and for a value that is missing.
    """
    letters = {option.letter: option for option in options.values() if option.letter}
    if bad := next((word for word in words if "\0" in word), None):
        raise BadUsage(f"{bad!r} holds a NUL byte, which no command can be given")
    flags: list[Flag] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--") and len(word) > 2:
            flags.append(_long(word, rest, options))
        elif word.startswith("-") and len(word) > 1 and not word.startswith("--"):
            flags += _short(word, rest, letters)
        else:
            hint = "Values with spaces need quotes"
            if word == ":":
                hint = "The parts of a heterogeneous job are not supported"
            elif word.startswith("#"):
                hint = "Comments belong into the script"
            elif word.startswith(_DASHES):
                hint = f"It begins with {word[0]!r}, which is no hyphen: write -"
            elif word.startswith("=") or (flags and (flags[-1].value or "").startswith("=")):
                hint = "There are no spaces around ="
            raise BadUsage(f"{word!r} belongs to no option. {hint}")
    return flags


def _long(word: str, rest: list[str], options: Mapping[str, Option]) -> Flag:
    name, equals, value = word[2:].partition("=")
    option = find(name, options)
    if option is None:
        if not equals and rest and not rest[0].startswith("-"):
            # joined, so that the word cannot be taken for the script's name
            equals, value = "=", rest.pop(0)
        return Flag(name, value if equals else None, f"--{name}{equals}{value}")
    if option.value == REQUIRED and not equals:
        if not rest:
            raise BadUsage(f"--{option.name} needs a value")
        equals, value = "=", rest.pop(0)
    if option.value == NONE and equals:
        raise BadUsage(f"--{option.name} takes no value, and {value!r} was given")
    return Flag(option.name, value if equals else None, f"--{option.name}{equals}{value}", option)


def _short(word: str, rest: list[str], letters: Mapping[str, Option]) -> list[Flag]:
    """One word of letters: ``-n8``, ``-n 8``, ``-Hn8``."""
    flags = []
    body = word[1:]
    while body:
        letter, body = body[0], body[1:]
        option = letters.get(letter)
        if option is None:
            if not body and rest and not rest[0].startswith("-"):
                body = rest.pop(0)
            flags.append(Flag(letter, body or None, f"-{letter}{body}"))
            break
        if option.value == NONE:
            flags.append(Flag(option.name, None, f"--{option.name}", option))
            continue
        if option.value == REQUIRED and not body:
            if not rest:
                raise BadUsage(f"-{letter} (--{option.name}) needs a value")
            body = rest.pop(0)
        value = body if body or option.value == REQUIRED else None
        flags.append(Flag(option.name, value, f"--{option.name}" + ("" if value is None else f"={value}"), option))
        break
    return flags


def find(name: str, options: Mapping[str, Option] = SBATCH) -> Optional[Option]:
    """The option of a name, of another spelling of it, or the only one of sbatch's whose name begins so."""
    if name in options:
        return options[name]
    if name in _SYNONYMS:
        return SBATCH[_SYNONYMS[name]]
    names = {**{key: key for key in SBATCH}, **_SYNONYMS}
    begun = {option for key, option in names.items() if key.startswith(name)} if name else set()
    return SBATCH[begun.pop()] if len(begun) == 1 else None


def in_environment(environment: Mapping[str, str]) -> list[Option]:
    """The options that sbatch takes from the environment."""
    said = _VARIABLES.intersection(environment)
    return [option for option in SBATCH.values() if said.intersection(option.variables)] if said else []


def suggest(name: str, options: Iterable[str] = SBATCH) -> str:
    """A hint for a name that is not known; empty if nothing is near."""
    near = [_FORMER[name]] if name in _FORMER else difflib.get_close_matches(name, list(options), n=2)
    return f"did you mean {' or '.join('--' + key for key in near)}?" if near else ""


def last_said(flags: Sequence[Flag]) -> list[Flag]:
    """Of each option, and of the options that set the same thing, the last one said; sbatch's own rule."""
    kept: dict[str, Flag] = {}
    for flag in flags:
        key = flag.option.group if flag.option else flag.word
        if key == _MEMORY:
            key = flag.name
        before = kept.pop(key, None)
        kept[key] = _added(before, flag) if before and key == _ADDED_UP else flag
    return list(kept.values())


def _added(first: Flag, second: Flag) -> Flag:
    values = [value for value in (first.value, second.value) if value and value.upper() != "NONE"] or ["NONE"]
    value = ",".join(values)
    return replace(second, value=value, word=f"--{second.name}={value}")


def merge(
    line: Sequence[Flag],
    directives: Sequence[Flag],
    environment: Mapping[str, str],
    defaults: Sequence[Flag] = (),
) -> list[Flag]:
    """Sbatch's precedence: the line, then ``SBATCH_*`` in the environment, which sbatch reads itself, then directives.

    A directive goes where the line or the environment speaks of the same thing; a default, where any of them does.
    """
    variables = in_environment(environment)
    spoken = {flag.option.group for flag in line if flag.option}
    added = [flag for flag in directives if flag.name == _ADDED_UP and flag.name in spoken]
    spoken |= {option.name if option.group == _MEMORY else option.group for option in variables}
    weak = [flag for flag in last_said(directives) if not (flag.option and spoken & {flag.option.group, flag.name})]
    spoken |= {flag.option.group for flag in directives if flag.option} | {option.group for option in variables}
    spoken |= {flag.name for flag in (*line, *directives) if not flag.option}
    if "output" in spoken:
        spoken.add("error")  # --output alone takes both streams, and a default is not to part them
    weakest = [flag for flag in last_said(defaults) if (flag.option.group if flag.option else flag.name) not in spoken]
    return [*(replace(flag, weak=True) for flag in (*weakest, *weak)), *last_said([*added, *line])]
