from __future__ import annotations

import csv
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from powercrud_dashboard.admin import BackgroundAction, BackgroundActionsMixin, background_action
from powercrud_dashboard.async_context import track
from tests.demo.inventory import library
from tests.demo.inventory.models import SourceFile

if settings.THEME == "unfold":
    from unfold.admin import ModelAdmin
else:
    from django.contrib.admin import ModelAdmin


class ListForm(forms.Form):
    separator = forms.ChoiceField(choices=[(";", "Semicolon"), (",", "Comma"), ("\t", "Tab")])
    order = forms.ChoiceField(choices=[("path", "By path"), ("-size", "By size, the largest first")])


@admin.register(SourceFile)
class SourceFileAdmin(BackgroundActionsMixin, ModelAdmin):
    list_display = ["path", "background_lock", "size", "short_checksum", "lines", "definitions", "checked_at"]
    search_fields = ["path"]
    list_per_page = 50
    lock_blocks_edit = True
    actions = ["recompute_checksums", "count_each", "list_as_csv"]
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
        BackgroundAction(
            name="stretch_in_parallel",
            description="Stretch checksums (in parallel)",
            permissions=["change"],
            chunk_size=25,
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

    @background_action(description="Count definitions, file by file", permissions=["change"], per_object=True)
    def count_each(self, request: HttpRequest, file: SourceFile) -> None:
        """Those that do not parse fail by themselves; the others go on."""
        found = library.count(file.path)
        file.lines, file.definitions, file.checked_at = found.lines, found.definitions, timezone.now()
        file.save(update_fields=["lines", "definitions", "checked_at"])

    @background_action(description="List as CSV", permissions=["view"], conflict=False, form=ListForm)
    def list_as_csv(
        self, request: HttpRequest, queryset: QuerySet[SourceFile], cleaned_data: dict[str, Any]
    ) -> HttpResponse:
        """The file is kept with the task, to be downloaded from its page."""
        response = HttpResponse(
            content_type="text/csv", headers={"Content-Disposition": "attachment; filename=files.csv"}
        )
        writer = csv.writer(response, delimiter=cleaned_data["separator"])
        rows = queryset.order_by(cleaned_data["order"]).values_list("path", "size", "lines", "definitions")
        writer.writerows(track(rows, description="Writing"))
        return response
