from __future__ import annotations

import pytest

from execute_batch_scheduler.errors import BadUsage
from execute_batch_scheduler.flags import (
    NONE,
    OPTIONAL,
    REQUIRED,
    SBATCH,
    Option,
    find,
    last_said,
    merge,
    parse,
    suggest,
)


def said(*words: str) -> list[tuple[str, object]]:
    return [(flag.name, flag.value) for flag in parse(words)]


def typed(*words: str) -> list[str]:
    return [flag.word for flag in parse(words)]


@pytest.mark.parametrize("words", [["-n8"], ["-n", "8"], ["--ntasks=8"], ["--ntasks", "8"]])
def test_every_form_of_an_option_with_a_value_means_the_same(words):
    (flag,) = parse(words)
    assert (flag.name, flag.value, flag.word) == ("ntasks", "8", "--ntasks=8")
    assert flag.option is SBATCH["ntasks"]


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("--parti=x", "partition"),
        ("--out=x", "output"),
        ("--err=x", "error"),
        ("--exclus", "exclusive"),
        ("--timel=x", None),
        ("--time=5", "time"),
        ("--mem=5", "mem"),
        ("--wait", "wait"),
        ("--tasks=2", "ntasks-per-node"),  # the beginning of another spelling
        ("--workdir=x", None),
        ("--share", None),
    ],
)
def test_a_long_name_may_be_shortened_as_far_as_it_is_unique(word, name):
    (flag,) = parse([word])
    assert flag.option is (SBATCH[name] if name else None)


@pytest.mark.parametrize("word", ["--ntasks-per", "--nod", "--exc", "--ver", "--mem-per", "--clu"])
def test_an_ambiguous_name_is_left_to_sbatch(word):
    (flag,) = parse([word])
    assert flag.option is None
    assert flag.word == word


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--exclusive"], [("exclusive", None)]),
        (["--exclusive=user"], [("exclusive", "user")]),
        (["--exclusive", "-n8"], [("exclusive", None), ("ntasks", "8")]),
        (["-k"], [("no-kill", None)]),
        (["-koff"], [("no-kill", "off")]),
        (["--no-kill=off"], [("no-kill", "off")]),
    ],
)
def test_an_optional_value_counts_only_where_it_is_joined(words, expected):
    assert said(*words) == expected


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["\u2013\u2013ntasks=3"], "which is no hyphen"),
        (["--ntasks", "=", "3"], "no spaces around ="),
        (["--ntasks=3", "=3"], "no spaces around ="),
        ([""], "Values with spaces need quotes"),
    ],
)
def test_a_word_that_belongs_to_no_option_gets_a_hint(words, hint):
    with pytest.raises(BadUsage, match=hint):
        parse(words)


def test_the_word_behind_an_optional_value_is_not_its_value():
    with pytest.raises(BadUsage, match="'user' belongs to no option"):
        parse(["--exclusive", "user"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-Hn8"], ["--hold", "--ntasks=8"]),
        (["-Hn", "8"], ["--hold", "--ntasks=8"]),
        (["-HOs"], ["--hold", "--overcommit", "--oversubscribe"]),
        (["-HNn8"], ["--hold", "--nodes=n8"]),
        (["-kH"], ["--no-kill=H"]),
        (["-Hz3"], ["--hold", "-z3"]),
        (["-N2-4"], ["--nodes=2-4"]),
        (["-N=4"], ["--nodes==4"]),
    ],
)
def test_letters_are_bundled_until_one_takes_the_rest(words, expected):
    assert typed(*words) == expected


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--comment", "two words"], "two words"),
        (["--comment=a=b"], "a=b"),
        (["--comment="], ""),
        (["--comment", ""], ""),
        (["--comment", "--hold"], "--hold"),
        (["-J", "-x"], "-x"),
    ],
)
def test_a_value_is_taken_as_it_is(words, value):
    ((_, got),) = said(*words)
    assert got == value


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--frobnicate"], ["--frobnicate"]),
        (["--frobnicate=3"], ["--frobnicate=3"]),
        (["--frobnicate", "3"], ["--frobnicate=3"]),
        (["--frobnicate", "-n8"], ["--frobnicate", "--ntasks=8"]),
        (["--frobnicate", "--hold"], ["--frobnicate", "--hold"]),
        (["-z"], ["-z"]),
        (["-z", "3"], ["-z3"]),
        (["-z3"], ["-z3"]),
        (["-z", "-n8"], ["-z", "--ntasks=8"]),
    ],
)
def test_an_unknown_option_is_passed_on_with_what_may_be_its_value(words, expected):
    flags = parse(words)
    assert [flag.word for flag in flags] == expected
    assert flags[0].option is None


@pytest.mark.parametrize("words", [["--ntasks"], ["-n"], ["-Hn"], ["--exclusive", "--time"]])
def test_a_missing_value_is_refused_by_name(words):
    with pytest.raises(BadUsage, match=r"--(ntasks|time)\)? needs a value"):
        parse(words)


def test_a_value_for_an_option_that_takes_none_is_refused():
    with pytest.raises(BadUsage, match="--hold takes no value, and 'yes' was given"):
        parse(["--hold=yes"])


@pytest.mark.parametrize("word", ["8", "", "-", "--", "script.sh"])
def test_a_stray_word_is_refused(word):
    with pytest.raises(BadUsage, match="belongs to no option"):
        parse(["-n8", word])


def test_the_colon_of_a_heterogeneous_job_is_refused_by_what_it_means():
    with pytest.raises(BadUsage, match="heterogeneous"):
        parse(["-n8", ":", "-n4"])


def test_no_words_are_no_flags():
    assert parse([]) == []


def test_another_table_of_options_can_be_used_beside_sbatchs():
    own = Option("dry-run", NONE)
    first, second = parse(["--dry-run", "--nt=8"], {**SBATCH, "dry-run": own}), parse(["--dry"], {"dry-run": own})
    assert [flag.option for flag in first] == [own, None]
    assert second[0].option is None  # our own options cannot be shortened: sbatch may know the short form


def test_an_option_of_our_own_hides_no_abbreviation_of_sbatchs():
    out = Option("out", REQUIRED)
    assert find("out", {**SBATCH, "out": out}) is out
    assert find("outp", {**SBATCH, "out": out}) is SBATCH["output"]


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("cluster", "clusters"),
        ("tasks-per-node", "ntasks-per-node"),
        ("nodes", "nodes"),
        ("nope", None),
        ("", None),
    ],
)
def test_find_knows_other_spellings(name, option):
    assert find(name) is (SBATCH[option] if option else None)


def test_suggest_names_what_is_near():
    assert suggest("ntask") == "did you mean --ntasks?"
    assert suggest("mem-per-cpus") == "did you mean --mem-per-cpu or --mem-per-gpu?"
    assert suggest("workdir") == "did you mean --chdir?"
    assert suggest("zzzzzz") == ""
    assert suggest("wml", ["wlm"]) == "did you mean --wlm?"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-n8", "-N2", "-n4"], ["--nodes=2", "--ntasks=4"]),
        (["--mem=1G", "--mem-per-cpu=2G", "--mem=2G"], ["--mem-per-cpu=2G", "--mem=2G"]),  # sbatch refuses them itself
        (["--mail-type=END", "--mail-type=NONE", "--mail-type=FAIL"], ["--mail-type=END,FAIL"]),
        (["--mail-type=NONE", "--mail-type=none"], ["--mail-type=NONE"]),
        (["--requeue", "--no-requeue"], ["--no-requeue"]),
        (["--exclusive", "--oversubscribe"], ["--oversubscribe"]),
        (["--core-spec=1", "--thread-spec=1"], ["--thread-spec=1"]),
        (["--foo=1", "--foo=2", "--foo=1"], ["--foo=2", "--foo=1"]),
        (["--time=1", "--time-min=2"], ["--time=1", "--time-min=2"]),
    ],
)
def test_of_one_option_or_group_the_last_one_counts(words, expected):
    assert [flag.word for flag in last_said(parse(words))] == expected


@pytest.mark.parametrize(
    ("line", "head", "environment", "expected"),
    [
        (["-n8"], ["-n4", "-N2"], {}, ["--nodes=2", "--ntasks=8"]),
        ([], ["-n4", "-n2"], {}, ["--ntasks=2"]),
        (["-n4", "-n2"], [], {}, ["--ntasks=2"]),
        ([], ["--time=5", "-N2"], {"SBATCH_TIMELIMIT": "7"}, ["--nodes=2"]),
        (["--time=9"], ["--time=5"], {"SBATCH_TIMELIMIT": "7"}, ["--time=9"]),
        ([], ["--mem=5G"], {"SBATCH_MEM_PER_CPU": "1G"}, ["--mem=5G"]),
        ([], ["--mem=5G"], {"SBATCH_MEM_PER_NODE": "1G"}, []),
        ([], ["--hint=compute_bound"], {"SLURM_HINT": "multithread"}, []),
        (["--mail-type=END"], ["--mail-type=FAIL"], {}, ["--mail-type=FAIL,END"]),
        (["--mem-per-cpu=1G"], ["--mem=5G"], {}, ["--mem-per-cpu=1G"]),
        ([], ["--requeue"], {"SBATCH_NO_REQUEUE": "1"}, []),
        ([], ["--time=5"], {"SBATCH_PARTITION": "x", "SBATCH_": "", "TIMELIMIT": "3"}, ["--time=5"]),
        (["--foo=1"], ["--foo=2"], {}, ["--foo=2", "--foo=1"]),
        ([], ["--nodes=4"], {"SBATCH_NODES": "3"}, ["--nodes=4"]),  # sbatch reads no such variable
    ],
)
def test_the_line_counts_before_the_environment_and_that_before_directives(line, head, environment, expected):
    assert [flag.word for flag in merge(parse(line), parse(head), environment)] == expected


def test_what_directives_say_is_weak():
    assert [flag.weak for flag in merge(parse(["-n8"]), parse(["-N2"]), {})] == [True, False]


def test_the_table_is_whole():
    assert len(SBATCH) == len({option.letter or option.name for option in SBATCH.values()})
    assert {option.value for option in SBATCH.values()} == {REQUIRED, OPTIONAL, NONE}
    assert SBATCH["exclusive"] == Option("exclusive", OPTIONAL, "", ("SBATCH_EXCLUSIVE",), "exclusive|oversubscribe")
    assert SBATCH["ntasks"] == Option("ntasks", REQUIRED, "n", (), "ntasks")


def test_an_empty_value_stays_one():
    assert [flag.word for flag in parse(["-J", "", "-p", ""])] == ["--job-name=", "--partition="]
