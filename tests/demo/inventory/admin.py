from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from powercrud_dashboard.admin import BackgroundAction, BackgroundActionsMixin, background_action
from powercrud_dashboard.async_context import track
from tests.demo.inventory import library
from tests.demo.inventory.models import SourceFile


@admin.register(SourceFile)
class SourceFileAdmin(BackgroundActionsMixin, admin.ModelAdmin):
    list_display = ["path", "size", "short_checksum", "lines", "definitions", "checked_at"]
    search_fields = ["path"]
    list_per_page = 50
    actions = ["recompute_checksums"]
    background_actions = [
        BackgroundAction(
            name="parse_and_count",
            description="Parse and count definitions",
            permissions=["change"],
            task="tests.demo.inventory.tasks.parse_and_count",
        ),
        BackgroundAction(
            name="stretch_checksums",
            description="Stretch checksums (slow)",
            permissions=["change"],
            on_conflict="skip",
            task="tests.demo.inventory.tasks.stretch_checksums",
        ),
    ]

    @admin.display(description="SHA-256")
    def short_checksum(self, file: SourceFile) -> str:
        return file.sha256[:12]

    @background_action(description="Recompute checksums", permissions=["change"])
    def recompute_checksums(self, request: HttpRequest, queryset: QuerySet[SourceFile]) -> dict[str, int]:
        """Read every byte of the selected files."""
        changed = 0
        for file in track(queryset, description="Reading"):
            fresh = library.checksum(file.path)
            changed += fresh != file.sha256
            file.sha256, file.checked_at = fresh, timezone.now()
            file.save(update_fields=["sha256", "checked_at"])
        self.message_user(request, f"{changed} checksums changed.")
        return {"changed": changed}
