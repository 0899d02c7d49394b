from __future__ import annotations

import pytest

from execute_batch_scheduler.errors import BadUsage
from execute_batch_scheduler.settings import settings
from execute_batch_scheduler.submit import submit_script, with_shell


@pytest.mark.parametrize(
    ("text", "shell", "expected"),
    [
        ("echo a\n", None, "#!/bin/bash\necho a\n"),
        ("echo a", None, "#!/bin/bash\necho a\n"),
        ("#!/bin/sh\necho a\n", None, "#!/bin/sh\necho a\n"),
        ("#!/bin/sh\necho a", None, "#!/bin/sh\necho a\n"),
        ("\n\n#!/bin/sh\necho a\n", None, "#!/bin/sh\necho a\n"),
        ("#!/bin/sh\necho a\n", "/bin/zsh", "#!/bin/zsh\necho a\n"),
        ("\n#!/bin/sh\necho a\n", "/bin/zsh", "#!/bin/zsh\necho a\n"),
        ("#SBATCH -n8\necho a\n", None, "#!/bin/bash\n#SBATCH -n8\necho a\n"),
        ("\necho a\n", None, "#!/bin/bash\n\necho a\n"),
        ("print(1)\n", "python3", "#!/usr/bin/env python3\nprint(1)\n"),
        ("print(1)\n", "python3 -u", "#!/usr/bin/env -S python3 -u\nprint(1)\n"),
        ("echo a\n", "/bin/sh -e", "#!/bin/sh -e\necho a\n"),
        ("echo a\n", "", "#!/bin/bash\necho a\n"),
        ("# no shebang: #!/bin/sh\n", None, "#!/bin/bash\n# no shebang: #!/bin/sh\n"),
        ("#!/bin/sh", "/bin/zsh", "#!/bin/zsh\n\n"),
    ],
)
def test_the_shell_asked_for_counts_before_the_scripts_own_and_that_before_the_settings(text, shell, expected):
    assert with_shell(text, shell) == expected


def test_the_settings_shell_is_the_last_resort(monkeypatch):
    monkeypatch.setattr(settings, "shell", "/bin/sh")
    assert with_shell("echo a\n", None) == "#!/bin/sh\necho a\n"
    assert with_shell("#!/bin/zsh\n", None) == "#!/bin/zsh\n"
    assert with_shell("echo a\n", "/bin/ksh") == "#!/bin/ksh\necho a\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the script is empty"),
        (" \n\t\n", "the script is empty"),
        ("echo a\r\n", "DOS line ends"),
        ("echo \0\n", "NUL byte"),
    ],
)
def test_what_no_scheduler_takes_is_refused(text, message):
    with pytest.raises(BadUsage, match=message):
        with_shell(text, None)


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("true", {"environment": {"A": 1}}, "A must be a text without NUL bytes"),
        ("true", {"environment": {"A": "a\0b"}}, "A must be a text without NUL bytes"),
        ("echo \ud800", {}, "the script holds '.*', which is no character"),
        ("true", {"flags": ["--job-name=a\0b"]}, "holds a NUL byte"),
        ("true", {"flags": ["--output=a\nb"]}, "holds a tab or a line's end"),
        ("true", {"flags": ["--error=a\tb"]}, "holds a tab or a line's end"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_made(script, options, message, job_root):
    with pytest.raises(BadUsage, match=message):
        submit_script(script, wlm="local", **options)
    assert not job_root.exists()


def test_a_long_word_is_a_script_and_no_file():
    job = submit_script("a" * 5000, wlm="local", dry_run=True)
    assert "a" * 5000 in job.script
