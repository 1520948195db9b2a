"""The mixin that gives a ``ModelAdmin`` background actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

from django.contrib import admin, messages
from django.contrib.admin import AdminSite
from django.db import transaction
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.loader import get_template, select_template
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from powercrud_dashboard.admin import edits
from powercrud_dashboard.admin.action_entries import description_of, function_of, with_function
from powercrud_dashboard.admin.actions import BackgroundAction, action_of, launcher
from powercrud_dashboard.admin.changelist import ASKED_KEYS, LockAwareChangeList, lock_by_key, strip_context
from powercrud_dashboard.admin.object_tasks import all_tasks_url, object_context
from powercrud_dashboard.callables import injected_arguments
from powercrud_dashboard.dashboard.views.base import refresh_interval
from powercrud_dashboard.exceptions import TaskConflict
from powercrud_dashboard.models.coordination import WHOLE_MODEL

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

    _Base = ModelAdmin[Any]
else:
    _Base = object


class BackgroundActionsMixin(_Base):
    """Put it before ``ModelAdmin``; declare actions with ``@background_action`` or below."""

    #: More background actions: dotted paths of task functions, which get ``pks`` and ``model`` and need the
    #: change permission; names of actions that the admin has already, such as a third party's; or a
    #: :class:`BackgroundAction` of either for more than the defaults.
    background_actions: Sequence[str | BackgroundAction] = ()

    #: Selections of up to so many objects run at once, in the request; recorded in the same way.
    background_threshold: int = 0

    #: Whether an object that a task holds can't be changed or deleted in the admin meanwhile.
    lock_blocks_edit: bool = False

    def __init__(self, model: type[Model], admin_site: AdminSite) -> None:
        super().__init__(model, admin_site)
        declared = [_declared(item) for item in self.background_actions]
        #: Actions of others that run in the background here, by name.
        self.wrapped_actions = {action.name: action for action in declared if not action.task}
        if self.actions is not None:
            # From here on they are Django's own kind of action: checked, filtered and shown as any other.
            self.actions = [*self.actions, *(launcher(action) for action in declared if action.task)]

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> dict[str, Any]:
        # Django has locations from 6.1 on; a package beside this one may not know of them.
        location = {} if action_location is None else {"action_location": action_location}
        actions: dict[str, Any] = super().get_actions(request, **injected_arguments(super().get_actions, location))
        for name, wanted in self.wrapped_actions.items():
            if name in actions and action_of(function_of(actions[name])) is None:
                actions[name] = _in_background(actions[name], wanted)
        return actions

    # The changelist

    @admin.display(description=gettext_lazy("Lock"))
    def background_lock(self, obj: Any) -> str:
        """Return the mark of a locked row, for ``list_display``."""
        lock = getattr(obj, "pcrud_lock", None)
        words = _("Locked by %(holder)s") % {"holder": lock.active_task} if lock else _("Locked")
        hidden = "" if lock else format_html(" {}", "hidden")
        return format_html(
            '<span class="pcrud-lock" role="img" title="{words}" aria-label="{words}" data-pcrud-lock="{key}"{hidden}>'
            "</span>",
            words=words,
            key=obj.pk,
            hidden=hidden,
        )

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[Any]:
        found = super().get_changelist(request, **kwargs)
        if "background_lock" not in self.get_list_display(request):
            return found
        return type("LockAwareChangeList", (LockAwareChangeList, found), {})

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        try:
            response = super().changelist_view(request, extra_context)
        except TaskConflict as conflict:
            return self._refused(request, conflict, request.get_full_path())
        if _is_page(response, "cl"):
            strip = strip_context(self, request)
            rows = (response.context_data or {})["cl"].result_list
            has_locks = any(getattr(row, "pcrud_lock", None) for row in rows)
            self._wrap(response, "change_list", {**strip, **self._strip_frame(request, strip, has_locks=has_locks)})
        return response

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_background_tasks"
        strip = path("background-tasks/", self.admin_site.admin_view(self.background_tasks_view), name=name)
        return [strip, *super().get_urls()]

    def background_tasks_view(self, request: HttpRequest) -> HttpResponse:
        """Return the strip of unfinished tasks, with the locks of the rows that are asked for."""
        if not self.has_view_or_change_permission(request):
            return HttpResponse(status=403)
        asked = request.GET.getlist("key")[:ASKED_KEYS]
        strip = strip_context(self, request)
        try:
            found = lock_by_key(self, asked)
        except ValueError:
            return HttpResponse(status=400)
        locked = asked if WHOLE_MODEL in found else [key for key in asked if key in found]
        context = {**strip, **self._strip_frame(request, strip, has_locks=bool(locked)), "locked_keys": locked}
        return TemplateResponse(request, "powercrud_dashboard/admin/_strip.html", context)

    def _strip_frame(self, request: HttpRequest, strip: dict[str, Any], *, has_locks: bool) -> dict[str, Any]:
        # A lock is news as well: its task may end between the two looks, or be one that this person does not see.
        is_watched = strip["strip_tasks"] or has_locks
        return {
            "strip_url": self._strip_address(),
            "strip_interval": (refresh_interval(request) or None) if is_watched else None,
            "strip_next": request.GET.get("next") or request.get_full_path(),
        }

    def _strip_address(self) -> str:
        name = f"admin:{self.opts.app_label}_{self.opts.model_name}_background_tasks"
        return reverse(name, current_app=self.admin_site.name)

    # The change form

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        try:
            response = super().changeform_view(request, object_id, form_url, extra_context)
        except TaskConflict as conflict:
            return self._refused(request, conflict, request.get_full_path())
        if _is_page(response, "original") and (obj := (response.context_data or {})["original"]) is not None:
            self._wrap(response, "change_form", object_context(self, request, obj))
        return response

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        response = super().history_view(request, object_id, extra_context)
        if _is_page(response, "object"):
            obj = (response.context_data or {})["object"]
            self._wrap(response, "object_history", {"object_tasks_url": all_tasks_url(self, obj)})
        return response

    def _wrap(self, response: TemplateResponse, name: str, context: dict[str, Any]) -> None:
        """Put this package's part around whatever template the page has, be it Django's or another package's."""
        base: Any = response.template_name
        if isinstance(base, str):
            base = get_template(base)
        elif isinstance(base, list | tuple):
            base = select_template(base)
        response.context_data = {**(response.context_data or {}), **context, "pcrud_base": base}
        response.template_name = f"powercrud_dashboard/admin/{name}.html"

    # Locked objects

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change, **kwargs)
        return edits.refusing_form(form) if self.lock_blocks_edit and change else form

    def get_changelist_form(self, request: HttpRequest, **kwargs: Any) -> Any:
        form = super().get_changelist_form(request, **kwargs)
        return edits.refusing_form(form) if self.lock_blocks_edit else form

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if not (self.lock_blocks_edit and change):
            super().save_model(request, obj, form, change)
            return
        with edits.not_locked([obj]):
            super().save_model(request, obj, form, change)

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        if not self.lock_blocks_edit:
            super().delete_model(request, obj)
            return
        with edits.not_locked([obj]):
            super().delete_model(request, obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        if not self.lock_blocks_edit:
            super().delete_queryset(request, queryset)
            return
        with transaction.atomic(using=queryset.db), edits.not_locked(list(queryset)):
            super().delete_queryset(request, queryset)

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        try:
            return super().delete_view(request, object_id, extra_context)
        except TaskConflict as conflict:
            return self._refused(request, conflict, request.get_full_path())

    def _refused(self, request: HttpRequest, conflict: TaskConflict, address: str) -> HttpResponse:
        self.message_user(request, edits.words_for_conflict(conflict), messages.ERROR)
        return HttpResponseRedirect(address)


def _is_page(response: object, name: str) -> TypeGuard[TemplateResponse]:
    """Return whether this is a page with that in its context, and not a redirect or a page that asks."""
    return isinstance(response, TemplateResponse) and name in (response.context_data or {})


def _in_background(entry: Any, wanted: BackgroundAction) -> Any:
    """Return the entry of an action that another package has made, to run as it is wanted."""
    function = function_of(entry)
    action = replace(
        wanted,
        body=function,
        description=wanted.description or description_of(entry),
        permissions=wanted.permissions or tuple(getattr(function, "allowed_permissions", ())),
    )
    return with_function(entry, launcher(action), str(action.description))


def _declared(item: str | BackgroundAction) -> BackgroundAction:
    if isinstance(item, BackgroundAction):
        return item
    if "." not in item:
        return BackgroundAction(name=item, description="")
    name = item.rpartition(".")[2]
    return BackgroundAction(
        name=name,
        description=capfirst(name.replace("_", " ")),
        permissions=("change",),
        task=item,
    )
