#!/usr/bin/env -S python3 -IS
"""What a job's script hands on to a program: all that a program can see of how it was started.

A script runs it with a word for the report's name. The report lies beside this file, as JSON. Nothing is read through
Python's own environment or signal handlers, which it changes when it starts.
"""

import json
import os
import resource
import sys


def status(name):
    with open("/proc/self/status") as file:
        return next(line.split()[1] for line in file if line.startswith(name))


def descriptors():
    found = {}
    for number in sorted(os.listdir("/proc/self/fd"), key=int):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the one by which the directory was read
            continue
    return {number: "pipe" if path.startswith("pipe:") else path for number, path in found.items()}


def text(data):
    return data.decode("utf-8", "surrogateescape")


with open("/proc/self/environ", "rb") as file:
    environment = dict(entry.partition("=")[::2] for entry in text(file.read()).split("\0") if entry)
umask = os.umask(0)
os.umask(umask)
with open(f"/proc/{os.getppid()}/cmdline", "rb") as file:
    shell = text(file.read()).split("\0")[:-1]
opened = descriptors()
report = {
    "environment": environment,
    "directory": os.getcwd(),
    "arguments": sys.argv[1:],
    "shell": shell,
    "umask": oct(umask),
    "limits": {
        name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT")
    },
    "nice": os.nice(0),
    "ignored signals": status("SigIgn"),
    "blocked signals": status("SigBlk"),
    "open files": opened,
    "stdin": sys.stdin.buffer.read(1000).decode("latin-1"),
}
folder = os.path.dirname(os.path.abspath(__file__))
name = f"{folder}/{environment['SLURM_JOB_ID']}.{os.getpid()}"
with open(f"{name}.part", "w") as file:
    json.dump(report, file)
os.rename(f"{name}.part", f"{name}.json")
