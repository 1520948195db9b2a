from __future__ import annotations

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class PowercrudDashboardConfig(AppConfig):
    name = "powercrud_dashboard"
    verbose_name = _("Background tasks")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from powercrud_dashboard import checks  # noqa: F401
