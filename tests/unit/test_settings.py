from __future__ import annotations

import pytest

from execute_batch_scheduler.settings import Settings


@pytest.mark.parametrize(
    ("job_directory", "variable", "root"),
    [
        (None, None, "/home/me/.execute_batch_scheduler"),
        (None, "", "/home/me/.execute_batch_scheduler"),
        (None, "/scratch/jobs", "/scratch/jobs"),
        ("/mine", "/scratch/jobs", "/mine"),
        ("~/jobs", None, "/home/me/jobs"),
        ("/a/../b/", None, "/b"),
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


def test_settings_count_from_when_they_are_set():
    settings = Settings()
    assert (settings.wlm, settings.shell) == (None, "/bin/bash")
    settings.job_directory = "/later"
    assert settings.root == "/later"
