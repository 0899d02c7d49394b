"""Where settings come from, and whose word counts."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from execute_batch_scheduler.adapters.transport import Unreachable

from execute_batch_scheduler import backend, submit_script
from execute_batch_scheduler.adapters import ssh, transport
from execute_batch_scheduler.errors import BackendUnavailable, BadUsage
from execute_batch_scheduler.settings import Settings, settings
from execute_batch_scheduler.submit import backends

import psij
from psij.executors.batch.batch_scheduler_executor import BatchSchedulerExecutorConfig


@pytest.fixture(autouse=True)
def sbatch(tmp_path, monkeypatch):
    """A machine with an sbatch that no test runs."""
    path = tmp_path / "bin" / "sbatch"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\nexit 1\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
    for name in [name for name in os.environ if name.startswith("SBATCH_")]:
        monkeypatch.delenv(name)
    yield path
    vars(settings).update(vars(Settings()))


class Places:
    """Every place that may say something."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch

    def installed(self, **values):
        module = types.ModuleType("execute_batch_scheduler_defaults")
        module.DEFAULTS = values
        self.monkeypatch.setitem(sys.modules, module.__name__, module)

    def site(self, text="", **values):
        return self._file("EXECUTE_SITE_CONFIG", "site.toml", text, values)

    def user(self, text="", **values):
        return self._file("EXECUTE_CONFIG", "user.toml", text, values)

    def _file(self, variable, name, text, values):
        path = self.folder / name
        path.write_text("".join(f"{key} = {value!r}\n" for key, value in values.items()) + text)
        self.monkeypatch.setenv(variable, str(path))
        return path

    def program(self, **values):
        vars(settings).update(values)

    def original(self, **values):
        self.monkeypatch.delitem(sys.modules, "execute_cell", raising=False)
        import execute_cell

        names = {"wlm": "_DEFAULT_MGR", "flags": "_DEFAULT_LINE_CMD_ARGS", "outputs": "_DEFAULT_SLURM_OUTERR_FILE"}
        for name, value in values.items():
            self.monkeypatch.setattr(execute_cell, names[name], value)


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "execute_cell", raising=False)
    return Places(tmp_path, monkeypatch)


def words(flags="", script="true\n", **more):
    """The flags that sbatch would be given, but for those that every job has."""
    plan = submit_script(script, flags, dry_run=True, **more)
    words = plan.command.split()
    assert words[0] == "sbatch"
    directory = plan.spec.arguments[1][: -len("run")]
    ours = ("--parsable", "--job-name=sbatch", f"--output={directory}", f"--error={directory}")
    return [word for word in words if word.startswith("-") and not word.startswith(ours)]


def submit_file(plan):
    return next(word for word in plan.command.split() if word.endswith(".job"))


# job directories


@pytest.mark.parametrize(
    ("job_directory", "variable", "root"),
    [
        (None, None, "/home/me/.execute_batch_scheduler"),
        (None, "", "/home/me/.execute_batch_scheduler"),
        (None, "/scratch/jobs", "/scratch/jobs"),
        ("/mine", "/scratch/jobs", "/mine"),
        ("~/jobs", None, "/home/me/jobs"),
        ("/a/../b/", None, "/b"),
        (Path("/mine"), None, "/mine"),
    ],
)
def test_what_is_set_counts_before_the_environment_and_that_before_the_home(monkeypatch, job_directory, variable, root):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("EXECUTE_JOB_DIRECTORY", raising=False)
    if variable is not None:
        monkeypatch.setenv("EXECUTE_JOB_DIRECTORY", variable)
    assert Settings(job_directory=job_directory).root == root


def test_a_relative_root_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Settings(job_directory="jobs").root == str(tmp_path / "jobs")


def test_the_environments_root_counts_before_the_files(places, monkeypatch):
    places.user(job_directory="/of/file")
    monkeypatch.setenv("EXECUTE_JOB_DIRECTORY", "/of/environment")
    assert settings.root == "/of/environment"
    monkeypatch.delenv("EXECUTE_JOB_DIRECTORY")
    assert settings.root == "/of/file"


def test_settings_count_from_when_they_are_set():
    settings = Settings()
    assert settings.choose().shell == "/bin/bash"
    assert settings.choose().wlm is None
    assert settings.choose().on_interrupt == "cancel"
    settings.job_directory = "/later"
    assert settings.root == "/later"


# precedence

ORDER = ["installed", "site", "user", "program", "original"]


@pytest.mark.parametrize("count", range(1, len(ORDER) + 1))
@pytest.mark.parametrize("key", ["wlm", "flags"])
def test_of_all_places_the_strongest_counts(places, key, count):
    values = {"wlm": "psij:{}", "flags": "--qos={}"}
    for name in ORDER[:count]:
        getattr(places, name)(**{key: values[key].format(name)})
    choice = settings.choose()
    found = choice.wlm if key == "wlm" else words()[0]
    assert found == values[key].format(ORDER[count - 1])


@pytest.mark.parametrize("count", range(1, 5))
@pytest.mark.parametrize(("key", "value"), [("shell", "/bin/{}"), ("job_directory", "/{}")])
def test_what_the_original_does_not_have(places, monkeypatch, key, value, count):
    monkeypatch.delenv("EXECUTE_JOB_DIRECTORY")
    for name in ORDER[:count]:
        getattr(places, name)(**{key: value.format(name)})
    choice = settings.choose()
    assert {"shell": choice.shell, "job_directory": choice.root}[key] == value.format(ORDER[count - 1])


HEAD = "#SBATCH --qos=head\ntrue\n"


@pytest.mark.parametrize(
    ("default", "environment", "script", "line", "expected"),
    [
        ("--qos=default", {}, "true\n", "", ["--qos=default"]),
        ("--qos=default", {}, HEAD, "", ["--qos=head"]),
        ("--qos=default", {"SBATCH_QOS": "env"}, "true\n", "", []),
        ("--qos=default", {"SBATCH_QOS": "env"}, HEAD, "", []),
        ("--qos=default", {}, "true\n", "-q line", ["--qos=line"]),
        ("--qos=default", {"SBATCH_QOS": "env"}, HEAD, "--qos=line", ["--qos=line"]),
        ("--qos=default", {}, "true\n", "-n8", ["--ntasks=8", "--qos=default"]),
        # members of one group, of which only one may be said
        ("--mem=1G", {}, "true\n", "--mem-per-cpu=2G", ["--mem-per-cpu=2G"]),
        ("--mem=1G", {}, "#SBATCH --mem-per-gpu=2G\ntrue\n", "", ["--mem-per-gpu=2G"]),
        ("--mem-per-cpu=1G", {"SBATCH_MEM_PER_NODE": "2G"}, "true\n", "", []),
        ("--requeue", {"SBATCH_NO_REQUEUE": "1"}, "true\n", "", []),
        ("--exclusive", {}, "true\n", "--oversubscribe", ["--oversubscribe"]),
        # what is not in our table goes by its name
        ("--site-thing=1 --other", {}, "true\n", "--site-thing=2", ["--other", "--site-thing=2"]),
        # --output alone takes both streams
        ("--output=o --error=e", {}, "true\n", "", ["--error=e", "--output=o"]),
        ("--output=o --error=e", {}, "true\n", "--output=mine", ["--output=mine"]),
        ("--output=o --error=e", {}, "true\n", "--error=mine", ["--error=mine", "--output=o"]),
        ("", {}, "true\n", "", []),
    ],
)
def test_a_default_flag_goes_where_the_job_speaks_of_the_same_thing(
    places, monkeypatch, default, environment, script, line, expected
):
    places.user(flags=default)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert sorted(words(line, script)) == expected


@pytest.mark.parametrize(
    ("said", "wlm", "expected"),
    [
        ({"user": {"flags": "--qos=a"}}, None, ["--qos=a"]),
        ({"user": {"flags": "--qos=a"}}, "slurm", ["--qos=a"]),
        ({"user": {"flags": "--qos=a"}}, "psij:slurm", []),  # another backend than the default one
        ({"user": {"flags": "--qos=a", "wlm": "psij:slurm"}}, None, ["--qos=a"]),
        ({"user": {"flags": "--qos=a", "wlm": "psij:slurm"}}, "slurm", []),
        # flags were meant for the backend that was the default where they were written
        ({"installed": {"flags": "--qos=a", "wlm": "ssh"}, "user": {"wlm": "slurm"}}, None, []),
        ({"installed": {"wlm": "ssh"}, "site": {"flags": "--qos=a"}, "user": {"wlm": "slurm"}}, None, []),
        ({"installed": {"flags": "--qos=a"}, "user": {"wlm": "psij:slurm"}}, None, ["--qos=a"]),
        # by backend
        ({"program": {"flags": {"slurm": "--qos=a", "ssh": "--host=b"}}}, None, ["--qos=a"]),
        ({"program": {"flags": {"slurm": "--qos=a"}, "wlm": "ssh"}}, "slurm", ["--qos=a"]),
        ({"program": {"flags": {"psij:slurm": "--qos=a"}}}, "slurm", []),
        ({"program": {"flags": {"psij:slurm": "--qos=a"}}}, "psij:slurm", ["--qos=a"]),
        # the strongest place that speaks of the backend, not the strongest that speaks
        ({"site": {"flags": "--qos=a"}, "program": {"flags": {"ssh": "--host=b"}}}, None, ["--qos=a"]),
        ({"site": {"flags": "--qos=a"}, "program": {"flags": {"slurm": ""}}}, None, []),
        ({"site": {"flags": "--qos=a --mem=1"}, "user": {"flags": "--qos=b"}}, None, ["--qos=b"]),
    ],
)
def test_default_flags_count_for_the_backend_that_they_are_meant_for(places, said, wlm, expected):
    for name, values in said.items():
        getattr(places, name)(**values)
    spec = submit_script("true", wlm=wlm, dry_run=True).spec
    attributes = spec.attributes.custom_attributes or {}
    assert [f"--{name[len('slurm.') :]}={value}" for name, value in attributes.items()] == expected


def test_default_flags_count_for_an_executor_that_is_given(places):
    places.user(flags="--qos=a")
    executor = psij.JobExecutor.get_instance("tracked-slurm")
    assert words(executor=executor) == ["--qos=a"]


def test_default_flags_that_have_no_effect_are_said(places):
    places.user('flags = {local = "--time=3 --mem=1G"}\n')
    plan = submit_script("true", wlm="local", dry_run=True)
    assert plan.notices == ("Without a scheduler these have no effect: --mem=1G",)
    assert plan.spec.attributes.duration.total_seconds() == 180


# files


def test_the_usual_files(monkeypatch, tmp_path):
    monkeypatch.delenv("EXECUTE_CONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".config").mkdir()
    (tmp_path / ".config" / "execute_batch_scheduler.toml").write_text("wlm = 'psij:home'")
    assert settings.choose().wlm == "psij:home"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert settings.choose().wlm is None
    (tmp_path / "xdg").mkdir()
    (tmp_path / "xdg" / "execute_batch_scheduler.toml").write_text("wlm = 'psij:xdg'")
    assert settings.choose().wlm == "psij:xdg"
    monkeypatch.setenv("EXECUTE_CONFIG", "~/mine.toml")
    (tmp_path / "mine.toml").write_text("wlm = 'psij:mine'")
    assert settings.choose().wlm == "psij:mine"
    monkeypatch.setenv("EXECUTE_CONFIG", "")
    assert settings.choose().wlm == "psij:xdg"


def test_a_file_is_read_again_when_it_has_changed_and_only_then(places, monkeypatch):
    path = places.user(wlm="psij:one")
    assert settings.choose().wlm == "psij:one"
    read = []
    monkeypatch.setattr(Path, "read_bytes", lambda self, real=Path.read_bytes: read.append(self) or real(self))
    assert settings.choose().wlm == "psij:one"
    assert read == []
    path.write_text("wlm = 'psij:another'")
    assert settings.choose().wlm == "psij:another"
    path.unlink()
    with pytest.raises(BadUsage, match=f"there is no settings file {path}"):
        settings.choose()


def test_nothing_is_read_before_it_is_needed(places, tmp_path):
    path = places.user("this is no TOML")
    code = "import execute_batch_scheduler.execute_magic, execute_batch_scheduler.submit; print('fine')"
    environment = {**os.environ, "EXECUTE_CONFIG": str(path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "fine\n", done.stderr


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("wlm = 'slurm'\nwml = 'x'\n", 2, "unknown key 'wml'; did you mean wlm? There are flags, job_directory"),
        ("\nwlm = \n", 2, ""),
        ("wlm = 'a\n", 1, ""),
        ("wlm = '''a\n\n", 2, ""),
        ("wlm = 'a'\nwlm = 'b'\n", 2, ""),
        ("# c\nwlm = 3\n", 2, "wlm must be a text, and 3 is none"),
        ("wlm = ''\n", 1, "wlm must be a text"),
        ("\nwlm = 'slrum'\n", 2, "there is no backend 'slrum'; did you mean slurm? There are cobalt, flux, local"),
        ("wlm = 'SLURM'\n", 1, "there is no backend 'SLURM'; did you mean slurm? There are"),
        ("wlm = 'sge'\n", 1, "there is no backend 'sge'; There are"),
        ("wlm = 'psij:'\n", 1, "there is no backend 'psij:'"),
        ("[flags]\nslurm = '-n1'\nlocale = ''\n", 3, "there is no backend 'locale'; did you mean local? There are"),
        ("[targets.a]\nwlm = 'sshd'\n", 2, "there is no backend 'sshd'; did you mean ssh?"),
        ("[targets.a.flags]\n'psij:pbs' = ''\npsb = ''\n", 3, "there is no backend 'psb'; did you mean pbs?"),
        ("shell = ['/bin/bash', '-e']\n", 1, "shell must be a text"),
        ("on_interrupt = 'stop'\n", 1, "on_interrupt is 'cancel' or 'detach', and not 'stop'"),
        ("flags = 8\n", 1, "flags must be a text, or a table of texts by backend"),
        ("wlm = 'ssh'\n[flags]\nslurm = '-n1'\nssh = 1\n", 4, "flags must be a text, and 1 is none"),
        ("flags = '''--comment=\"x'''\n", 1, "No closing quotation"),
        ("[flags]\nslurm = 'stray'\n", 2, "'stray' belongs to no option"),
        ("flags = '--wlm=slurm'\n", 1, "--wlm cannot be a default flag; set wlm"),
        ("flags = '--bg'\n", 1, "--bg cannot be a default flag; say it in the cell"),
        ("targets = 3\n", 1, "a target is a table"),
        ("[targets]\njuwels = 'x'\n", 2, "a target is a table"),
        ("wlm = 'ssh'\n[targets.a]\nwlm = 'ssh'\n[targets.b]\nwlm = 1\n", 5, "wlm must be a text"),
        ("[targets.a]\nwlm = 'ssh'\nmodules = 'x'\n", 3, "unknown key 'modules'; There are environment"),
        ("[targets.a]\ntargets = 'x'\n", 2, "unknown key 'targets'; "),
        ("[targets.'a b']\nhots = 'x'\n", 2, "unknown key 'hots'; did you mean host?"),
        ("targets.a.wlm = 'ssh'\ntargets.a.wml = 'x'\n", 2, "unknown key 'wml'; did you mean wlm?"),
        ("targets = { a = { wml = 'x' } }\n", 1, "unknown key 'wml'"),
        ("[targets.a]\nprologue = 3\n", 2, "prologue must be lines of bash"),
        ("[targets.a]\nenvironment = 'A=1'\n", 2, "environment must be a table of variables"),
        ("[targets.a.environment]\nA = 1\nB = true\n", 3, "the variable B must be a text or a whole number"),
        ("[targets.a.environment]\n'a b' = '1'\n", 2, "'a b' is no name of a variable"),
        ("[targets.a]\nexecutor_config = 1\n", 2, "executor_config must be a table"),
        ("[targets.a.executor_config]\nqueue_poling_interval = 1\n", 2, "did you mean queue_polling_interval?"),
        ("[targets.a.executor_config]\nkeep_files = 1\n", 2, "keep_files must be of type bool, and 1 is not"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_file_and_line(places, text, line, message):
    path = places.user(text)
    with pytest.raises(BadUsage) as caught:
        submit_script("true")
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert message in str(caught.value)


def test_every_backend_may_be_set(places):
    places.user("[flags]\noar = ''\ntorque = ''\n'psij:mine' = ''\n" + "".join(f"{one} = ''\n" for one in backends()))
    for wlm in (*backends(), "oar", "torque", "psij:slurm", "psij:mine"):
        places.site(wlm=wlm)
        assert settings.choose().wlm == wlm


def test_a_file_that_cannot_be_read_is_said(places, tmp_path, monkeypatch):
    places.site().write_bytes(b"\xff")
    with pytest.raises(BadUsage, match=r"site.toml cannot be read: .*utf-8"):
        settings.choose()
    monkeypatch.setenv("EXECUTE_SITE_CONFIG", str(tmp_path))
    with pytest.raises(BadUsage, match=r"cannot be read: .*directory"):
        settings.choose()


def test_what_a_program_sets_is_checked_too(places):
    places.program(flags=8)
    with pytest.raises(BadUsage, match="ExecuteMagics: flags: flags must be a text, or a table"):
        submit_script("true")
    places.program(flags=None, wlm="slrum")
    with pytest.raises(BadUsage, match="ExecuteMagics: wlm: there is no backend 'slrum'; did you mean slurm"):
        submit_script("true")
    places.program(wlm=None, executor_config={"nope": 1})
    with pytest.raises(BadUsage, match="executor_config: unknown key 'nope'"):
        submit_script("true")


# targets

TARGETS = """
flags = "--account=everywhere"

[targets.juwels]
wlm = "slurm"
flags = "--partition=batch --time=10"
shell = "/bin/sh"
job_directory = "/scratch/jobs"
prologue = '''
module load gcc
conda activate x'''

[targets.juwels.environment]
A = "b c"
N = 8

[targets.juwels.executor_config]
queue_polling_interval = 5
work_directory = "~/psij"

[targets.away]
wlm = "ssh"
host = "amachine"

[targets.bare]
"""


def test_a_target_has_a_backend_with_all_that_belongs_to_it(places, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    places.user(TARGETS)
    plan = submit_script("true", "-n8 -t5", target="juwels", dry_run=True)
    assert plan.script == "#!/bin/sh\ntrue\n"
    assert " --ntasks=8 --time=00:05:00 --partition=batch " in plan.command
    assert submit_file(plan).startswith("/home/me/psij/tracked-slurm/")
    assert plan.spec.arguments[1].startswith("/scratch/jobs/jobs/")
    assert "# Prologue\nmodule load gcc\nconda activate x\n" in str(plan)
    assert settings.choose("juwels").environment == {"A": "b c", "N": "8"}
    assert words(target="bare") == ["--account=everywhere"]


def test_the_job_itself_wins_over_its_target(places):
    places.user(TARGETS)
    plan = submit_script("#!/bin/zsh\n", wlm="local", target="juwels", dry_run=True)
    assert plan.script == "#!/bin/zsh\n"
    assert plan.command.startswith("( trap")
    assert plan.notices == ()  # its flags were meant for Slurm
    assert submit_script("true", shell="/bin/ksh", target="juwels", dry_run=True).script == "#!/bin/ksh\ntrue\n"


def test_a_target_wins_over_all_that_is_set_for_every_job(places, monkeypatch):
    places.user(TARGETS)
    monkeypatch.setenv("EXECUTE_JOB_DIRECTORY", "/of/environment")
    config = BatchSchedulerExecutorConfig()
    places.program(
        wlm="local", flags="--qos=program", shell="/bin/ksh", job_directory="/program", executor_config=config
    )
    places.original(wlm="ssh", flags="--qos=original")
    choice = settings.choose("juwels")
    assert (choice.wlm, choice.shell, choice.root) == ("slurm", "/bin/sh", "/scratch/jobs")
    assert choice.executor_config["queue_polling_interval"] == 5
    assert words(target="juwels") == ["--time=00:10:00", "--partition=batch"]
    assert settings.choose("bare").executor_config is config


def test_a_target_of_two_files_is_one(places):
    places.site("[targets.a]\nwlm = 'slurm'\nflags = '--qos=site'\n[targets.b]\n")
    places.user("[targets.a]\nflags = '--qos=user'\n[targets.c]\n")
    choice = settings.choose("a")
    assert choice.wlm == "slurm"
    assert words(target="a") == ["--qos=user"]
    with pytest.raises(BadUsage, match="there is no target 'd'; there are a, b, c"):
        submit_script("true", target="d")


def test_without_targets_that_is_said():
    with pytest.raises(BadUsage, match="there is no target 'd'; no settings file has any"):
        submit_script("true", target="d")


@pytest.fixture
def amachine(monkeypatch):
    """A machine that cannot be reached."""

    def connect(address, ask=None):
        raise Unreachable(f"no way to {address}")

    monkeypatch.setattr(ssh, "connect", connect)


def test_another_machine_is_asked_for_by_its_name(places, amachine):
    places.user(TARGETS)
    for more in ({"target": "away", "wlm": "ssh"}, {"host": "amachine"}):
        with pytest.raises(BackendUnavailable, match="no way to amachine"):
            submit_script("true", **more)


def test_prologue_and_environment_reach_the_script(places):
    places.user("[targets.a]\nwlm='local'\nprologue='echo before; B=$A-; export B'\nenvironment={A='a', C='c'}\n")
    job = submit_script("echo $A $B $C", target="a", environment={"C": "mine"})
    assert job.result(60) == "before\na a- mine\n"
    assert job.stderr() == ""


def test_a_table_becomes_one_configuration_of_psij(places):
    table = {"queue_polling_interval": 5, "keep_files": True, "work_directory": "/w", "launcher_log_file": "/l"}
    config = backend.configuration(table)
    assert isinstance(config, BatchSchedulerExecutorConfig)
    assert (config.queue_polling_interval, config.keep_files) == (5, True)
    assert (config.work_directory, config.launcher_log_file) == (Path("/w"), Path("/l"))
    assert backend.configuration(dict(table)) is config
    assert backend.configuration({**table, "keep_files": False}) is not config
    assert backend.configuration(None) is None
    assert backend.configuration(config) is config


# the default backend


def test_a_login_shell_is_asked_once_where_path_has_no_sbatch(monkeypatch, tmp_path, sbatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / ".bash_profile").write_text(
        f"echo noise; echo asked >>{home}/asked; PATH={sbatch.parent}:$PATH; alias x=y\n"
    )
    sbatch.write_text("#!/bin/sh\necho $PATH\n")
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(transport, "SEARCHED_FIRST", [])
    backend._login_sbatch.cache_clear()
    try:
        assert backend.found() == "slurm"
        assert backend.find_sbatch() == str(sbatch)
        assert (home / "asked").read_text() == "asked\n"
        assert [str(sbatch.parent)] == transport.SEARCHED_FIRST
        assert transport.Local().run(["sbatch"], timeout=10).stdout == f"{sbatch.parent}:/nowhere\n"
        assert transport.Local().run(["sbatch"], timeout=10, environment={"PATH": "/x"}).exit_code == 0
        assert os.environ["PATH"] == "/nowhere"
        plan = submit_script("true", "-n8", dry_run=True)
        assert plan.command.startswith("sbatch --parsable")
    finally:
        backend._login_sbatch.cache_clear()


def test_a_login_shell_that_never_ends_is_left(monkeypatch, tmp_path):
    monkeypatch.undo()
    (tmp_path / ".bash_profile").write_text("sleep 1000\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(backend, "_LOGIN_TIMEOUT", 0.2)
    backend._login_sbatch.cache_clear()
    try:
        assert backend.find_sbatch() is None
    finally:
        backend._login_sbatch.cache_clear()


@pytest.mark.parametrize(
    ("commands", "flags", "expected"),
    [
        (["sbatch", "qsub"], "-n8", "slurm"),
        (["qsub"], "", "pbs"),
        (["bsub"], "-n8", "lsf"),
        (["flux"], "", "flux"),
        ([], "--time=3 --job-name=x --output=o", "local"),
        ([], "-n8", None),
    ],
)
def test_the_backend_where_nobody_names_one(monkeypatch, tmp_path, sbatch, commands, flags, expected):
    from execute_batch_scheduler.flags import parse

    folder = tmp_path / "commands"
    folder.mkdir()
    for command in commands:
        (folder / command).symlink_to(sbatch)
    monkeypatch.setenv("PATH", str(folder))
    parsed = parse(flags.split())
    if expected is None:
        with pytest.raises(BackendUnavailable, match=r"no scheduler is found .* --ntasks=8"):
            backend.default(parsed)
    else:
        assert backend.default(parsed) == expected


# the original's README


def test_the_lines_of_the_originals_profile(tmp_path, monkeypatch):
    """`c.InteractiveShellApp.exec_lines` as its README has them, in a real IPython."""
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "ipython_config.py").write_text(
        "c = get_config()\n"
        "c.InteractiveShellApp.exec_lines = ['import execute_cell; "
        'execute_cell._DEFAULT_LINE_CMD_ARGS="--host=amachine"; execute_cell._DEFAULT_MGR="ssh"\']\n'
    )
    code = (
        "get_ipython().run_line_magic('load_ext', 'execute_batch_scheduler.execute_magic')\n"
        "get_ipython().run_cell_magic('execute', '', 'hostname')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--profile-dir", str(tmp_path / "profile"), "--colors=NoColor", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "BackendUnavailable: " in done.stdout
    assert "amachine" in done.stdout


@pytest.mark.parametrize(
    ("lines", "wlm", "expected"),
    [
        ({"flags": "--host=amachine", "wlm": "ssh"}, None, "no way to amachine"),
        ({"flags": {"slurm": "--qos=ipythoncell", "ssh": "--host=amachine"}, "wlm": "ssh"}, None, "no way to amachine"),
        ({"flags": {"slurm": "--qos=ipythoncell", "ssh": "--host=amachine"}}, None, ["--qos=ipythoncell"]),
        ({"flags": {"slurm": "--qos=ipythoncell", "ssh": "--host=amachine"}}, "ssh", "no way to amachine"),
        ({"flags": "--qos=ipythoncell"}, None, ["--qos=ipythoncell"]),
        ({"flags": "--host=amachine", "wlm": "ssh"}, "slurm", ["--qos=installed"]),
        ({"outputs": "/scratch/out.%J"}, None, ["--output=/scratch/out.%J.out", "--error=/scratch/out.%J.err"]),
    ],
)
def test_the_originals_names(places, amachine, lines, wlm, expected):
    places.installed(wlm="slurm", flags="--qos=installed" if "outputs" not in lines else "")
    places.original(**lines)
    if isinstance(expected, str):
        with pytest.raises(BackendUnavailable, match=expected):
            submit_script("true", wlm=wlm)
    else:
        assert words(wlm=wlm) == expected


def test_the_originals_output_files_give_way_to_those_of_the_job(places):
    places.original(outputs="/scratch/out.%J")
    assert words("--output=mine") == ["--output=mine"]
    assert submit_script("true", wlm="local", dry_run=True).spec.stdout_path.name == "stdout"


def test_ipythons_configuration(places):
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    from execute_batch_scheduler.execute_magic import ExecuteMagics

    places.user(shell="/bin/ksh", on_interrupt="detach", flags="--qos=file")
    shell = InteractiveShell(config=Config({"ExecuteMagics": {"wlm": "slurm"}}))
    shell.register_magics(ExecuteMagics(shell))
    choice = settings.choose()
    assert (choice.wlm, choice.shell, choice.on_interrupt) == ("slurm", "/bin/ksh", "detach")  # what it does not say
    for flags, expected in (("'--qos=a'", "--qos=a"), ("{'slurm': '--qos=b'}", "--qos=b"), ("None", "--qos=file")):
        assert shell.run_cell(f"%config ExecuteMagics.flags = {flags}").success
        assert words() == [expected]
    assert shell.run_cell("%config ExecuteMagics.executor_config = {'work_directory': '/w'}").success
    assert submit_file(submit_script("true", dry_run=True)).startswith("/w/tracked-slurm/")
    shell.run_cell("%config ExecuteMagics.on_interrupt = 'stop'")  # IPython says what is wrong
    assert settings.choose().on_interrupt == "detach"
    assert shell.run_cell("%config ExecuteMagics.on_interrupt = 'cancel'").success
    assert settings.choose().on_interrupt == "cancel"
