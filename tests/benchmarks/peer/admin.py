from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from powercrud_dashboard.admin import BackgroundActionsMixin, background_action
from tests.benchmarks.peer.models import PeerRecord


@admin.register(PeerRecord)
class PeerRecordAdmin(BackgroundActionsMixin, admin.ModelAdmin):
    """The peer's records as a plain changelist; an action of ours is run on all of them."""

    list_display = ["task_name", "status", "message", "user_label", "created_at", "completed_at"]
    # As many rows as our list has.
    list_per_page = 50
    actions = ["touch"]

    @background_action(permissions=["change"])
    def touch(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        queryset.count()
