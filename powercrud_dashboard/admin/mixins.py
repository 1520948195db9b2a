"""The mixin that adds background actions to a ``ModelAdmin``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeGuard
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.contrib.admin import AdminSite
from django.contrib.admin.sites import all_sites
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import transaction
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.loader import get_template, select_template
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from powercrud_dashboard.admin import edits
from powercrud_dashboard.admin.actions import (
    BackgroundAction,
    action_of,
    chosen_name,
    declared_action,
    description_of,
    function_of,
    with_function,
)
from powercrud_dashboard.admin.checks import check_background_actions
from powercrud_dashboard.admin.clicks import launcher
from powercrud_dashboard.admin.pages import (
    MAX_STRIP_KEYS,
    all_tasks_url,
    lock_by_key,
    mark_locked_rows,
    object_context,
    task_url,
)
from powercrud_dashboard.admin.strip import WITHOUT_STRIP, locks_url, strip_context
from powercrud_dashboard.dashboard import access
from powercrud_dashboard.dashboard.embedded import embedded
from powercrud_dashboard.dashboard.views.base import refresh_interval
from powercrud_dashboard.engine.spec import accepted_arguments
from powercrud_dashboard.exceptions import TaskBusy, TaskConflict
from powercrud_dashboard.models.locks import WHOLE_MODEL

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

    _Base = ModelAdmin[Any]
else:
    _Base = object


class BackgroundActionsMixin(_Base):
    """Add background actions to a ``ModelAdmin``. List the mixin before ``ModelAdmin`` in the bases."""

    #: Additional background actions: dotted paths of task functions, which get ``pks`` and ``model`` and require the
    #: change permission; names of existing actions, such as those of another package; or :class:`BackgroundAction`
    #: objects to change the defaults.
    background_actions: Sequence[str | BackgroundAction] = ()

    #: Selections of at most this many objects run in the request. They are recorded in the same way.
    background_threshold: int = 0

    #: Whether the admin refuses to change or delete objects that a task has locked.
    lock_blocks_edit: bool = False

    def __init__(self, model: type[Model], admin_site: AdminSite) -> None:
        super().__init__(model, admin_site)
        declared = [declared_action(item) for item in self.background_actions]
        #: Existing actions that run in the background, by name.
        self.wrapped_actions = {action.name: action for action in declared if not action.task}
        if self.actions is not None:
            # Django treats them like any other action from here on.
            self.actions = [*self.actions, *(launcher(action) for action in declared if action.task)]

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        return [*super().check(**kwargs), *check_background_actions(self)]

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> dict[str, Any]:
        # Django 6.1 added action_location; another package's get_actions() may not accept it.
        location = {} if action_location is None else {"action_location": action_location}
        actions: dict[str, Any] = super().get_actions(request, **accepted_arguments(super().get_actions, location))
        for name, action in self.wrapped_actions.items():
            if name in actions and action_of(function_of(actions[name])) is None:
                if action.is_allowed(self, request):
                    actions[name] = _wrapped_entry(actions[name], action)
                else:
                    # Django has only asked for the action's own permissions.
                    del actions[name]
        return actions

    def prepare_background_request(self, request: HttpRequest) -> None:
        """Prepare the request of an action in a worker, before the action and its permissions are looked up.

        Override it to set what middleware of your project sets on a request. See also ``DASHBOARD_WORKER_MIDDLEWARE``.
        """

    # The changelist

    @admin.display(description=gettext_lazy("Lock"))
    def background_lock(self, obj: Any) -> str:
        """Return the lock icon of a row, for use in ``list_display``. It links to the task that holds the lock."""
        lock = getattr(obj, "pcrud_lock", None)
        text = _("Locked by %(holder)s") % {"holder": lock.active_task} if lock else _("Locked")
        hidden = "" if lock else format_html(" {}", "hidden")
        return format_html(
            '<a class="pcrud-lock" href="{url}?{query}" title="{text}" aria-label="{text}" data-pcrud-lock="{key}"'
            "{hidden}></a>",
            url=self._strip_url("lock"),
            query=urlencode({"key": obj.pk}),
            text=text,
            key=obj.pk,
            hidden=hidden,
        )

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        try:
            response = super().changelist_view(request, extra_context)
        except (TaskBusy, TaskConflict) as conflict:
            # The rows of an editable list are saved in one transaction. Other actions may have changed some already.
            is_undone = "_save" in request.POST or chosen_name(request) == "delete_selected"
            return self._conflict_redirect(request, conflict, is_undone=is_undone)
        if _has_context(response, "cl"):
            strip = embedded(lambda: strip_context(self, request), WITHOUT_STRIP)
            changelist = (response.context_data or {})["cl"]
            rows = changelist.result_list
            if "background_lock" in changelist.list_display:
                # The rows that the page shows: a queryset keeps what it has read.
                embedded(lambda: mark_locked_rows(self, rows), None)
            has_locks = any(getattr(row, "pcrud_lock", None) for row in rows)
            self._wrap_template(
                response, "change_list", {**strip, **self._strip_options(request, strip, has_locks=has_locks)}
            )
        return response

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_background_tasks"
        strip = path("background-tasks/", self.admin_site.admin_view(self.background_tasks_view), name=name)
        lock = path(
            "background-tasks/lock/", self.admin_site.admin_view(self.background_lock_view), name=f"{name}_lock"
        )
        urls = super().get_urls()
        for pattern in urls:
            if isinstance(pattern, URLPattern):
                pattern.callback = self._refusing_conflicts(pattern.callback)
        return [strip, lock, *urls]

    def _refusing_conflicts(self, view: Callable[..., Any]) -> Callable[..., Any]:
        """Return the view, of Django or of another package, so that a refused edit is answered with a message."""

        @wraps(view)
        def refuse(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            try:
                return view(request, *args, **kwargs)
            except (TaskBusy, TaskConflict) as conflict:
                return self._conflict_redirect(request, conflict)

        return refuse

    def background_tasks_view(self, request: HttpRequest) -> HttpResponse:
        """Return the strip of unfinished tasks, and the locks of the requested rows."""
        if not self.has_view_or_change_permission(request):
            return HttpResponse(status=403)
        access.do_not_renew_session(request)
        # The keys of many rows are too long for an address.
        keys = (request.POST or request.GET).getlist("key")[:MAX_STRIP_KEYS]
        strip = strip_context(self, request)
        try:
            locks = lock_by_key(self, keys)
        except ValueError:
            return HttpResponse(status=400)
        locked = keys if WHOLE_MODEL in locks else [key for key in keys if key in locks]
        options = self._strip_options(request, strip, has_locks=bool(locked))
        context = {**strip, **options, "locked_keys_json": json.dumps(locked)}
        return TemplateResponse(request, "powercrud_dashboard/admin/_strip.html", context)

    def background_lock_view(self, request: HttpRequest) -> HttpResponse:
        """Redirect to the task that has locked a row, to the lock if that is a reservation, or back with a message."""
        if not self.has_view_or_change_permission(request):
            return HttpResponse(status=403)
        try:
            locks = lock_by_key(self, [request.GET.get("key", "")])
        except ValueError:
            locks = {}
        for lock in locks.values():
            site, user, holder = self.admin_site.name, request.user, lock.active_task
            url = task_url(site, holder.task_name) if access.may_see(user, holder.task_name) else ""
            if not url and access.has_permission(user, "view_conflictlock"):
                url = locks_url(site, lock.model_label, lock.object_id)
            if url:
                return HttpResponseRedirect(url)
            self.message_user(request, _("Locked by %(holder)s") % {"holder": holder}, messages.INFO)
            break
        else:
            self.message_user(request, _("The object is not locked any more."), messages.INFO)
        changelist = f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist"
        return HttpResponseRedirect(reverse(changelist, current_app=self.admin_site.name))

    def _strip_options(self, request: HttpRequest, strip: dict[str, Any], *, has_locks: bool) -> dict[str, Any]:
        # Refresh for locks too: their task may be invisible to the user, or end before the strip is rendered.
        refreshes = strip["strip_tasks"] or has_locks
        return {
            "strip_url": self._strip_url(),
            "strip_interval": (refresh_interval(request) or None) if refreshes else None,
            "strip_next": (request.POST or request.GET).get("next") or request.get_full_path(),
        }

    def _strip_url(self, page: str = "") -> str:
        name = f"admin:{self.opts.app_label}_{self.opts.model_name}_background_tasks{'_' if page else ''}{page}"
        return reverse(name, current_app=self.admin_site.name)

    # The change form

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        response = super().changeform_view(request, object_id, form_url, extra_context)
        if _has_context(response, "original") and (obj := (response.context_data or {})["original"]) is not None:
            self._wrap_template(response, "change_form", object_context(self, request, obj))
        return response

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        response = super().history_view(request, object_id, extra_context)
        if _has_context(response, "object"):
            obj = (response.context_data or {})["object"]
            self._wrap_template(response, "object_history", {"object_tasks_url": all_tasks_url(self, obj)})
        return response

    def render_history_view(self, request: HttpRequest, template: Any, context: dict[str, Any], **kwargs: Any) -> Any:
        """Render a page of django-simple-history, which does not use ``TemplateResponse``; nobody else calls this."""
        if template == self.object_history_template and (obj := context.get("object")) is not None:
            context = {**context, "object_tasks_url": all_tasks_url(self, obj), "pcrud_base": _loaded(template)}
            template = "powercrud_dashboard/admin/object_history.html"
        return super().render_history_view(request, template, context, **kwargs)  # type: ignore[misc]

    def _wrap_template(self, response: TemplateResponse, name: str, context: dict[str, Any]) -> None:
        """Replace the template of the response with one of this package that extends it."""
        base = _loaded(response.template_name)
        response.context_data = {**(response.context_data or {}), **context, "pcrud_base": base}
        response.template_name = f"powercrud_dashboard/admin/{name}.html"

    # Locked objects

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        # As Django calls it: UserAdmin.get_form(), for instance, takes "change" by keyword only.
        form = super().get_form(request, obj, change=change, **kwargs)
        return edits.lock_aware_form(form, if_changed=False) if self.lock_blocks_edit and change else form

    def get_formsets_with_inlines(self, request: HttpRequest, obj: Any = None) -> Iterator[Any]:
        for formset, inline in super().get_formsets_with_inlines(request, obj):
            yield edits.lock_aware_formset(formset) if self.lock_blocks_edit else formset, inline

    def get_changelist_form(self, request: HttpRequest, **kwargs: Any) -> Any:
        form = super().get_changelist_form(request, **kwargs)
        return edits.lock_aware_form(form, if_changed=True) if self.lock_blocks_edit else form

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if not (self.lock_blocks_edit and change):
            super().save_model(request, obj, form, change)
            return
        with edits.hold_for_edit([obj]):
            super().save_model(request, obj, form, change)

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        if not self.lock_blocks_edit:
            super().save_formset(request, form, formset, change)
            return
        deleted = [form.instance for form in getattr(formset, "deleted_forms", ()) if form.instance.pk is not None]
        changed = [form.instance for form in formset.initial_forms if form.has_changed()]
        with edits.hold_for_edit([*changed, *edits.rows_deleted_with(deleted)]):
            super().save_formset(request, form, formset, change)

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        if not self.lock_blocks_edit:
            super().delete_model(request, obj)
            return
        with edits.hold_for_edit(edits.rows_deleted_with([obj])):
            super().delete_model(request, obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        if not self.lock_blocks_edit:
            super().delete_queryset(request, queryset)
            return
        with transaction.atomic(using=queryset.db), edits.hold_for_edit(edits.rows_deleted_with(queryset)):
            super().delete_queryset(request, queryset)

    def log_deletions(self, request: HttpRequest, queryset: Any) -> Any:
        if self.lock_blocks_edit:
            # "Delete selected" writes its log before it deletes, and in no transaction.
            edits.refuse_locked(edits.rows_deleted_with(queryset))
        return super().log_deletions(request, queryset)

    def _conflict_redirect(
        self, request: HttpRequest, conflict: TaskBusy | TaskConflict, *, is_undone: bool = True
    ) -> HttpResponse:
        self.message_user(request, edits.conflict_message(conflict, is_undone=is_undone), messages.ERROR)
        return HttpResponseRedirect(request.get_full_path())


def _has_context(response: object, name: str) -> TypeGuard[TemplateResponse]:
    """Return whether the response is a page with this context variable."""
    return isinstance(response, TemplateResponse) and name in (response.context_data or {})


def _loaded(template: Any) -> Any:
    """Return the template of this name, the first of these names, or the template itself."""
    if isinstance(template, str):
        return get_template(template)
    return select_template(template) if isinstance(template, list | tuple) else template


def _wrapped_entry(entry: Any, options: BackgroundAction) -> Any:
    """Return the entry of an existing action, changed to run in the background."""
    function = function_of(entry)
    action = replace(
        options,
        body=function,
        description=options.description or description_of(entry),
        permissions=options.permissions or tuple(getattr(function, "allowed_permissions", ())),
    )
    return with_function(entry, launcher(action), str(action.description))


@register(Tags.admin)
def check_missing_mixin(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Check that admins with background actions of their own have the mixin. Actions of the site need none."""
    admins = [model_admin for site in all_sites for model_admin in site._registry.values()]
    found: dict[type, str] = {}
    for model_admin in admins:
        if isinstance(model_admin, BackgroundActionsMixin):
            continue
        entries = [entry for item in model_admin.actions or () if (entry := model_admin.get_action(item))]
        for action in filter(None, map(action_of, map(function_of, entries))):
            found.setdefault(type(model_admin), action.name)
    return [
        Warning(
            f"{cls.__name__} has the background action {name!r}, but not BackgroundActionsMixin: its pages show "
            "neither tasks nor locks, and the options of its actions are not checked.",
            hint=f"Add it: class {cls.__name__}(BackgroundActionsMixin, admin.ModelAdmin).",
            obj=cls,
            id="powercrud_dashboard.W024",
        )
        for cls, name in sorted(found.items(), key=lambda item: item[0].__qualname__)
    ]


@register(Tags.admin)
def check_order_of_bases(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Check that no registered admin has the mixin behind ``ModelAdmin``, which then hides all of its methods."""
    classes = {type(model_admin) for site in all_sites for model_admin in site._registry.values()}
    return [
        Error(
            f"{cls.__name__} lists BackgroundActionsMixin after ModelAdmin, where it has no effect.",
            hint=f"List it first: class {cls.__name__}(BackgroundActionsMixin, admin.ModelAdmin).",
            obj=cls,
            id="powercrud_dashboard.E023",
        )
        for cls in sorted(classes, key=lambda cls: cls.__qualname__)
        if BackgroundActionsMixin in cls.__mro__
        and cls.__mro__.index(BackgroundActionsMixin) > cls.__mro__.index(admin.ModelAdmin)
    ]
