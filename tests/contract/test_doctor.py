"""``python -m execute_batch_scheduler doctor``: what it finds, and what it says to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from execute_batch_scheduler import doctor
from tests.services import sshd as sshd_service
from tests.services.sshd import Sshd


def findings(submit: bool = False) -> dict[str, bool]:
    return {text: good for good, text in doctor.examine(submit)}


def test_a_machine_without_a_scheduler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for command in ("bash", "ps", "hostname", "setsid"):
        (tmp_path / command).symlink_to(str(shutil.which(command)))
    monkeypatch.setenv("PATH", str(tmp_path))
    found = findings()
    assert all(found.values())
    assert "no scheduler is found: cells run on this machine (--wlm=local)" in found
    assert any("psij-python 0.9" in text for text in found)


def test_slurm_with_a_small_job(slurm: Any, job_root: Path) -> None:
    found = findings(submit=True)
    assert all(found.values()), found
    texts = "\n".join(found)
    assert re.search(r"slurm: /\S+/sbatch, slurm\S* \d+\.\d+", texts)
    assert re.search(r"slurm: Slurmctld\(primary\) at \S+ is UP", texts)
    assert re.search(
        r"a small job \(<Job \d+ slurm COMPLETED exit code 0>\) ran on sn\d, which sees the job directory", texts
    )
    assert f"job directory {job_root} can be written" in texts


def test_a_controller_that_is_down(slurm: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    conf = re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=9", Path(os.environ["SLURM_CONF"]).read_text())
    (tmp_path / "slurm.conf").write_text(conf.replace("MessageTimeout=3", "MessageTimeout=1"))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    bad = [text for text, good in findings().items() if not good]
    assert len(bad) == 1
    assert bad[0].startswith("slurm: Slurmctld(primary) at ")
    assert bad[0].endswith(" is DOWN; until it is up again --wlm=local runs jobs on this machine")


def test_a_job_directory_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXECUTE_JOB_DIRECTORY", "/proc/nowhere")
    bad = [text for text, good in findings().items() if not good and "job directory" in text]
    assert bad == [
        "job directory /proc/nowhere: No such file or directory; set job_directory or $EXECUTE_JOB_DIRECTORY to another"
    ]


def test_the_settings_in_force(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site, user = tmp_path / "site.toml", tmp_path / "user.toml"
    monkeypatch.setenv("EXECUTE_SITE_CONFIG", str(site))
    monkeypatch.setenv("EXECUTE_CONFIG", str(user))
    site.write_text("wlm = 'local'\nflags = {slurm = '--qos=site', local = '--time=60'}\n[targets.juwels]\n")
    user.write_text("flags = \"--time=5 --comment='a b'\"\n[targets.away]\nhost = 'away'\n")
    found = findings()
    assert found.keys() >= {
        f"settings, but for IPython's: {site}, {user}; targets: away, juwels",
        f"default backend: local, as {site} says",
        "default flags for local: --time=5 '--comment=a b'",
        "default flags for slurm: --qos=site",
    }
    assert all(good for text, good in found.items() if text.startswith(("default", "settings")))


def test_without_settings_the_backend_is_found(slurm: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("execute_batch_scheduler.settings._SITE_FILE", "/nowhere")
    monkeypatch.delenv("EXECUTE_SITE_CONFIG")
    found = findings()
    assert found["settings, but for IPython's: there is no file; targets: none"]
    assert found["default backend: slurm, as found on this machine"]
    assert not any(text.startswith("default flags") for text in found)


@pytest.mark.parametrize("submit", [False, True])
def test_a_settings_file_that_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, submit: bool) -> None:
    (tmp_path / "user.toml").write_text("\nwlm = 'slrum'\n")
    monkeypatch.setenv("EXECUTE_CONFIG", str(tmp_path / "user.toml"))
    (bad,) = [text for text, good in findings(submit).items() if not good and text.startswith("settings")]
    assert bad.startswith(f"settings: {tmp_path}/user.toml:2: there is no backend 'slrum'; did you mean slurm?")


def test_the_command_line(slurm: object) -> None:
    command = [sys.executable, "-m", "execute_batch_scheduler", "doctor"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert result.stdout.startswith("ok   Python 3.")
    assert "BAD" not in result.stdout
    broken = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "SLURM_CONF": "/nowhere"})
    assert broken.returncode == 1
    assert "BAD  slurm: " in broken.stdout


def test_another_machine(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SCHEDULERS", {})  # what this machine has without a configuration
    found = {text: good for good, text in doctor.examine(submit=True, host=sshd.name)}
    said = "\n".join(found)
    assert all(found.values()), said
    assert re.search(rf"{sshd.name}: reached in \d\.\d s, a round trip takes \d+ ms", said)
    assert f"{sshd.name}: all that jobs need is there" in said
    assert re.search(
        rf"{sshd.name}: job directory {sshd.home}/.execute_batch_scheduler can be written, [\d,]+ MB", said
    )
    assert re.search(r"a small job \(<Job \d+ \w+@\w+ COMPLETED exit code 0>\) ran on", said)


def test_a_cluster_behind_another_machine(slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with sshd_service.running(name="login1", environment=slurm.environment) as login:
        for name, value in login.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        monkeypatch.delenv("SLURM_CONF")
        found = {text: good for good, text in doctor.examine(submit=True, host="login1")}
    said = "\n".join(found)
    assert all(found.values()), said
    assert re.search(r"login1: slurm: /\S+/sbatch, slurm", said)
    assert "login1: cells run there by --wlm=slurm or --wlm=ssh" in said
    assert re.search(r"a small job \(<Job \d+ slurm@login1 COMPLETED exit code 0>\) ran on sn\d", said)


def test_another_machine_that_cannot_be_used(sshd: Sshd, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(submit=False, host="no.such.machine.example") == 1
    assert "BAD  no.such.machine.example: there is no machine" in capsys.readouterr().out
    assert doctor.main(submit=False, host="-oProxyCommand=x") == 1
    assert "is no host" in capsys.readouterr().out
    Path(sshd.home, ".execute_batch_scheduler").mkdir(exist_ok=True)
    Path(sshd.home, ".execute_batch_scheduler").rename(Path(sshd.home, "away"))
    Path(sshd.home, ".execute_batch_scheduler").touch()
    try:
        assert doctor.main(submit=False, host=sshd.name) == 1
        assert re.search(r"BAD  .*job directory .* cannot be written: .*File exists", capsys.readouterr().out)
    finally:
        Path(sshd.home, ".execute_batch_scheduler").unlink()
        Path(sshd.home, "away").rename(Path(sshd.home, ".execute_batch_scheduler"))
