from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from tests.testapp.guide import launch_custom_task
from tests.testapp.models import Project


class Command(BaseCommand):
    help = "Rebuilds the projects that need it, in the background."

    def handle(self, *args: Any, **options: Any) -> None:
        launch_custom_task(user=None, affected_objects=Project.objects.filter(archived=False))
