"""Releases that follow this one: each writes specs of a higher version, which older ones must leave alone."""

from __future__ import annotations

from powercrud_dashboard.engine import spec

_VERSION = spec.VERSION


def use(releases_later: int) -> None:
    """Let this process be of a release that comes so many releases after this one."""
    spec.VERSION = _VERSION + releases_later
