from __future__ import annotations

from django.apps import AppConfig


class NeighboursConfig(AppConfig):
    name = "tests.neighbours"
    default_auto_field = "django.db.models.BigAutoField"
