"""Admins with background actions of every kind."""

from __future__ import annotations

import csv
import os
import time
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ActionForm
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse, StreamingHttpResponse
from django.middleware.csrf import get_token
from django.shortcuts import render
from django.template.response import TemplateResponse
from django_object_actions import DjangoObjectActions
from django_object_actions import action as object_action
from import_export.admin import ExportActionModelAdmin

from powercrud_dashboard.admin import BackgroundAction, BackgroundActionsMixin, background_action
from powercrud_dashboard.async_context import get_current_task, track
from powercrud_dashboard.async_manager import RetryPolicy
from powercrud_dashboard.exceptions import WorkerLost
from tests.testapp import foreign_actions
from tests.testapp.models import Country, Document, OrdinaryProject, Project, Shelf, SpecialProject, Visit

#: The name of a project whose turn always ends in an error.
ODD = "odd"

#: Seconds that a visit takes beside its statements.
VISIT_TAKES = float(os.environ.get("PCRUD_VISIT_TAKES", "0"))

#: Errors, the time limit, and lost workers.
EVERYTHING = (Exception, WorkerLost)


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
        "archive_after_adding",
        "archive_free_ones",
        "visit",
        "visit_in_chunks",
        "count_visits",
        "visit_free_in_chunks",
        "rename",
        "annotate_in_chunks",
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

    #: A default filter.
    default_search = ""

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if self.default_search and "q" not in request.GET:
            request.GET = request.GET.copy()  # type: ignore[assignment]
            request.GET["q"] = self.default_search
        return super().changelist_view(request, extra_context)

    @background_action(description="Archive selected projects", permissions=["change"])
    def archive(self, request: HttpRequest, queryset: QuerySet[Project]) -> None:
        for project in track(queryset, description="Archiving"):
            project.archived = True
            project.save()
        self.message_user(request, f"Archived by {request.user}.")

    @background_action(permissions=["change"])
    def archive_after_adding(self, request: HttpRequest, queryset: QuerySet[Project]) -> int:
        Project.objects.create(name="project that came late")
        return queryset.update(archived=True)

    @background_action(permissions=["change"], on_conflict="skip", per_object=True, chunk_size=2)
    def visit_free_in_chunks(self, request: HttpRequest, project: Project) -> None:
        self.visit(request, project)

    @background_action(permissions=["change"], on_conflict="skip")
    def archive_free_ones(self, request: HttpRequest, queryset: QuerySet[Project]) -> dict[str, Any]:
        return {"archived": queryset.update(archived=True)}

    @background_action(description="Visit each", permissions=["change"], on_conflict="skip", per_object=True)
    def visit(self, request: HttpRequest, project: Project) -> None:
        project.archived = True
        project.save()
        if project.name == ODD:
            raise LookupError(f"project {project.pk} is odd")

    @background_action(permissions=["change"], per_object=True, retry=RetryPolicy(3, 0.1, retry_on=EVERYTHING))
    def count_visits(self, request: HttpRequest, project: Project) -> None:
        task = get_current_task()
        Visit.objects.create(project=project.pk, task=task.task_name if task else "")
        time.sleep(VISIT_TAKES)

    @background_action(permissions=["change"], per_object=True, chunk_size=2)
    def visit_in_chunks(self, request: HttpRequest, project: Project) -> None:
        self.visit(request, project)

    @background_action(permissions=["change"], form=RenameForm, per_object=True, chunk_size=2)
    def annotate_in_chunks(self, request: HttpRequest, project: Project, cleaned_data: dict[str, Any]) -> None:
        project.name = cleaned_data["notes"].read().decode()
        cleaned_data["notes"].seek(0)
        project.save()

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
    actions = ["archive", "rename_each", "take_forms"]
    change_actions = ["shout"]

    @background_action(permissions=["change"])
    def archive(self, request: HttpRequest, queryset: QuerySet[SpecialProject]) -> int:
        return queryset.update(archived=True)

    @background_action(background_when="apply")
    def take_forms(self, request: HttpRequest, queryset: QuerySet[SpecialProject]) -> str:
        """An action whose page has a formset."""
        return request.POST["form-0-name"]

    @admin.action(description="Rename each")
    def rename_each(self, request: HttpRequest, queryset: QuerySet[SpecialProject]) -> None:
        """An action of the request that saves one object after the other."""
        for project in queryset.order_by("pk"):
            project.name = "renamed"
            self.save_model(request, project, None, change=True)

    @object_action(label="Shout")
    def shout(self, request: HttpRequest, obj: SpecialProject) -> None:
        self.message_user(request, obj.name.upper())


def mark(name: str) -> Any:
    """Return an action, as ``get_actions()`` makes one for each status."""

    def setter(modeladmin: Any, request: HttpRequest, queryset: QuerySet[Any]) -> int:
        return queryset.update(name=name)

    return background_action(description=f"Mark as {name}")(setter)


def count_for(name: str) -> Any:
    """Return an action in chunks, made in the same way."""

    def counter(modeladmin: Any, request: HttpRequest, queryset: QuerySet[Any]) -> str:
        return f"{queryset.count()} for {name}"

    return background_action(conflict=False, chunk_size=2)(counter)


class ReasonForm(ActionForm):
    reason = forms.CharField()


@admin.register(OrdinaryProject)
class OrdinaryProjectAdmin(BackgroundActionsMixin, admin.ModelAdmin):
    """Actions as projects have them, with as little change as possible."""

    actions = [
        "answer_with_a_page",
        "answer_with_a_template",
        "answer_with_a_redirect",
        "answer_with_a_form",
        "answer_with_nothing",
        "answer_with_an_error",
        "ask_first",
        "ask_if_told_so",
        "described_later",
        "decorated_below",
        "decorated_above",
        "call_another",
        "note_reason",
    ]
    background_actions = ["delete_selected"]
    background_threshold = 0
    action_form = ReasonForm

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> dict[str, Any]:
        actions = super().get_actions(request)
        for name in ("open", "closed"):
            actions[f"mark_{name}"] = (mark(name), f"mark_{name}", f"Mark as {name}")
            actions[f"count_{name}"] = (count_for(name), f"count_{name}", f"Count for {name}")
        return actions

    @background_action()
    def answer_with_a_page(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse:
        return HttpResponse("<p>Done</p>")

    @background_action()
    def answer_with_a_template(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse:
        return TemplateResponse(request, "admin/base_site.html", {"title": "Really?"})

    @background_action()
    def answer_with_a_redirect(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse:
        return HttpResponseRedirect("/elsewhere/")

    @background_action()
    def answer_with_nothing(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse:
        return HttpResponse(status=204)

    @background_action()
    def answer_with_an_error(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse:
        return JsonResponse({"error": "no connection"}, status=502)

    @background_action()
    def answer_with_a_form(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse:
        return HttpResponse(get_token(request))

    @background_action(background_when="apply")
    def ask_first(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        if "apply" in request.POST:
            queryset.update(name=request.POST["new_name"])
            return None
        return render(request, "admin/base_site.html", {"title": f"Rename {queryset.count()}?"})

    @background_action(background_when=lambda request: request.POST.get("mode") == "later")
    def ask_if_told_so(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse:
        queryset.update(name="at once")
        return HttpResponse("in the request")

    @background_action()
    def described_later(self, request: HttpRequest, queryset: QuerySet[Any]) -> int:
        return queryset.update(name="described")

    described_later.short_description = "Described afterwards"

    @background_action
    @admin.action(description="From below", permissions=["change"])
    def decorated_below(self, request: HttpRequest, queryset: QuerySet[Any]) -> int:
        return queryset.update(name="below")

    @admin.action(description="From above", permissions=["change"])
    @background_action
    def decorated_above(self, request: HttpRequest, queryset: QuerySet[Any]) -> int:
        return queryset.update(name="above")

    @background_action()
    def call_another(self, request: HttpRequest, queryset: QuerySet[Any]) -> int:
        """Another action is called as a function, and runs in place."""
        return int(self.decorated_above(request, queryset))

    @background_action(confirm=True)
    def note_reason(self, request: HttpRequest, queryset: QuerySet[Any]) -> str:
        return request.POST["reason"]


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


@admin.register(Country)
class CountryAdmin(BackgroundActionsMixin, admin.ModelAdmin):
    list_display = ["name", "background_lock"]


@admin.register(Document)
class DocumentAdmin(BackgroundActionsMixin, ExportActionModelAdmin):
    """Keys that are no numbers, beside django-import-export, whose action runs in the background."""

    skip_export_form_from_action = True
    background_actions = [BackgroundAction(name="export_admin_action", description="", conflict=False)]
    actions = ["visit"]

    @background_action(permissions=["change"], per_object=True)
    def visit(self, request: HttpRequest, document: Document) -> None:
        """Do nothing to it."""
