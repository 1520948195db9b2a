from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import Any

import django
from django.apps import AppConfig, apps
from django.db import connections
from django.db.models.signals import post_migrate
from django.utils.translation import gettext_lazy as _


class PowercrudDashboardConfig(AppConfig):
    name = "powercrud_dashboard"
    verbose_name = _("Background tasks")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from powercrud_dashboard import checks, schedule_checks, schedules  # noqa: F401
        from powercrud_dashboard.worker import observe as plain_tasks
        from powercrud_dashboard.worker import process  # noqa: F401

        if apps.is_installed("powercrud"):
            # A version of it that the bridge was not made for is no error unless the bridge is used; a check tells.
            with suppress(ImportError):
                import_module("powercrud_dashboard.contrib.powercrud")
        if framework_is_there():
            from powercrud_dashboard.contrib.django_tasks import observe

            observe.connect()
        schedules.connect()
        plain_tasks.connect()
        post_migrate.connect(_ensure_search_index, sender=self)
        post_migrate.connect(schedules.sync_after_migrate, sender=self)


def framework_is_there() -> bool:
    """Return whether tasks of Django's tasks framework can be enqueued: with Django 6, or the app of the backport."""
    return django.VERSION >= (6, 0) or apps.is_installed("django_tasks")


def _ensure_search_index(*, using: str, **kwargs: Any) -> None:
    from powercrud_dashboard.models.search import ensure_index

    ensure_index(connections[using])
