"""Admins with background actions of every kind."""

from __future__ import annotations

import csv
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django_object_actions import DjangoObjectActions
from django_object_actions import action as object_action
from import_export.admin import ExportActionModelAdmin

from powercrud_dashboard.admin import BackgroundAction, BackgroundActionsMixin, background_action
from powercrud_dashboard.async_context import track
from tests.testapp import foreign_actions
from tests.testapp.models import Document, Project, Shelf, SpecialProject

#: The name of a project whose turn always ends in an error.
ODD = "odd"


class RenameForm(forms.Form):
    prefix = forms.CharField(max_length=10)
    count = forms.IntegerField(min_value=1, required=False)
    notes = forms.FileField(required=False)


@background_action(description="Unarchive selected projects", permissions=["change"])
def unarchive(modeladmin: Any, request: HttpRequest, queryset: QuerySet[Project]) -> int:
    return queryset.update(archived=False)


@admin.register(Project)
class ProjectAdmin(BackgroundActionsMixin, admin.ModelAdmin):
    list_display = ["name", "archived", "background_lock"]
    list_filter = ["archived"]
    list_per_page = 20
    list_max_show_all = 50
    search_fields = ["name"]
    actions = [
        "archive",
        "archive_free_ones",
        "visit",
        "visit_in_chunks",
        "rename",
        "archive_after_all",
        "peek",
        "audit",
        "names_as_csv",
        "names_as_stream",
        "archive_few_at_once",
        unarchive,
        background_action(description="Foreign count of %(verbose_name_plural)s")(foreign_actions.count_rows),
    ]
    background_actions = [
        "tests.testapp.tasks.touch_projects",
        BackgroundAction(
            name="mark_each",
            description="Mark each",
            permissions=["change"],
            task="tests.testapp.tasks.mark_project",
            per_object=True,
            form=RenameForm,
        ),
    ]

    @background_action(description="Archive selected projects", permissions=["change"])
    def archive(self, request: HttpRequest, queryset: QuerySet[Project]) -> None:
        for project in track(queryset, description="Archiving"):
            project.archived = True
            project.save()
        self.message_user(request, f"Archived by {request.user}.")

    @background_action(permissions=["change"], on_conflict="skip")
    def archive_free_ones(self, request: HttpRequest, queryset: QuerySet[Project]) -> dict[str, Any]:
        return {"archived": queryset.update(archived=True)}

    @background_action(description="Visit each", permissions=["change"], on_conflict="skip", per_object=True)
    def visit(self, request: HttpRequest, project: Project) -> None:
        project.archived = True
        project.save()
        if project.name == ODD:
            raise LookupError(f"project {project.pk} is odd")

    @background_action(permissions=["change"], per_object=True, chunk_size=2)
    def visit_in_chunks(self, request: HttpRequest, project: Project) -> None:
        self.visit.background_action.body(self, request, project)

    @background_action(permissions=["change"], form=RenameForm)
    def rename(self, request: HttpRequest, queryset: QuerySet[Project], cleaned_data: dict[str, Any]) -> dict[str, Any]:
        for project in queryset:
            project.name = f"{cleaned_data['prefix']} {project.name}"
            project.save()
        notes = cleaned_data["notes"]
        return {"count": cleaned_data["count"], "notes": notes.read().decode() if notes else ""}

    @background_action(permissions=["change"], confirm=True)
    def archive_after_all(self, request: HttpRequest, queryset: QuerySet[Project]) -> int:
        return queryset.update(archived=True)

    @background_action(permissions=["view"], conflict=False)
    def peek(self, request: HttpRequest, queryset: QuerySet[Project]) -> dict[str, Any]:
        messages.warning(request, "Only looking.")
        return {"rows": queryset.count(), "path": request.get_full_path(), "extra": request.POST.get("extra")}

    @background_action(permissions=["change"], conflict="model")
    def audit(self, request: HttpRequest, queryset: QuerySet[Project]) -> int:
        return queryset.count()

    @background_action(permissions=["view"], conflict=False)
    def names_as_csv(self, request: HttpRequest, queryset: QuerySet[Project]) -> HttpResponse:
        response = HttpResponse(content_type="text/csv")
        response["Content-Disposition"] = 'attachment; filename="names.csv"'
        csv.writer(response).writerows([project.name] for project in queryset)
        return response

    @background_action(permissions=["view"], conflict=False)
    def names_as_stream(self, request: HttpRequest, queryset: QuerySet[Project]) -> StreamingHttpResponse:
        return StreamingHttpResponse((f"{project.name}\n" for project in queryset), content_type="text/plain")

    @background_action(permissions=["change"], background_threshold=2)
    def archive_few_at_once(self, request: HttpRequest, queryset: QuerySet[Project]) -> None:
        if queryset.filter(name=ODD).exists():
            raise LookupError("one is odd")
        queryset.update(archived=True)
        self.message_user(request, "That was quick.", messages.WARNING)


@admin.register(SpecialProject)
class SpecialProjectAdmin(BackgroundActionsMixin, DjangoObjectActions, admin.ModelAdmin):
    """The same rows by their proxy, beside another package, with edits blocked by locks."""

    list_display = ["id", "name", "archived", "background_lock"]
    list_editable = ["name", "archived"]
    lock_blocks_edit = True
    actions = ["archive"]
    change_actions = ["shout"]

    @background_action(permissions=["change"])
    def archive(self, request: HttpRequest, queryset: QuerySet[SpecialProject]) -> int:
        return queryset.update(archived=True)

    @object_action(label="Shout")
    def shout(self, request: HttpRequest, obj: SpecialProject) -> None:
        self.message_user(request, obj.name.upper())


@admin.register(Shelf)
class ShelfAdmin(BackgroundActionsMixin, admin.ModelAdmin):
    """Rows of another database than that of the tasks and locks."""

    list_display = ["label", "background_lock"]
    lock_blocks_edit = True
    actions = ["fill"]

    @background_action(permissions=["change"], per_object=True)
    def fill(self, request: HttpRequest, shelf: Shelf) -> None:
        shelf.is_full = True
        shelf.save()
        if shelf.label == ODD:
            raise LookupError("an odd shelf")


@admin.register(Document)
class DocumentAdmin(BackgroundActionsMixin, ExportActionModelAdmin):
    """Keys that are no numbers, beside django-import-export, whose action runs in the background."""

    skip_export_form_from_action = True
    background_actions = [BackgroundAction(name="export_admin_action", description="", conflict=False)]
    actions = ["visit"]

    @background_action(permissions=["change"], per_object=True)
    def visit(self, request: HttpRequest, document: Document) -> None:
        """Do nothing to it."""
