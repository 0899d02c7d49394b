"""Real installations, in environments of their own, and the defaults that are chosen with them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUPTOOLS = ["setuptools==65.*" if sys.version_info < (3, 12) else "setuptools==68.*", "setuptools"]
TABLE = {"slurm": "--qos=ipythoncell", "ssh": "--host=amachine"}
NONE = {"wlm": None, "flags": []}
CHECK = """
import json, psij
by_search = "tracked-slurm" in psij.JobExecutor.get_executor_names()
import execute_batch_scheduler.adapters.process, execute_batch_scheduler.execute_magic, execute_cell
from execute_batch_scheduler.settings import settings
assert psij.JobExecutor.get_executor_names() >= {"tracked-slurm", "process"}
choice = settings.choose()
print(json.dumps({
    "search": by_search,
    "home": execute_batch_scheduler.adapters.process.__file__,
    "said": {"wlm": choice.wlm, "flags": [flags.value for flags in choice.flags]},
}))
"""


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "EXECUTE_CONFIG")}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**clean, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def well(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of what there is now, so that builds do not meet in the real one."""
    path = tmp_path_factory.mktemp("checkout")
    files = well(run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT)).split("\0")
    for name in filter(None, files):
        if (ROOT / name).exists():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes((ROOT / name).read_bytes())
    well(run("git", "init", "-q", cwd=path))
    well(run("git", "add", "-A", cwd=path))
    well(run("git", "-c", "user.name=n", "-c", "user.email=n@n", "commit", "-q", "-m", "all", cwd=path))
    return path


@pytest.fixture(scope="session")
def dependencies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What this environment has installed, without our own package."""
    path = tmp_path_factory.mktemp("dependencies")
    ours = ("execute_", "ipython_batch", "__editable__", "__pycache__", "pip", "setuptools", "_distutils", "distutils")
    for file in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if file.name == "psij-descriptors":
            (path / file.name).mkdir()
            for one in file.glob("*.py"):
                if not one.name.startswith("execute_"):
                    (path / file.name / one.name).symlink_to(one)
        elif not file.name.startswith(ours):
            (path / file.name).symlink_to(file)
    return path


class Venv:
    """A fresh environment."""

    def __init__(self, path: Path, home: Path, dependencies: Path) -> None:
        self.path, self.home, self.dependencies = path, home, dependencies
        well(run(sys.executable, "-m", "venv", "--without-pip", path, cwd=home))
        self.python = path / "bin" / "python"

    def pip(self, command: str, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        return run(sys.executable, "-m", "pip", "--python", self.python, command, "-q", *words, cwd=cwd)

    def check(self) -> dict[str, object]:
        """What the installed package says, from outside the checkout."""
        site = well(
            run(self.python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=self.home)
        ).strip()
        (Path(site) / "dependencies.pth").write_text(f"{self.dependencies}\n")
        found: dict[str, object] = json.loads(
            well(run(self.python, "-W", "error", "-c", CHECK, cwd=self.home, HOME=str(self.home)))
        )
        return found


@pytest.fixture
def venv(tmp_path: Path, dependencies: Path) -> Venv:
    home = tmp_path / "home"
    home.mkdir()
    return Venv(tmp_path / "venv", home, dependencies)


@pytest.fixture(autouse=True)
def untouched(checkout: Path):  # type: ignore[no-untyped-def]
    """Whatever is installed, the checkout stays as it is."""
    yield
    assert well(run("git", "status", "--porcelain", cwd=checkout)) == ""
    assert [path for path in checkout.rglob("execute_batch_scheduler_defaults.py") if "build" not in path.parts] == []


def options(wlm: str, flags: str, mark: str = "") -> list[str]:
    settings = [f"workloadmanager={wlm}", f"workloadmanagercmdargs={flags}"]
    return [f"--{one}" for one in settings] if mark == "--" else [word for one in settings for word in ("-C", one)]


@pytest.mark.parametrize("setuptools", SETUPTOOLS)
def test_pip_install(venv: Venv, checkout: Path, setuptools: str) -> None:
    well(venv.pip("install", setuptools, "wheel", cwd=venv.home))
    words = ("--no-deps", "--no-build-isolation", "--force-reinstall", ".")
    well(venv.pip("install", *words, *options("slurm", "--qos=x"), cwd=checkout))
    found = venv.check()
    assert found["said"] == {"wlm": "slurm", "flags": ["--qos=x"]}
    assert found["search"]
    assert str(found["home"]).startswith(str(venv.path))
    # and the next installation, without options, has none, whatever lies in the build directory
    well(venv.pip("install", *words, cwd=checkout))
    assert venv.check()["said"] == NONE


@pytest.mark.parametrize("setuptools", SETUPTOOLS)
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (["--workloadmanager=slurm"], {"wlm": "slurm", "flags": []}),
        (["--workloadmanagercmdargs=--qos=ipythoncell"], {"wlm": None, "flags": ["--qos=ipythoncell"]}),
        (options("slurm", json.dumps(TABLE), "--"), {"wlm": "slurm", "flags": [TABLE]}),
        ([], NONE),
    ],
)
def test_setup_py_install_as_the_original_has_it(
    venv: Venv, checkout: Path, setuptools: str, said: list[str], expected: dict[str, object]
) -> None:
    well(venv.pip("install", setuptools, "wheel", cwd=venv.home))
    out = well(run(venv.python, "setup.py", "install", *said, cwd=checkout))
    assert "python -m pip install 'psij-python" in out  # what is missing is said
    found = venv.check()
    assert found["said"] == expected
    assert found["search"]
    assert str(found["home"]).startswith(str(venv.path))


@pytest.mark.parametrize("setuptools", SETUPTOOLS)
def test_a_wheel_from_an_sdist(venv: Venv, checkout: Path, tmp_path: Path, setuptools: str) -> None:
    well(venv.pip("install", setuptools, "wheel", cwd=venv.home))
    hook = "import sys; sys.path.insert(0, 'build_tools'); import execute_build; execute_build.build_sdist(sys.argv[1])"
    well(run(venv.python, "-c", hook, tmp_path, cwd=checkout))
    (sdist,) = tmp_path.glob("*.tar.gz")
    words = ("--no-deps", "--no-build-isolation", "-w", tmp_path, sdist)
    well(venv.pip("wheel", *words, *options("slurm", json.dumps(TABLE)), cwd=venv.home))
    (wheel,) = tmp_path.glob("*.whl")
    well(venv.pip("install", "--no-deps", wheel, cwd=venv.home))
    found = venv.check()
    assert found["said"] == {"wlm": "slurm", "flags": [TABLE]}
    assert found["search"]


@pytest.mark.parametrize("setuptools", SETUPTOOLS)
def test_an_editable_installation(venv: Venv, checkout: Path, setuptools: str) -> None:
    well(venv.pip("install", setuptools, "wheel", cwd=venv.home))
    words = ("--no-deps", "--no-build-isolation", "-e", ".")
    well(venv.pip("install", *words, *options("slurm", "--qos=x"), cwd=checkout))
    found = venv.check()
    assert found["said"] == {"wlm": "slurm", "flags": ["--qos=x"]}
    assert found["home"] == str(checkout / "adapters" / "process.py")
    well(venv.pip("uninstall", "-y", "ipython-batch-scheduler-magic", cwd=venv.home))
    assert not list(venv.path.rglob("execute_batch_scheduler_defaults*"))


def test_pip_install_with_a_build_environment_of_its_own(venv: Venv, checkout: Path) -> None:
    well(venv.pip("install", "--no-deps", ".", *options("local", "--time=5"), cwd=checkout))
    assert venv.check()["said"] == {"wlm": "local", "flags": ["--time=5"]}


def test_a_bad_value_ends_the_installation_with_a_clear_error(venv: Venv, checkout: Path) -> None:
    done = venv.pip("install", "--no-deps", ".", "-C", "workloadmanagercmdargs={'slurm': '--qos=x'}", cwd=checkout)
    assert done.returncode != 0
    assert "is no JSON" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


# what the options may hold


@pytest.fixture(scope="session")
def build():  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location("execute_build", ROOT / "build_tools" / "execute_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        (None, None, {}),
        ("slurm", None, {"wlm": "slurm"}),
        ("psij:lsf", "", {"wlm": "psij:lsf", "flags": ""}),
        (None, "--qos=x -n8", {"flags": "--qos=x -n8"}),
        (None, json.dumps(TABLE), {"flags": TABLE}),
        (None, "{}", {"flags": {}}),
    ],
)
def test_options_that_can_be(build, name, flags, expected) -> None:  # type: ignore[no-untyped-def]
    assert build.defaults(name, flags) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workloadmanager": ""}, "must be the name of a backend"),
        ({"workloadmanager": "a b"}, "must be the name of a backend"),
        ({"workloadmanager": ["slurm", "ssh"]}, "must be the name of a backend"),
        ({"workloadmanagr": "slurm"}, "unknown setting workloadmanagr; there are workloadmanager, workloadmanager"),
        ({"workloadmanagercmdargs": ["--qos=x", "--qos=y"]}, "must be given once"),
        ({"workloadmanagercmdargs": "qos"}, "flags begin with a dash"),
        ({"workloadmanagercmdargs": "--comment='x"}, "No closing quotation"),
        ({"workloadmanagercmdargs": "{'slurm': '--qos=x'}"}, "is no JSON"),
        ({"workloadmanagercmdargs": "__import__('os').abort()"}, "flags begin with a dash"),
        ({"workloadmanagercmdargs": "[1]"}, "must be flags, or JSON"),
        ({"workloadmanagercmdargs": '{"slurm": 8}'}, "must be flags, or JSON"),
        ({"workloadmanagercmdargs": '{"slurm": "qos"}'}, "flags begin with a dash"),
    ],
)
def test_options_that_cannot_be(build, options, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit, match=message):
        build.choose(options)
