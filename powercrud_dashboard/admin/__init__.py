"""What a project's ``admin.py`` imports; importing it also registers the task pages."""

from __future__ import annotations

from powercrud_dashboard.admin import registrations  # noqa: F401
from powercrud_dashboard.admin.actions import BackgroundAction, background_action
from powercrud_dashboard.admin.mixins import BackgroundActionsMixin

__all__ = ["BackgroundAction", "BackgroundActionsMixin", "background_action"]
