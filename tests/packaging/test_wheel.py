"""What is built is whole: from the sdist, as a package index would have it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import powercrud_dashboard
from tests.services import running

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("templates", "static")
DEPENDENCIES = {"django", "django-filter", "django-htmx", "django-q2", "django-tables2"}
#: Where the Python blocks of the tutorial belong, in their order; the settings are added to the file.
FILES = ["billing/models.py", "billing/admin.py", "mysite/settings.py", "billing/admin.py", "billing/admin.py"]
#: Seconds for a command.
DEADLINE = 300

#: What is installed, and what the package and what it needs require; run with the environment's own Python.
REQUIREMENTS = """
import json, sys
from importlib.metadata import distributions, requires
sys.path.append(sys.argv[1])
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

def required(name):
    found = map(Requirement, requires(name) or ())
    return {canonicalize_name(item.name) for item in found if not item.marker or item.marker.evaluate({"extra": ""})}

needed, new = set(), {"powercrud-dashboard"}
while new:
    needed |= new
    new = set().union(*map(required, new)) - needed
own = sys.path[:-1]
installed = {canonicalize_name(found.metadata["Name"]) for found in distributions(path=own)}
print(json.dumps([sorted(required("powercrud-dashboard")), sorted(needed), sorted(installed)]))
"""


SET_UP_AND_RUN = "import django, runpy, sys; django.setup(); runpy.run_path(sys.argv[1])"


def run(*command: str, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE, **options)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(source: Path, out: Path) -> list[Path]:
    """Build the sdist, and the wheel from the sdist, as ``build`` does without options."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source), env=environment)
    return sorted(out.iterdir())


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    sdist, wheel = sorted(build(ROOT, tmp_path_factory.mktemp("dist")), key=lambda path: path.suffix)
    return {"sdist": sdist, "wheel": wheel}


@pytest.fixture(scope="module")
def shipped_files() -> list[str]:
    return run("git", "ls-files", *FOLDERS, cwd=ROOT).split()


def test_every_template_and_static_file_is_in_the_wheel(built, shipped_files):
    assert shipped_files
    names = set(zipfile.ZipFile(built["wheel"]).namelist())
    assert {f"powercrud_dashboard/{path}" for path in shipped_files} <= names
    catalogues = run("git", "ls-files", "powercrud_dashboard/locale", cwd=ROOT).split()
    assert "powercrud_dashboard/locale/de/LC_MESSAGES/django.mo" in catalogues
    assert set(catalogues) <= names
    assert {"powercrud_dashboard/py.typed", "powercrud_dashboard/migrations/0001_initial.py"} <= names
    assert not [name for name in names if name.startswith(("tests/", "templates/", "static/"))]
    assert f"powercrud_dashboard-{powercrud_dashboard.__version__}" in built["wheel"].name


def test_what_is_built_depends_on_the_source_alone(built, tmp_path):
    """Built again in another place, from files with other times, it is the same to the byte."""
    with tarfile.open(built["sdist"]) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    [source] = (tmp_path / "source").iterdir()
    for path in source.rglob("*"):
        os.utime(path)
    again = build(source, tmp_path / "dist")
    assert {path.name: path.read_bytes() for path in again} == {path.name: path.read_bytes() for path in built.values()}


class Project:
    """The project of the tutorial in a fresh environment, which has what is built and nothing of the checkout."""

    def __init__(self, folder: Path, package: Path) -> None:
        self.folder = folder
        self.python = folder / ".venv/bin/python"
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        self.environment = {**kept, "PATH": path, "DJANGO_SUPERUSER_PASSWORD": "admin", "HOME": str(folder)}
        run(sys.executable, "-m", "venv", "--without-pip", str(folder / ".venv"))
        run(
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.python),
            "install",
            "--quiet",
            "--no-compile",
            str(package),
        )

    def run(self, command: str) -> str:
        return run("bash", "-c", command, cwd=self.folder, env=self.environment)

    def follow(self, page: Path) -> None:
        """Do what the tutorial says up to the start of the cluster, with the last of its admin classes."""
        files = iter(FILES)
        for language, block in re.findall(r"```(python|console)\n(.*?)```", page.read_text(), re.S):
            if language == "python":
                path = self.folder / (name := next(files))
                path.write_text((path.read_text() if name == "mysite/settings.py" else "") + block)
                continue
            for command in re.split(r"\n(?=(?:python|django-admin|pip|source|mkdir|cd)\b)", block.strip()):
                # The environment is there, and what starts servers is done by the test.
                if not command.startswith(("mkdir", "cd ", "python3 -m venv", "source", "pip install")) and (
                    "qcluster" not in command and "runserver" not in command
                ):
                    self.run(f"{command} --noinput" if "createsuperuser" in command else command)
        assert next(files, None) is None

    @contextmanager
    def cluster(self) -> Iterator[None]:
        with (self.folder / "cluster.log").open("w") as log:
            command = [str(self.python), "manage.py", "qcluster"]
            with running(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log) as cluster:
                try:
                    yield
                finally:
                    cluster.send_signal(signal.SIGTERM)
                    cluster.wait(DEADLINE)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_the_tutorial_can_be_followed_with_what_is_built(built, kind, tmp_path):
    project = Project(tmp_path, built[kind])
    import packaging

    direct, needed, installed = json.loads(
        run(str(project.python), "-c", REQUIREMENTS, str(Path(packaging.__file__).parents[1]), cwd=tmp_path)
    )
    assert set(direct) == DEPENDENCIES
    assert installed == needed
    project.follow(ROOT / "docs/tutorial.md")
    assert "no issues" in project.run("python manage.py check --database default")
    with project.cluster():
        environment = {**project.environment, "DJANGO_SETTINGS_MODULE": "mysite.settings"}
        script = str(Path(__file__).with_name("drive.py"))
        told = run(str(project.python), "-c", SET_UP_AND_RUN, script, cwd=tmp_path, env=environment)
    assert re.fullmatch(r"\d+ pages\n", told.splitlines(keepends=True)[-1]), told
