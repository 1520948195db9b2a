from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib import admin
from django.http import HttpRequest

from powercrud_dashboard.admin import BackgroundAction, BackgroundActionsMixin, background_action
from powercrud_dashboard.async_context import get_current_task
from powercrud_dashboard.async_manager import RetryPolicy
from powercrud_dashboard.exceptions import WorkerLost
from tests.faults.shop.tasks import wait_while_held
from tests.testapp.models import Project, Visit

#: Each action with the path of its function.
ACTIONS = {"work_briefly": "tasks.work_briefly", "work_while_held": "tasks.work_while_held"}
if settings.OPTIONS.get("release") == "2":
    ACTIONS["work_differently"] = "newer.work_differently"

# In the place of the test app's.
admin.site.unregister(Project)


@admin.register(Project)
class ProjectAdmin(BackgroundActionsMixin, admin.ModelAdmin):
    actions = ["count_visits"]
    background_actions = [
        BackgroundAction(
            name=name,
            description=name.replace("_", " ").capitalize(),
            permissions=["change"],
            task=f"tests.faults.shop.{path}",
        )
        for name, path in ACTIONS.items()
    ]

    @background_action(
        permissions=["change"],
        per_object=True,
        throttle=wait_while_held,
        retry=RetryPolicy(3, 0.1, retry_on=(Exception, WorkerLost)),
    )
    def count_visits(self, request: HttpRequest, project: Project) -> None:
        task: Any = get_current_task()
        Visit.objects.create(project=project.pk, task=task.task_name)
