"""What is built is whole: from the sdist, as a package index would have it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import powercrud_dashboard

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("templates", "static")

SMOKE = """
import sys
import django
from pathlib import Path
from django.conf import settings

apps = "admin auth contenttypes sessions messages staticfiles"
settings.configure(
    SECRET_KEY="x",
    INSTALLED_APPS=[f"django.contrib.{name}" for name in apps.split()]
    + ["django_q", "django_htmx", "django_tables2", "django_filters", "powercrud_dashboard"],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    STATIC_URL="static/",
    Q_CLUSTER={"orm": "default", "timeout": 60, "retry": 90},
)
django.setup()
from django.contrib.staticfiles import finders
from django.core.management import call_command, get_commands
from django.template.loader import get_template
import powercrud_dashboard

root = Path(sys.argv[1])
assert Path(powercrud_dashboard.__file__).is_relative_to(root), powercrud_dashboard.__file__
for path in sys.argv[2:]:
    folder, __, name = path.partition("/")
    origin = get_template(name).origin.name if folder == "templates" else finders.find(name)
    assert Path(origin).is_relative_to(root), (path, origin)
assert {"pcrud_cleanup_async", "pcrud_schedule_cleanup"} <= set(get_commands())
call_command("migrate", verbosity=0)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    # Without options, build makes the wheel from the sdist that it has made before.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def shipped_files() -> list[str]:
    files = subprocess.run(["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=True)
    return files.stdout.split()


def test_every_template_and_static_file_is_in_the_wheel(wheel, shipped_files):
    assert shipped_files
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"powercrud_dashboard/{path}" for path in shipped_files} <= names
    assert "powercrud_dashboard/locale/de/LC_MESSAGES/django.mo" in names
    assert {"powercrud_dashboard/py.typed", "powercrud_dashboard/migrations/0001_initial.py"} <= names
    assert not [name for name in names if name.startswith(("tests/", "templates/", "static/"))]
    assert f"powercrud_dashboard-{powercrud_dashboard.__version__}" in wheel.name


def test_an_installed_wheel_works_without_the_checkout(wheel, shipped_files, tmp_path):
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True)
    done = subprocess.run(
        [sys.executable, "-c", SMOKE, str(target), *shipped_files],
        cwd=tmp_path,
        env={"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
