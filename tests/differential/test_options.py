"""The table of options against the sbatch that is installed: names, values, shortened names, variables."""

from __future__ import annotations

import re
import string
import subprocess

import pytest

from execute_batch_scheduler.flags import _SYNONYMS, NONE, OPTIONAL, REQUIRED, SBATCH, find
from tests.services import slurm as service


def said(*words: str) -> str:
    return subprocess.run(["sbatch", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True).stderr


@pytest.fixture
def names(slurm: service.Slurm) -> list[str]:
    """The long names that sbatch itself tells of, letter by letter."""
    found: list[str] = []
    for letter in string.ascii_lowercase:
        answer = said(f"--{letter}")
        many = re.search(r"possibilities: (.*)", answer)
        found += re.findall(r"'--([\w-]+)'", many[1] if many else answer.replace(f"'--{letter}'", ""))
    return sorted(set(found))


def test_each_option_of_sbatchs_is_in_the_table(names: list[str]) -> None:
    assert len(names) > 100
    assert set(names) <= {*SBATCH, *_SYNONYMS}


def test_values_are_wanted_as_by_sbatch(names: list[str]) -> None:
    def value(name: str) -> str:
        if "requires an argument" in said(f"--{name}"):
            return REQUIRED
        return NONE if "doesn't allow an argument" in said(f"--{name}=x") else OPTIONAL

    # what these print is no answer to the question
    kept = [name for name in names if name not in ("help", "usage", "version")]
    expected = {name: option.value for name in kept if (option := find(name))}
    assert {name: value(name) for name in kept} == expected


def test_shortened_names_mean_what_they_mean_to_sbatch(names: list[str]) -> None:
    """Where newer releases know more names, a short one may be left to sbatch; never is it taken for another."""
    for name in names:
        for length in range(1, len(name) + 1):
            short = name[:length]
            meant = {_SYNONYMS.get(one, one) for one in names if one.startswith(short)}
            if short in names:
                meant = {_SYNONYMS.get(short, short)}
            option = find(short)
            # a whole name of a newer release is passed on as it is, whatever sbatch takes it for
            assert option is None or {option.name} == meant or short in SBATCH, short
            assert (
                option is not None or len(meant) > 1 or any(new.startswith(short) for new in SBATCH if new not in names)
            ), short


def test_the_variables_are_those_that_sbatch_reads(slurm: service.Slurm) -> None:
    """sbatch says with -v which options are set; a value that it cannot read is answered with the option's name."""
    values = {"time": "7", "cpu-freq": "high", "hint": "nomultithread", "bb": "capacity=1", "exclusive": "user"}
    for name, value in values.items():
        for variable in SBATCH[name].variables:
            answer = subprocess.run(
                ["sbatch", "-v", "--hold", "--wrap=true", "--output=/dev/null"],
                env={**slurm.environment, "PATH": "/usr/bin:/bin", variable: value},
                capture_output=True,
                text=True,
            )
            assert re.search(rf"^sbatch: {name} +: ", answer.stderr, re.MULTILINE), (variable, answer.stderr)
            if answer.returncode == 0:
                slurm.run("scancel", answer.stdout.split()[-1])
