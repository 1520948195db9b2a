"""The public API for a project's ``admin.py``. Importing it registers the task pages."""

from __future__ import annotations

from powercrud_dashboard.admin.actions import BackgroundAction
from powercrud_dashboard.admin.clicks import background_action
from powercrud_dashboard.admin.mixins import BackgroundActionsMixin
from powercrud_dashboard.admin.registrations import TaskRecordAdmin

__all__ = ["BackgroundAction", "BackgroundActionsMixin", "TaskRecordAdmin", "background_action"]
