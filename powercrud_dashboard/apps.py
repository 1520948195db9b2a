from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.db import connections
from django.db.models.signals import post_migrate
from django.utils.translation import gettext_lazy as _


class PowercrudDashboardConfig(AppConfig):
    name = "powercrud_dashboard"
    verbose_name = _("Background tasks")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from powercrud_dashboard import checks  # noqa: F401
        from powercrud_dashboard.worker import process  # noqa: F401

        post_migrate.connect(_ensure_search_index, sender=self)


def _ensure_search_index(*, using: str, **kwargs: Any) -> None:
    from powercrud_dashboard.models.search import ensure_index

    ensure_index(connections[using])
