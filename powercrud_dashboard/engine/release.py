"""The release of the project that this process runs, which is kept with each task that it launches."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.signals import setting_changed
from django.dispatch import receiver

from powercrud_dashboard.conf import SETTING_NAME, app_settings
from powercrud_dashboard.text import clean_text

logger = logging.getLogger(__name__)

#: Characters of a release.
LENGTH = 100
#: Characters of a commit, as in ``git describe``.
SHORT_COMMIT = 9


@lru_cache(maxsize=1)
def current() -> str:
    """Return ``DASHBOARD_RELEASE``, else the tag or the commit that is checked out; "" if neither is known.

    It is found out once in each process.
    """
    try:
        chosen = app_settings.DASHBOARD_RELEASE
        release = chosen() if callable(chosen) else chosen
        return clean_text(_checked_out(_project()) if release is None else release, LENGTH)
    except Exception:
        # No launch fails for it.
        logger.warning("The release of the project could not be found out", exc_info=True)
        return ""


@receiver(setting_changed)
def _forget_on_change(*, setting: str, **kwargs: Any) -> None:
    if setting == SETTING_NAME:
        current.cache_clear()


def _project() -> Path | None:
    """Return the directory of the project: ``BASE_DIR``, else that of the settings."""
    if base := getattr(settings, "BASE_DIR", None):
        return Path(base)
    module = sys.modules.get(getattr(settings, "SETTINGS_MODULE", None) or "")
    return Path(module.__file__).parent if module is not None and module.__file__ else None


def _checked_out(project: Path | None) -> str:
    """Return the tag of the checked-out commit, or else the short commit.

    The files of git are read: its program may be missing, takes longer, and refuses the checkout of another user.
    """
    if project is None:
        return ""
    inside = (directory / ".git" for directory in (project.resolve(), *project.resolve().parents))
    found = next((path for path in inside if path.exists()), None)
    if found is None:
        return ""
    # In a worktree or a submodule it is a file that names the directory.
    own = found if found.is_dir() else (found.parent / found.read_text().partition("gitdir:")[2].strip())
    common = own / "commondir"
    shared = own / common.read_text().strip() if common.exists() else own
    head = (own / "HEAD").read_text().strip()
    refs = dict(_refs(shared))
    name = head.removeprefix("ref: ")
    commit = refs.get(name, "") if head.startswith("ref: ") else head
    tags = sorted(ref for ref, target in refs.items() if ref.startswith("refs/tags/") and target == commit)
    return tags[-1].removeprefix("refs/tags/") if tags and commit else commit[:SHORT_COMMIT]


def _refs(directory: Path) -> Iterator[tuple[str, str]]:
    """Return the commit of each branch and tag; a loose one replaces a packed one of its name."""
    packed, name = directory / "packed-refs", ""
    for line in packed.read_text().splitlines() if packed.exists() else ():
        if line.startswith("^"):
            # The commit of the annotated tag in the line before.
            yield name, line[1:]
        elif not line.startswith("#"):
            commit, _space, name = line.partition(" ")
            yield name, commit
    for kind in ("heads", "tags"):
        for path in (directory / "refs" / kind).rglob("*"):
            if path.is_file():
                yield path.relative_to(directory).as_posix(), path.read_text().strip()
