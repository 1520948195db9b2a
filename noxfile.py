"""The matrix: a part of the tests on each Python, Django, database and broker, and with the oldest dependencies.

``make matrix`` runs it. ``nox --list`` names the sessions; ``nox -s "tests(python='3.13', django='6.1')"`` runs one.
Arguments after ``--`` replace the part: ``nox -s oldest -- tests``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.download_python = "never"
# Those that are missing are named, and skipped, unless they must be there (as PCRUD_REQUIRE_SERVICES says of servers).
nox.options.error_on_missing_interpreters = bool(os.environ.get("PCRUD_REQUIRE_SERVICES"))

PROJECT = nox.project.load_toml("pyproject.toml")["project"]
PYTHONS = [item.rpartition(" ")[2] for item in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", item)]
DJANGOS = [item.rpartition(" ")[2] for item in PROJECT["classifiers"] if re.search(r"Django :: \d+\.\d+$", item)]
#: The first Python that a Django runs on, where that is not the first of ours.
FIRST_PYTHONS = {"6.0": "3.12", "6.1": "3.12"}

#: What depends on Django and on the other dependencies.
PART = [
    "tests/unit/test_background_actions.py",
    "tests/unit/test_checks.py",
    "tests/unit/test_django_tasks.py",
    "tests/unit/test_django_tasks_options.py",
    "tests/unit/test_filters.py",
    "tests/unit/test_launch.py",
    "tests/unit/test_lock_and_cluster_pages.py",
    "tests/unit/test_pages.py",
    "tests/unit/test_refresh.py",
    "tests/integration/test_cluster.py",
]
#: What depends on the database and on the broker.
OF_DATABASES = ["tests/unit/test_locks.py", "tests/integration/test_cluster.py"]
SETTINGS = ["sqlite_redis", "postgresql", "postgresql_redis"]

if shutil.which("pyenv"):
    # Otherwise its commands are there for all Pythons, and run only those that are chosen.
    found = [subprocess.run(["pyenv", "latest", version], capture_output=True, text=True) for version in PYTHONS]
    os.environ["PYENV_VERSION"] = ":".join(done.stdout.strip() for done in found if done.returncode == 0)


def oldest_dependencies() -> list[str]:
    """Return the dependencies with the versions that pyproject.toml begins with."""
    return [re.sub(r">=([\d.]+).*", r"==\1", dependency) for dependency in PROJECT["dependencies"]]


def install(session: nox.Session, *requirements: str) -> None:
    session.install("--upgrade", "pip>=25.1")
    session.install("--editable", ".", "--group", "test", *requirements)
    session.run("python", "-m", "pip", "list", "--format", "freeze", "--exclude-editable", silent=True)


def run_tests(session: nox.Session, settings: str, tests: list[str]) -> None:
    """Run tests; warnings are errors, as pytest's settings say."""
    # Other tests look at the messages in the table of the ORM broker.
    chosen = ["-m", "cluster and not faults"] if settings.endswith("redis") else []
    command = ["pytest", "-q", "--numprocesses", "2", "--ds", f"tests.settings.{settings}", *chosen, *tests]
    # 5: none of the chosen tests is about clusters.
    session.run(*command, success_codes=[0, 5] if chosen else [0])


@nox.session
@nox.parametrize(
    ("python", "django"),
    [
        (python, django)
        for django in DJANGOS
        for python in PYTHONS
        if PYTHONS.index(python) >= PYTHONS.index(FIRST_PYTHONS.get(django, PYTHONS[0]))
    ],
)
def tests(session: nox.Session, django: str) -> None:
    """A part of the tests with the newest dependencies, on both databases with both brokers."""
    install(session, f"django~={django}.0")
    run_tests(session, "sqlite", session.posargs or PART)
    for settings in SETTINGS:
        run_tests(session, settings, session.posargs or OF_DATABASES)


@nox.session(python=PYTHONS[0])
def oldest(session: nox.Session) -> None:
    """The same part with the oldest dependencies that pyproject.toml allows."""
    install(session, *oldest_dependencies())
    run_tests(session, "sqlite", session.posargs or PART)
