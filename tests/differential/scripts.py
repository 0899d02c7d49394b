"""Scripts of the kinds that computing centres publish, as data.

``@PROBE@`` stands for the program that reports what it sees, ``@BASE@`` for a folder, ``@FIRST@`` for the number of a
job that has been submitted before. Names are the files' names, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Union


@dataclass(frozen=True)
class Script:
    """A script and how it is submitted; `waits` where its job does not start by itself."""

    text: Union[str, bytes]
    flags: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    waits: bool = False

    @property
    def content(self) -> bytes:
        return self.text if isinstance(self.text, bytes) else self.text.encode()


def bash(head: str, body: str = '"@PROBE@"', **how: object) -> Script:
    """A bash script of directives and a body."""
    return Script(f"#!/bin/bash\n{head}\n\n{body}\n", **how)  # type: ignore[arg-type]


SCRIPTS: dict[str, Script] = {
    # what centres publish
    "minimal.sh": bash("", 'echo hello\necho oops >&2\n"@PROBE@"'),
    "serial.sbatch": bash(
        "#SBATCH --job-name=serial\n#SBATCH --output=serial_%j.out\n#SBATCH --error=serial_%j.err\n"
        "#SBATCH --time=00:05:00\n#SBATCH --mem=1G\n#SBATCH --partition=short",
        'echo "Running on $(hostname)"\necho trouble >&2\n"@PROBE@"',
    ),
    "mpi.slurm": bash(
        "#SBATCH -J mpi_job\n#SBATCH -N 2\n#SBATCH --ntasks-per-node=4\n#SBATCH -t 0:10:0\n#SBATCH -o %x.%j.o\n",
        'srun --cpu-bind=none bash -c "echo task" | sort\n"@PROBE@"',
    ),
    "openmp.sh": bash(
        "#SBATCH --nodes=1\n#SBATCH --ntasks=1\n#SBATCH --cpus-per-task=8\n#SBATCH --hint=nomultithread",
        'export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK\nexport OMP_PLACES=cores OMP_PROC_BIND=close\n"@PROBE@"',
    ),
    "hybrid.sh": bash(
        "#SBATCH --nodes=2-2\n#SBATCH --ntasks=4\n#SBATCH --ntasks-per-node=2\n#SBATCH -c 4\n"
        "#SBATCH --distribution=block:cyclic\n#SBATCH --mem-per-cpu=100M\n#SBATCH --time=1:00:00",
        'export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}\nsrun -c $SLURM_CPUS_PER_TASK true\n"@PROBE@"',
    ),
    "gpu.sh": bash("#SBATCH --gres=gpu:2\n#SBATCH -c 4\n#SBATCH --mem=8G\n#SBATCH --time=02:00:00"),
    "gpus_per_task.sh": bash("#SBATCH -n 2\n#SBATCH -N 1\n#SBATCH --gpus-per-task=1\n#SBATCH --cpus-per-gpu=2"),
    "gpus_per_node.sh": bash("#SBATCH --nodes=2\n#SBATCH --gpus-per-node=1\n#SBATCH --mem-per-gpu=1G\n#SBATCH -t 5"),
    "gpus.sh": bash("#SBATCH -G 2\n#SBATCH --gpu-bind=none\n#SBATCH --ntasks-per-gpu=2"),
    "exclusive.sh": bash("#SBATCH --exclusive\n#SBATCH -N1\n#SBATCH --mem=0\n#SBATCH -t 00:01:00"),
    "exclusive_user.sh": bash("#SBATCH --exclusive=user\n#SBATCH -n1"),
    "oversubscribe.sh": bash("#SBATCH --oversubscribe\n#SBATCH --overcommit\n#SBATCH -n 3"),
    "conda.sh": bash(
        "#SBATCH --job-name=conda-train\n#SBATCH --output=logs-%x-%j.txt\n#SBATCH --time=0-00:10",
        'source ~/.no-such-bashrc 2>/dev/null\neval "$(echo :)"\nconda() { echo conda "$@"; }\nconda activate env\n'
        '"@PROBE@"',
    ),
    "modules.sh": bash(
        "#SBATCH --job-name=modules",
        'module purge\nmodule load gcc openmpi\n"@PROBE@"',
        variables={"BASH_FUNC_module%%": "() {  echo module $*\n}", "LOADEDMODULES": "a:b"},
    ),
    "sweep.sh": bash(
        "#SBATCH --ntasks=2\n#SBATCH --time=5\n#SBATCH --output=sweep.out",
        'for lr in 0.1 0.01; do\n  echo "lr=$lr"\ndone\nwait\n"@PROBE@"',
    ),
    "heredoc.sh": bash(
        "#SBATCH -t 3",
        "cat > input.nml <<'EOF'\n#SBATCH --time=99\n&run n=$N /\nEOF\n"
        "cat <<EOF\nn=$((1 + 1)) \\$x\nEOF\ncat input.nml\n"
        '"@PROBE@"',
    ),
    "signals.sh": bash(
        "#SBATCH --signal=B:USR1@60\n#SBATCH --time=00:10:00\n#SBATCH --requeue\n#SBATCH --open-mode=append\n"
        "#SBATCH --output=restart.log",
        "trap 'echo checkpoint' USR1\nkill -USR1 $$\n\"@PROBE@\"",
    ),
    "dependency.sh": bash("#SBATCH --time=1", flags=("--dependency=afterany:@FIRST@",)),
    "singleton.sh": bash("#SBATCH -J single\n#SBATCH --dependency=singleton\n#SBATCH --kill-on-invalid-dep=yes"),
    "begin.sh": bash("#SBATCH --begin=now+1hour\n#SBATCH -n 2", waits=True),
    "begin_date.sh": bash("#SBATCH --begin=2039-01-20T12:34:00 --deadline 2039-02-01", waits=True),
    "held.sh": bash("#SBATCH -H --priority=7\n#SBATCH --time-min=2\n#SBATCH -t 4", waits=True),
    "held_long.sh": bash("#SBATCH --hold\n#SBATCH --nice=100\n#SBATCH --wckey=k --mcs-label=m", waits=True),
    "never.sh": bash("#SBATCH -n1 --begin 12/31/39", waits=True),
    "mail.sh": bash("#SBATCH --mail-type=BEGIN,END,FAIL\n#SBATCH --mail-user=me@example.org"),
    "mail_all.sh": bash("#SBATCH --mail-type=ALL\n#SBATCH --mail-type=TIME_LIMIT_80"),
    "mail_line.sh": bash("#SBATCH --mail-type=BEGIN,REQUEUE", flags=("--mail-type=END", "--mail-type=NONE")),
    "licenses.sh": bash("#SBATCH -L matlab:2\n#SBATCH --licenses=matlab:1"),
    "constraint.sh": bash("#SBATCH -C ib&big\n#SBATCH --prefer=ib"),
    "constraint_or.sh": bash("#SBATCH --constraint='[ib|big]'\n#SBATCH -N 2\n#SBATCH --contiguous"),
    "nodelist.sh": bash("#SBATCH -w sn3\n#SBATCH --exclude=sn1,sn2"),
    "nodelist_range.sh": bash("#SBATCH --nodelist=sn[2-3]\n#SBATCH --use-min-nodes\n#SBATCH --no-kill"),
    "topology.sh": bash("#SBATCH -B 2:2:1\n#SBATCH --switches=1@5:00\n#SBATCH --spread-job"),
    "sockets.sh": bash("#SBATCH --sockets-per-node=2 --cores-per-socket=2 --threads-per-core=1\n#SBATCH --mincpus=4"),
    "per_core.sh": bash("#SBATCH --ntasks=4 --ntasks-per-core=1\n#SBATCH --ntasks-per-socket=2"),
    "plane.sh": bash("#SBATCH -n 4 -N 2 -m plane=2"),
    "profile.sh": bash("#SBATCH --profile=none\n#SBATCH --acctg-freq=task=1\n#SBATCH --wait-all-nodes=1"),
    "comment.sh": bash("#SBATCH --comment=\"a  'quoted' # comment=1\"\n#SBATCH --extra-node-info=1"),
    "reservation.sh": bash("#SBATCH --reservation=course\n#SBATCH --qos=normal\n#SBATCH -A science"),
    "delay.sh": bash("#SBATCH --delay-boot=5\n#SBATCH --cpu-freq=high\n#SBATCH --power=level\n#SBATCH --core-spec=0"),
    "thread_spec.sh": bash("#SBATCH --network=none\n#SBATCH --tmp=0\n#SBATCH --gres-flags=disable-binding"),
    # heads as they are written
    "between.sh": bash(
        "# A comment\n\n#SBATCH --time=5\n# another: #SBATCH --time=6\n   \n\t\n"
        "#SBATCH -n2   # two tasks\n#\n#SBATCH -J last"
    ),
    "one_line.sh": bash("#SBATCH -N 1 -n 2 --time=4 --mem 200M -J 'one line' --comment=\"x y\""),
    "tabs.sh": bash("#SBATCH\t-n\t2\t--time=4\t\n#SBATCH \t --job-name\ttabbed"),
    "joined.sh": bash("#SBATCH-J joined\n#SBATCH--time=7"),
    "quotes.sh": bash("#SBATCH --job-name='my job'\n#SBATCH --comment=\"it's\"' and '\"more\"\n#SBATCH -t '0:05:00'"),
    "escapes.sh": bash('#SBATCH --comment="a\\"b\\\\c\\ d"\n#SBATCH -J a\\#b'),
    "hash.sh": bash("#SBATCH -J name#not-this\n#SBATCH --comment=x\\#y # that\n#SBATCH --time=3#4"),
    "empty_quotes.sh": bash("#SBATCH -n2 '' --time=9\n#SBATCH --comment='' -c2"),
    "split_lines.sh": bash("#SBATCH -J\n#SBATCH foo\n#SBATCH --time\n#SBATCH 6"),
    "backslash.sh": bash("#SBATCH --ntasks=2 \\\n#SBATCH --time=4\\"),
    "literal.sh": bash("#SBATCH --comment=$HOME/{a,b}\n#SBATCH -J $USER-job\n#SBATCH -o $HOME-%j.out"),
    "duplicates.sh": bash(
        "#SBATCH --time=5\n#SBATCH -n4\n#SBATCH -t 6\n#SBATCH --ntasks=2\n#SBATCH -J a\n#SBATCH -J b"
    ),
    "duplicates_many.sh": bash(
        "#SBATCH --gres=gpu:1 --gres=gpu:2 -x sn1 -x sn2 -C ib -C big --comment=a --comment=b\n"
        "#SBATCH --nice=1 --nice=2 --signal=USR1 --signal=USR2@5\n"
        "#SBATCH --mail-user=a --mail-user=b --export=NONE --export=ALL -m block -m cyclic"
    ),
    "last_wins.sh": bash(
        "#SBATCH --mem=1G\n#SBATCH --mem=50M\n#SBATCH --requeue\n#SBATCH --no-requeue\n#SBATCH -s --exclusive"
    ),
    "abbreviated.sh": bash("#SBATCH --part=short --ntasks-per-n=2 --nodes 1 --out=abb.out --time=3 --job abb --exclus"),
    "tasks.sh": bash("#SBATCH --tasks=2\n#SBATCH --nodes=1"),
    "tasks_per_node.sh": bash("#SBATCH --tasks-per-node=2 -N1"),
    "bundled.sh": bash("#SBATCH -Osn3 -N1\n#SBATCH -koff"),
    "unheard.sh": bash(
        "##SBATCH --time=99\n# SBATCH --time=98\n  #SBATCH --time=97\n#sbatch --time=96\n#Sbatch -n9\n#SBATCH"
    ),
    "too_late.sh": bash("#SBATCH --time=5\nset -e\n#SBATCH --time=99"),
    "docstring.py": Script(
        '#!/usr/bin/env python3\n#SBATCH --time=5\n#SBATCH -J python\n"""Doc.\n#SBATCH --time=99\n"""\n'
        'import subprocess\n#SBATCH -n9\nsubprocess.run(["@PROBE@"], close_fds=False)\nprint("python")\n'
    ),
    "perl.pl": Script('#!/usr/bin/perl -w\n#SBATCH --time=5\nuse strict;\nsystem("@PROBE@");\nprint "perl\\n";\n'),
    "awk.awk": Script('#!/usr/bin/awk -f\n#SBATCH -n2\nBEGIN { system("@PROBE@"); print "awk" }\n'),
    "posix.sh": Script('#!/bin/sh\n#SBATCH --job-name=sh\n"@PROBE@"\necho $0 | grep -c /\n'),
    "login.sh": Script('#!/bin/bash -l\n#SBATCH -J login\nshopt -q login_shell && echo login\n"@PROBE@"\n'),
    "strict.sh": Script('#!/bin/bash -eu\n#SBATCH -J strict\n"@PROBE@"\nfalse\necho never\n'),
    "space.sh": Script('#! /bin/bash\n#SBATCH -J space\n"@PROBE@"\n'),
    "env_s.sh": Script('#!/usr/bin/env -S bash -u\n#SBATCH -J env\n"@PROBE@"\n'),
    "no_newline.sh": Script('#!/bin/bash\n#SBATCH -J last\n"@PROBE@"'),
    "slurm_mark.sh": bash("#SLURM --time=6\n#SBATCH -n2"),
    "ünïcode-名前.sh": bash("#SBATCH --comment=naïve-名前\n#SBATCH -o 'aus gabe-ü-%j.txt'"),
    "unicode_name.sh": bash("#SBATCH -J täst-名前-😀", "echo 'ä€😀'\n\"@PROBE@\""),
    "latin1.sh": Script(b'#!/bin/bash\n# f\xfcr J\xfcrgen\n#SBATCH --time=5\necho gr\xfc\xdfe\n"@PROBE@"\n'),
    # other schedulers' languages, which sbatch reads
    "pbs.sh": bash(
        "#PBS -N from_pbs\n#PBS -l nodes=2:ppn=2,walltime=00:10:00\n#PBS -j oe\n#PBS -o pbs.out\n#PBS -M a@b.c -m abe\n"
        "#PBS -q short"
    ),
    "pbs_and_slurm.sh": bash("#SBATCH -J sbatch --time=5 -n 1\n#PBS -N pbs\n#PBS -l walltime=00:20:00\n#SBATCH -c 2"),
    "pbs_line.sh": bash("#PBS -N pbs\n#PBS -l walltime=00:20:00", flags=("-J", "line", "--time=3")),
    "pbs_ignored.sh": bash("#PBS -N pbs\n#SBATCH --ignore-pbs -J sbatch"),
    "pbs_variable.sh": bash(
        "#PBS -N pbs\n#SBATCH -J sbatch", variables={"SBATCH_JOB_NAME": "env", "SBATCH_TIMELIMIT": "8"}
    ),
    "pbs_no_output.sh": bash("#PBS -N pbs\n#SBATCH --comment='a \"b\" \\\\ c'", 'echo out; echo err >&2\n"@PROBE@"'),
    "bsub.sh": bash("#BSUB -J from_bsub\n#BSUB -n 3\n#BSUB -W 10\n#BSUB -o bsub.%J\n#BSUB -q short"),
    "bsub_and_pbs.sh": bash("#PBS -N pbs -l walltime=00:09:00\n#BSUB -J bsub\n#SBATCH -J sbatch"),
    # values
    "time_minutes.sh": bash("#SBATCH --time=90"),
    "time_seconds.sh": bash("#SBATCH --time=1:75"),
    "time_clock.sh": bash("#SBATCH --time=001:2:03"),
    "time_days.sh": bash("#SBATCH --time=1-2"),
    "time_days_hours.sh": bash("#SBATCH --time=1-2:3"),
    "time_days_all.sh": bash("#SBATCH --time=01-02:03:04"),
    "time_zero.sh": bash("#SBATCH --time=0"),
    "time_unlimited.sh": bash("#SBATCH --time=UNLIMITED"),
    "time_infinite.sh": bash("#SBATCH -t infinite"),
    "time_overlong.sh": bash("#SBATCH --time=0:61:99"),
    "time_huge.sh": bash("#SBATCH --time=99999999999999999999-0"),
    "too_many_nodes.sh": bash("#SBATCH -N 5", waits=True),
    "memory_k.sh": bash("#SBATCH --mem=204800K"),
    "memory_plain.sh": bash("#SBATCH --mem=0100"),
    "memory_lower.sh": bash("#SBATCH --mem=1g\n#SBATCH --mem-bind=local"),
    "zeros.sh": bash("#SBATCH -n 02 -N 01 -c 02\n#SBATCH --ntasks-per-node=02"),
    "nodes_range.sh": bash("#SBATCH -N 1-2 -n 2"),
    "nodes_odd.sh": bash("#SBATCH -n 7 -N 2"),
    "more_nodes_than_tasks.sh": bash("#SBATCH -n 2 -N 3"),
    "no_kill.sh": bash("#SBATCH -k\n#SBATCH --no-kill=off"),
    "nice.sh": bash("#SBATCH --nice\n#SBATCH -n1"),
    "export_all.sh": bash("#SBATCH --export=ALL", variables={"MINE": "1"}),
    "export_quoted.sh": bash("#SBATCH --export='ALL,EXTRA=a b'", variables={"MINE": "1"}),
    "export_some.sh": bash("#SBATCH --export=PATH,MINE,SLURM_CONF,NEW=5", variables={"MINE": "1", "OTHER": "2"}),
    "export_nil.sh": bash("#SBATCH --export=NIL", variables={"MINE": "1"}),
    "export_none.sh": bash("#SBATCH --export=NONE", variables={"MINE": "1"}),
    "propagate.sh": bash("#SBATCH --propagate=STACK,NOFILE"),
    "propagate_none.sh": bash("#SBATCH --propagate=NONE"),
    "propagate_bare.sh": bash("#SBATCH --propagate"),
    "chdir.sh": bash("#SBATCH --chdir=@BASE@"),
    "chdir_relative.sh": bash("#SBATCH -D sub/../sub\n#SBATCH -o here.out"),
    "chdir_slash.sh": bash("#SBATCH --chdir=sub/ --output=../up.out"),
    "output_patterns.sh": bash(
        "#SBATCH -o o_%A_%a_%j_%4j_%x_%u_%%_%N_%n_%s_%t.out -e e-%j.%J.err", 'echo e >&2\n"@PROBE@"'
    ),
    "output_backslash.sh": bash("#SBATCH -o 'lit\\\\%j.out'"),
    "output_null.sh": bash("#SBATCH --output=/dev/null --error=err.txt", 'echo lost\necho e >&2\n"@PROBE@"'),
    "error_alone.sh": bash("#SBATCH --error=err.%j", 'echo o\necho e >&2\n"@PROBE@"'),
    "input.sh": bash("#SBATCH --input=data.in", 'head -c 4\n"@PROBE@"'),
    "input_pattern.sh": bash("#SBATCH -i %x.in -J data", '"@PROBE@"'),
    "append.sh": bash("#SBATCH -o old.txt --open-mode=append"),
    "truncate.sh": bash("#SBATCH -o old.txt --open-mode=truncate"),
    "exit_code.sh": bash("#SBATCH -J failing", '"@PROBE@"\nexit 3'),
    "killed.sh": bash("#SBATCH -J killed", '"@PROBE@"\nkill -KILL $$'),
    "group.sh": bash("#SBATCH -J group", "trap 'exit 5' TERM\n\"@PROBE@\"\nkill 0\nsleep 10"),
    "umask.sh": bash("#SBATCH -J umask", 'umask\numask 002\n"@PROBE@"\ntouch made; stat -c %a made'),
    "stdin.sh": bash("#SBATCH -J stdin", 'read -r line; echo "read: $? $line"\n"@PROBE@"'),
    "background.sh": bash("#SBATCH -n2", '(sleep 0.2; echo one) &\n(sleep 0.3; echo two) &\nwait\n"@PROBE@"'),
    # the line and the environment over the head
    "line_wins.sh": bash("#SBATCH --time=5 -n2 -J head", flags=("-t7", "--job-name", "line")),
    "variables.sh": bash(
        "#SBATCH --time=5 -J head --partition=normal --comment=head",
        variables={
            "SBATCH_TIMELIMIT": "9",
            "SBATCH_PARTITION": "short",
            "SBATCH_JOB_NAME": "env",
            "SBATCH_COMMENT": "no",
        },
    ),
    "variables_output.sh": bash(
        "#SBATCH --output=head.out", variables={"SBATCH_OUTPUT": "env-%j.out", "SBATCH_ERROR": "e"}
    ),
    "variables_input.sh": bash("", variables={"SBATCH_INPUT": "data.in", "SBATCH_OPEN_MODE": "append"}),
    "variables_memory.sh": bash(
        "#SBATCH --mem=300M --exclusive", variables={"SBATCH_MEM_PER_CPU": "70", "SBATCH_EXCLUSIVE": "user"}
    ),
    "variables_export.sh": bash("#SBATCH -J x", variables={"SBATCH_EXPORT": "ALL,ADDED=1"}),
    "variables_hint.sh": bash("#SBATCH --hint=multithread -c2", variables={"SLURM_HINT": "nomultithread"}),
    "variables_names.sh": bash(
        "#SBATCH --cpu-freq=low --switches=2 --signal=USR2@10 --no-requeue --wckey=head",
        variables={
            "SBATCH_CPU_FREQ_REQ": "high",
            "SBATCH_WAIT4SWITCH": "3:00",
            "SBATCH_SIGNAL": "B:TERM@20",
            "SBATCH_REQUEUE": "1",
            "SBATCH_WCKEY": "env",
        },
    ),
    "variables_both.sh": bash("#SBATCH --time=5", flags=("--time=3",), variables={"SBATCH_TIMELIMIT": "9"}),
    "variables_site.sh": bash(
        "#SBATCH -n2",
        variables={
            "SLURM_MPI_TYPE": "none",
            "SLURM_TIME_FORMAT": "relative",
            "SQUEUE_FORMAT": "%i",
            "SLURM_CPU_BIND": "none",
        },
    ),
    "bash_env.sh": bash(
        "#SBATCH -J benv", variables={"BASH_ENV": "/dev/null", "SHELLOPTS_": "x", "POSIXLY_CORRECT": "1"}
    ),
    "odd_variables.sh": bash(
        "#SBATCH -J odd",
        variables={
            "LINES3": "a\nb\n",
            "SPACES": "  x  ",
            "EMPTY": "",
            "EQUALS": "a=b=c",
            "ü": "é",
            "with-dash": "1",
            "a.b": "2",
        },
    ),
}

REFUSED: dict[str, Script] = {
    "unknown.sh": bash("#SBATCH --frobnicate=3"),
    "unknown_bare.sh": bash("#SBATCH --frobnicate"),
    "unknown_letter.sh": bash("#SBATCH -z 3"),
    "removed.sh": bash("#SBATCH --workdir=/tmp"),
    "ambiguous.sh": bash("#SBATCH --nod=2"),
    "bad_time.sh": bash("#SBATCH --time=10m"),
    "bad_time_sign.sh": bash("#SBATCH --time=+5"),
    "bad_tasks.sh": bash("#SBATCH -n eight"),
    "zero_tasks.sh": bash("#SBATCH -n 0"),
    "bad_memory.sh": bash("#SBATCH --mem=1Q"),
    "bad_memory_fraction.sh": bash("#SBATCH --mem-per-cpu=0.0001T"),
    "both_memories.sh": bash("#SBATCH --mem=1G\n#SBATCH --mem-per-cpu=50M"),
    "bad_frequency.sh": bash("#SBATCH --acctg-freq=task=30"),
    "bad_partition.sh": bash("#SBATCH -p nowhere"),
    "bad_gres.sh": bash("#SBATCH --gres=fpga:1"),
    "bad_nodelist.sh": bash("#SBATCH -w sn9"),
    "bad_constraint.sh": bash("#SBATCH -C quantum"),
    "bad_begin.sh": bash("#SBATCH --begin=someday"),
    "bad_signal.sh": bash("#SBATCH --signal=FOO"),
    "bad_mail.sh": bash("#SBATCH --mail-type=SOMETIMES"),
    "bad_dependency.sh": bash("#SBATCH --dependency=whenever:1"),
    "bad_licence.sh": bash("#SBATCH -L idl:1"),
    "bad_propagate.sh": bash("#SBATCH --propagate=FOO"),
    "bad_open_mode.sh": bash("#SBATCH --open-mode=maybe"),
    "bad_distribution.sh": bash("#SBATCH -m sideways"),
    "glued.sh": bash("#SBATCHX"),
    "stray.sh": bash("#SBATCH -n2 other.sh"),
    "stray_equals.sh": bash("#SBATCH --time = 5"),
    "dashes.sh": bash("#SBATCH -n2 -- --time=4"),
    "colon.sh": bash("#SBATCH -n2 : -c2"),
    "quote.sh": bash("#SBATCH -J 'open"),
    "double_quote.sh": bash('#SBATCH --comment="open'),
    "value_for_none.sh": bash("#SBATCH --hold=yes"),
    "no_value.sh": bash("#SBATCH --time"),
    "dos.sh": Script("#!/bin/bash\r\n#SBATCH -n2\r\ntrue\r\n"),
    "nul.sh": Script(b"#!/bin/bash\n#SBATCH -n2\ntrue\0\n"),
    "bom.sh": Script(b"\xef\xbb\xbf#!/bin/bash\n#SBATCH -n2\ntrue\n"),
    "empty.sh": Script(""),
    "blank.sh": Script("\n\n"),
    "bad_pbs.sh": bash("#PBS -Q what"),
    "bad_pbs_quote.sh": bash("#PBS -N 'open"),
    "bad_bsub.sh": bash("#BSUB -N foo"),
    "bad_line.sh": bash("#SBATCH -n2", flags=("--time=soon",)),
    "bad_variable.sh": bash("#SBATCH -n2", variables={"SBATCH_TIMELIMIT": "soon"}),
}
