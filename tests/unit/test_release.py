"""The release of the project that each task is kept with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from powercrud_dashboard.engine import release
from tests.testapp import tasks


@pytest.fixture
def project(tmp_path: Path, settings) -> Path:
    """A project whose tasks tell the release of this directory."""
    settings.BASE_DIR = tmp_path / "site"
    settings.BASE_DIR.mkdir()
    settings.POWERCRUD_SETTINGS = {}
    yield settings.BASE_DIR
    release.current.cache_clear()


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(directory: Path) -> str:
    git(directory, "init")
    git(directory, "commit", "--allow-empty", "--message", "first")
    return git(directory, "rev-parse", "HEAD")


def test_no_repository_is_no_release(project):
    assert release.current() == ""


def test_the_short_commit_is_the_release(project):
    first = commit(project.parent)
    assert release.current() == first[:9]


def test_a_tag_of_the_commit_is_the_release(project):
    commit(project)
    git(project, "tag", "v1.4")
    assert release.current() == "v1.4"


def test_a_packed_annotated_tag_is_the_release(project):
    commit(project)
    git(project, "tag", "--annotate", "v1.5", "--message", "release")
    git(project, "pack-refs", "--all")
    assert release.current() == "v1.5"


def test_a_later_commit_has_the_tag_no_more(project):
    commit(project)
    git(project, "tag", "v1.4")
    git(project, "commit", "--allow-empty", "--message", "second")
    assert release.current() == git(project, "rev-parse", "HEAD")[:9]


def test_a_detached_commit_is_the_release(project):
    first = commit(project)
    git(project, "checkout", "--detach")
    assert release.current() == first[:9]


def test_a_worktree_has_its_own_commit(project):
    commit(project)
    git(project, "worktree", "add", "-b", "other", str(project.parent / "tree"))
    git(project.parent / "tree", "commit", "--allow-empty", "--message", "second")
    from django.conf import settings

    settings.BASE_DIR = project.parent / "tree"
    assert release.current() == git(project.parent / "tree", "rev-parse", "HEAD")[:9]


def test_an_unreadable_repository_is_no_release(project):
    (project / ".git").mkdir()
    assert release.current() == ""


@pytest.mark.parametrize(
    ("chosen", "kept"),
    [("2026.11", "2026.11"), ("", ""), (lambda: "built", "built"), ("x" * 200, "x" * 92 + " … (cut)")],
)
@pytest.mark.django_db
def test_a_task_is_kept_with_the_chosen_release(manager, record_of, settings, chosen, kept):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RELEASE": chosen}
    assert record_of(manager.launch_async_task(tasks.add, 1)).release == kept


@pytest.mark.django_db
def test_a_callable_is_called_once_and_its_error_refuses_no_launch(manager, record_of, settings):
    calls = []

    def broken() -> str:
        calls.append(1)
        raise OSError("no file")

    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RELEASE": broken}
    for _ in range(2):
        assert record_of(manager.launch_async_task(tasks.add, 1)).release == ""
    assert len(calls) == 1


@pytest.mark.django_db
def test_a_retry_has_the_release_that_retries(manager, record_of, settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RELEASE": "1"}
    with pytest.raises(ValueError, match="it broke"):
        manager.launch_async_task(tasks.fail, task_key="first", sync=True)
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RELEASE": "2"}
    assert record_of(manager.retry_task("first")).release == "2"
    assert record_of("first").release == "1"
