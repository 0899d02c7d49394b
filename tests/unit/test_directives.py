from __future__ import annotations

import pytest

from execute_batch_scheduler import directives
from execute_batch_scheduler.errors import BadUsage

SHEBANG = "#!/bin/bash\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("#SBATCH -n8", ["-n8"]),
        ("#SBATCH --ntasks 8 -N 2", ["--ntasks", "8", "-N", "2"]),
        ("#SBATCH\t--time=7\t-H\t", ["--time=7", "-H"]),
        ("#SBATCH-J x", ["-J", "x"]),
        ("#SBATCH--time=7", ["--time=7"]),
        ("#SBATCHX", ["X"]),
        ("#SBATCH", []),
        ("#SBATCH   ", []),
        ("#SBATCH # nothing but a comment", []),
        ("#SBATCH -n8 # eight", ["-n8"]),
        ("#SBATCH -J zz#1", ["-J", "zz"]),
        ("#SBATCH -J 'a b'", ["-J", "a b"]),
        ('#SBATCH --comment="a # b"', ["--comment=a # b"]),
        ("#SBATCH --comment='say \"hi\"'", ['--comment=say "hi"']),
        ('#SBATCH --comment="it\'s"', ["--comment=it's"]),
        ("#SBATCH --comment=a'b c'\"d e\"f", ["--comment=ab cd ef"]),
        ("#SBATCH -J '' -n2", ["-J"]),  # a word of nothing but quotes ends the line
        ("#SBATCH --comment='' -n2", ["--comment=", "-n2"]),
        ("#SLURM -n8", ["-n8"]),
        ("#SBATCH -n8 \\", ["-n8"]),
        ("#SBATCH -D $HOME", ["-D", "$HOME"]),
        ("##SBATCH -n8", []),
        ("# SBATCH -n8", []),
        ("#sbatch -n8", []),
        ("#SBATC -n8", []),
    ],
)
def test_the_words_of_one_line(line, words):
    assert directives.read(f"{SHEBANG}{line}\ntrue\n") == words


@pytest.mark.parametrize(
    "script",
    [
        "#!/bin/bash\n#SBATCH -n8\ntrue\n",
        "#! /usr/bin/env python3\n#SBATCH -n8\npass\n",
        "#SBATCH -n8\n",
        "#!/bin/bash\n#SBATCH -n8",
        "#!/bin/bash\n\n  \t\n# a comment\n#SBATCH -n8\n",
        "\n#SBATCH -n8\n",
        "#!/bin/bash\n#SBATCH -n8\n#SBATC -n9\nset -e\n#SBATCH -n9\n",
        '#!/usr/bin/env python3\n#SBATCH -n8\n"""Doc.\n#SBATCH -n9\n"""\n#SBATCH -n9\n',
        "#!/bin/bash\n#SBATCH -n8\ntrue # code\n#SBATCH -n9\n",
        "#!/bin/bash\n#SBATCH -n8\n #SBATCH -n9\n",
    ],
)
def test_comments_and_blank_lines_do_not_matter_and_the_first_other_line_ends_the_head(script):
    assert directives.read(script) == ["-n8"]


def test_a_backslash_joins_words_as_newer_releases_read_it():
    assert directives.read(f"{SHEBANG}#SBATCH -J a\\ b\\\tc\n") == ["-J", "a b", "c"]


def test_a_colon_parts_no_heterogeneous_job_here():
    with pytest.raises(BadUsage, match="a colon where an option should begin in line 2 of the script"):
        directives.read(f"{SHEBANG}#SBATCH -n8 : -n4\n")


def test_the_lines_of_other_schedulers_are_kept_as_they_are():
    script = f"{SHEBANG}#PBS -l walltime=1:00\n#SBATCH -n8\n##PBS -q x\n#BSUB -J 'a b' # c\ntrue\n#PBS -N late\n"
    assert directives.foreign(script) == ["#PBS -l walltime=1:00", "#BSUB -J 'a b' # c"]


@pytest.mark.parametrize("word", ["--time=5", "--comment=a b", "--comment=it's", '--comment=a"b\\c #d', "--comment="])
def test_a_line_of_one_word_reads_as_that_word(word):
    assert directives.read(directives.line_of(word)) == [word]


def test_lines_are_joined_in_their_order():
    assert directives.read(f"{SHEBANG}#SBATCH -n8\n#SBATCH -N2\n#SBATCH -n4\n") == ["-n8", "-N2", "-n4"]


def test_a_script_without_directives_has_no_words():
    assert directives.read("") == directives.read("echo hello\n") == []


@pytest.mark.parametrize("line", ["#SBATCH -J 'a", '#SBATCH -J "a', "#SBATCH --comment=it's"])
def test_an_open_quote_is_refused_with_its_line(line):
    with pytest.raises(BadUsage, match="a quote is not closed in line 3 of the script"):
        directives.read(f"{SHEBANG}# comment\n{line}\ntrue\n")


@pytest.mark.parametrize("word", ["hetjob", "packjob", "HetJob"])
def test_parts_of_a_heterogeneous_job_are_refused(word):
    with pytest.raises(BadUsage, match=f"line 2 of the script: heterogeneous jobs \\({word}\\)"):
        directives.read(f"{SHEBANG}#SBATCH {word}\n")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (r'--comment="a\"b"', ['--comment=a"b']),
        (r"--comment=x\#y", ["--comment=x#y"]),
        ("--comment=a\u00a0b", ["--comment=a\u00a0b"]),
        (r"--comment='a\'b'", ["--comment=a'b"]),
    ],
)
def test_a_backslash_goes_and_only_plain_spaces_part(line, words):
    assert directives.read(f"#!/bin/bash\n#SBATCH {line}\n") == words


@pytest.mark.parametrize(
    ("script", "command"),
    [
        ("#!/bin/bash\n#SBATCH -n1\n\n  # then\n  srun ./a.out  # it\nexit\n", "srun ./a.out  # it"),
        ("true", "true"),
        ("#!/bin/bash\n# nothing\n", ""),
        ("", ""),
    ],
)
def test_the_first_command_is_what_stands_behind_the_head(script, command):
    assert directives.first_command(script) == command


def test_an_indented_comment_does_not_end_the_head():
    assert directives.read("#!/bin/bash\n  # c\n#SBATCH -n8\n  #SBATCH -n9\n") == ["-n8"]
