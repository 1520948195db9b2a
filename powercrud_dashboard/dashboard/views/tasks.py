from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import messages
from django.contrib.admin.models import DELETION, LogEntry
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.template.loader import render_to_string
from django.utils.functional import cached_property
from django.utils.html import format_html, format_html_join
from django.utils.translation import get_language, ngettext
from django.utils.translation import gettext as _
from django.views.generic.base import TemplateResponseMixin

from powercrud_dashboard.dashboard import access
from powercrud_dashboard.dashboard.filters import ALL_FAILURES, recent_error_classes, recent_functions
from powercrud_dashboard.dashboard.formatting import counted_objects, local
from powercrud_dashboard.dashboard.listing import MAX_NEWER, Count, Listing
from powercrud_dashboard.dashboard.live import running_version
from powercrud_dashboard.dashboard.operations import Operations
from powercrud_dashboard.dashboard.rows import RowMaker
from powercrud_dashboard.dashboard.selection import BulkAction, Selection, actions_for
from powercrud_dashboard.dashboard.snapshots import Snapshot, key_of, snapshots
from powercrud_dashboard.dashboard.statuses import OCCASIONAL_TABS, TABS
from powercrud_dashboard.dashboard.tables import TaskTable
from powercrud_dashboard.dashboard.views.base import (
    REFRESH_COOKIE,
    DashboardView,
    ObjectLinks,
    RefreshingPageView,
    refresh_choices,
)
from powercrud_dashboard.engine import pruning
from powercrud_dashboard.exceptions import TaskBusy
from powercrud_dashboard.extension import dashboard
from powercrud_dashboard.models import Resolution, TaskEvent, TaskObject, TaskRecord, TaskStatus
from powercrud_dashboard.models.database import database_now
from powercrud_dashboard.models.labels import name_of_row, row_label
from powercrud_dashboard.models.search import CONSIDERED, named_objects

#: A list is rendered again after this many seconds, because deletions add no event and displayed times change.
STALE_AFTER = 60
STALE_AFTER_WITH_UNFINISHED = 10

#: Objects that a search names.
FOUND_OBJECTS = 8


@dataclass(frozen=True)
class Tab:
    status: str | None
    label: Any
    count: Count
    is_current: bool

    @property
    def is_alarming(self) -> bool:
        """Whether the count is shown in red."""
        return self.status == TaskStatus.FAILED and self.count.number > 0


@dataclass(frozen=True)
class Kind:
    """The tasks of one function among those of a tab, and the URL of the list of them."""

    func: str
    count: int
    url: str

    @property
    def name(self) -> str:
        return self.func.rpartition(".")[2]


class TaskListView(RefreshingPageView):
    """The task list, with tabs and filters. The rows refresh themselves."""

    page_name = "changelist"
    template_name = "powercrud_dashboard/tasks/page.html"
    partial_template_name = "powercrud_dashboard/tasks/_list.html"

    @cached_property
    def listing(self) -> Listing:
        return self._snapshot.listing

    @cached_property
    def _newest_event(self) -> str:
        """The state of the events from before the tasks are read, so that the next refresh has concurrent changes."""
        return TaskEvent.objects.newest_state()

    @cached_property
    def _snapshot(self) -> Snapshot:
        """What the list shows. A refresh may have what was read for that of somebody else."""
        listing, user, host = Listing(self.request.GET, self.request.user), self.request.user, self.request.get_host()
        key = key_of(listing, user, host)
        may_be_shared = self.is_partial_request and not self.held_keys
        found = snapshots.get(key, self._newest_event) if may_be_shared else None
        if found is None:
            state = {"newest_event": self._newest_event, "pauses": self.pauses()["pauses"]}
            found = Snapshot.take(listing, user, host, **state, held=self.held_keys)
            if not self.held_keys:
                snapshots.add(key, found)
        return found

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        # A form sends its empty fields too. An address that is shared is short.
        filled = [(name, value) for name, values in request.GET.lists() for value in values if value]
        if len(filled) < sum(len(values) for __, values in request.GET.lists()) and not self.is_partial_request:
            query = urlencode(filled)
            return HttpResponseRedirect(f"{request.path}?{query}" if query else request.path)
        return super().get(request, *args, **kwargs)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        listing, user, snapshot = self.listing, self.request.user, self._snapshot
        matching = listing.counts[listing.status]
        page, pulse = snapshot.page, snapshot.pulse
        flags = "".join(sorted({_FLAGS[record.status] for record in page.records if record.status in _FLAGS}))
        newest, newer = self._newest(page.records)
        actions = actions_for(user, page.records)
        links = ObjectLinks(self.site, self.request)
        maker = RowMaker(user, actions, url=self.url, object_url=links.url)
        rows = [maker.make(record, snapshot.live.get(record.task_name)) for record in page.records]
        table = TaskTable(
            rows,
            sort=listing.sort,
            status=listing.status,
            is_actionable=bool(actions),
            is_filtered=not rows and bool(listing.filter.chips()),
        )
        return super().get_context_data(
            title=_("Background tasks"),
            is_task_list=True,
            tabs=self._tabs(),
            table=table,
            page=page,
            filters="" if self.is_partial_request else self._filters(),
            bulk_actions=[action for action in actions if action.is_offered(listing)],
            # Where the list is narrowed down, all of it can be meant.
            actions_for_all=self._for_all(actions) if listing.filter.is_active and matching.number > 1 else [],
            resolutions=self._resolutions(),
            bulk_url=self.url("bulk"),
            exports=[(name, self.url("export", name)) for name in ("csv", "json")],
            has_matching=bool(page.records),
            matching=matching,
            is_bounded=listing.is_bounded,
            limit=Count(CONSIDERED),
            **{**self.pauses(), "pauses": snapshot.pauses},
            newest=newest,
            newer=newer,
            newer_text=f"{MAX_NEWER}+" if newer > MAX_NEWER else str(newer),
            version=self._version(flags, snapshot.newest_event, snapshot.running),
            pulse=pulse,
            no_cluster_runs=snapshot.no_cluster_runs,
            kinds=self._kinds(),
            **kwargs,
        )

    def current_version(self) -> str:
        flags, __, __ = self.shown_version.partition(".")
        flags = flags.removesuffix(_HOLDS_ROWS)
        return self._version(flags, self._newest_event, running_version() if _RUNNING in flags else "")

    def _version(self, flags: str, newest_event: str, running: str) -> str:
        """Return a text that changes whenever the list may change. ``flags`` are the ``_FLAGS`` of its rows."""
        seconds = STALE_AFTER_WITH_UNFINISHED if flags else STALE_AFTER
        held = _HOLDS_ROWS if self.held_keys else ""
        return f"{flags}{held}.{int(time.time() // seconds)}.{newest_event}.{running}"

    def _newest(self, records: list[TaskRecord]) -> tuple[str, int]:
        """Return the cursor of the newest task that the user has seen, and the number of newer tasks."""
        listing = self.listing
        if not listing.shows_newest_first:
            return "", 0
        if listing.is_first_page and not self.held_keys:
            # Running tasks come first, however old they are.
            order = listing.order
            newest = max(records, key=attrgetter(order.column, "pk"), default=None)
            return (order.cursor_of(newest) if newest else ""), 0
        cursor = self.newest_seen if self.is_partial_request else ""
        if not cursor:
            return listing.newest_cursor(), 0
        return cursor, listing.count_newer(cursor)

    def _for_all(self, actions: list[BulkAction]) -> list[tuple[BulkAction, Count]]:
        """Return the actions that are offered for all matching tasks, each with the number of those that it is for."""
        offered = [action for action in actions if action.is_offered(self.listing) and action.name != "delete"]
        numbers = [(action, self.listing.number_with(action.statuses)) for action in offered]
        return [(action, number) for action, number in numbers if number.number]

    def _tabs(self) -> list[Tab]:
        counts, current = self.listing.counts, self.listing.status
        tabs = [Tab(name, status.label, counts[name], name == current) for name, status in TABS.items()]
        shown = [tab for tab in tabs if tab.is_current or tab.count.number or tab.status not in OCCASIONAL_TABS]
        return [*shown, Tab(None, _("All"), counts[""], not current)]

    def _resolutions(self) -> list[tuple[str, Any, bool]]:
        """Return the kinds of failures to choose from on their tab: value of the parameter, label, whether chosen."""
        if self.listing.status != TaskStatus.FAILED:
            return []
        labels = {**dict(Resolution.choices), ALL_FAILURES: _("All")}
        return [(value, label, value == self.listing.resolution) for value, label in labels.items()]

    def _filters(self) -> str:
        """Return the form with the filters as HTML. A process keeps it for lists without any, as most are."""
        url = self.url("suggestions")
        key = get_language(), self.listing.status, url
        # The choices of a project's filter may change.
        is_kept = not (self.listing.filter.is_active or dashboard().filters)
        if is_kept and (kept := _empty_forms.get(key)):
            return kept
        context = {"filter": self.listing.filter, "status": self.listing.status, "suggestions_url": url}
        html = render_to_string(
            "powercrud_dashboard/tasks/_filters.html", {**context, "found_objects": self._found_objects()}
        )
        if is_kept and not settings.DEBUG:
            _empty_forms[key] = html
        return html

    def _found_objects(self) -> list[tuple[str, str]]:
        """Return the names of objects that the search finds, each with the URL of the list of its tasks."""
        text, user = self.request.GET.get("q", ""), self.request.user
        if not text:
            return []
        entries = TaskObject.objects.all()
        if not access.has_permission(user, "view_taskrecord"):
            entries = entries.filter(record__in=TaskRecord.objects.visible_to(user))
        found = []
        for entry in named_objects(entries, text, FOUND_OBJECTS):
            query = QueryDict(mutable=True)
            query.update({"model": entry.model_label, "object_id": entry.object_id})
            found.append((str(entry), f"?{query.urlencode()}"))
        return found

    def _kinds(self) -> list[Kind]:
        """Return the kinds of the unfinished tasks on a tab, if there are several, for filters by one click."""
        if self.listing.status not in _FLAGS or self.request.GET.get("function"):
            return []
        counts = self.listing.functions
        query = self.request.GET.copy()
        for name in ("from", "before"):
            query.pop(name, None)
        kinds = []
        for func, count in counts if len(counts) > 1 else []:
            query["function"] = func
            kinds.append(Kind(func, count, f"?{query.urlencode()}"))
        return kinds


#: The forms with no filter set, by language, tab, and URL of the suggestions.
_empty_forms: dict[tuple[str, str, str], str] = {}


class SuggestionsView(TemplateResponseMixin, DashboardView):
    """Suggestions for the filters, which the list requests when somebody begins to use them."""

    template_name = "powercrud_dashboard/tasks/_suggestions.html"

    def get(self, request: HttpRequest) -> HttpResponse:
        visible = TaskRecord.objects.visible_to(request.user)
        sees_all = access.has_permission(request.user, "view_taskrecord")
        models = {row_label(model) for model in self.site._registry} if sees_all else set()
        suggestions = {
            "pcrud-models": sorted(models),
            "pcrud-functions": recent_functions(visible),
            "pcrud-error-classes": recent_error_classes(visible),
        }
        return self.render_to_response({"suggestions": suggestions})


_UNFINISHED, _RUNNING, _HOLDS_ROWS = "q", "r", "h"
#: Statuses of rows that the version depends on.
_FLAGS: dict[str, str] = {
    TaskStatus.PENDING: _UNFINISHED,
    TaskStatus.IN_PROGRESS: _RUNNING,
    TaskStatus.PAUSED: _UNFINISHED,
}


#: Refused tasks listed in a message; the count is exact.
SHOWN_REFUSALS = 10


class ManyTasksView(DashboardView):
    """Base class of actions on many tasks, of which one that fails stops no other."""

    def act_on(self, records: list[TaskRecord], action: str) -> list[tuple[TaskRecord, str]]:
        """Apply an action but for deletion. Return the tasks that were not changed, each with the reason."""
        operations = Operations(self.request.user, note=self.request.POST.get("note", "").strip())
        return [(record, refusal) for record in records if (refusal := operations.perform(action, record).refusal)]

    def report_rejected(self, rejected: list[tuple[TaskRecord, str]]) -> None:
        """Add a message that names the first of these tasks, and each reason once."""
        by_reason: dict[str, list[str]] = {}
        for record, reason in rejected[:SHOWN_REFUSALS]:
            by_reason.setdefault(reason, []).append(str(record))
        text = ngettext("%(count)d task was not changed:", "%(count)d tasks were not changed:", len(rejected))
        listed = format_html_join("; ", "{} ({})", ((", ".join(names), reason) for reason, names in by_reason.items()))
        more = " …" if len(rejected) > SHOWN_REFUSALS else ""
        messages.warning(self.request, format_html("{} {}{}", text % {"count": len(rejected)}, listed, more))


#: Tasks that a question names.
SHOWN_TO_CONFIRM = 20


class BulkActionView(TemplateResponseMixin, ManyTasksView):
    """Retry, cancel, dismiss or delete several tasks, after confirmation."""

    http_method_names = ["post", "options"]
    page_name = "changelist"
    template_name = "powercrud_dashboard/tasks/bulk.html"

    def post(self, request: HttpRequest) -> HttpResponse:
        selection = Selection.from_form(request.POST, request.user)
        if selection is None:
            messages.error(request, _("No action selected."))
            return self._redirect_back()
        if not selection.is_permitted_to(request.user):
            raise PermissionDenied
        if selection.is_empty:
            messages.warning(
                request, _("Tasks must be selected in order to perform actions on them. No tasks have been changed.")
            )
            return self._redirect_back()
        if request.POST.get("confirmed") != "yes":
            return self._confirmation_page(selection)
        self._perform(selection)
        return self._redirect_back()

    def _confirmation_page(self, selection: Selection) -> HttpResponse:
        context = self.get_context_data(
            title=_("%(action)s?") % {"action": selection.what} if selection.accepted else selection.action.label,
            now=database_now(),
            selection=selection,
            shown=[
                (record, counted_objects(record), self._names_of(record))
                for record in selection.accepted[:SHOWN_TO_CONFIRM]
            ],
            filter_query=self.request.POST.get("filter", ""),
            group_queries=self.request.POST.getlist("group"),
            back_url=self._back_url(),
            leave_url=self._leave_url(selection),
        )
        return self.render_to_response(context)

    def _leave_url(self, selection: Selection) -> str:
        """Return the URL of the page that has asked: that of the only task, which is gone if it is deleted."""
        asked_by = [str(record.pk) for record in selection.accepted]
        if asked_by == [self.request.POST.get("asked_by")]:
            return self.url("change", selection.accepted[0].pk)
        return self._back_url()

    @staticmethod
    def _names_of(record: TaskRecord) -> str:
        """Return the names of the first objects of a task."""
        return ", ".join(item.get("text") or name_of_row(item["model"], item["id"]) for item in record.first_objects)

    def _result_url(self, action: BulkAction, began: datetime) -> str:
        """Return the URL of the list of what an action has made of the tasks; "" if nothing is left of them."""
        query = QueryDict(action.result, mutable=True)
        if not query:
            return ""
        if "mine" in query:
            query["created_after"] = f"{local(began):%Y-%m-%dT%H:%M}"
        return self.list_url(query.urlencode())

    def _perform(self, selection: Selection) -> None:
        # Of the tasks that are launched by it the times are the database's.
        began = database_now()
        if selection.action.name == "delete":
            try:
                refused = self._delete(selection.accepted)
            except TaskBusy as error:
                messages.error(self.request, str(error))
                return
        else:
            refused = self.act_on(selection.accepted, selection.action.name)
        done = len(selection.accepted) - len(refused)
        if done:
            text = ngettext("%(action)s: %(count)d task.", "%(action)s: %(count)d tasks.", done)
            said = text % {"action": selection.action.label, "count": done}
            if url := self._result_url(selection.action, began):
                said = format_html('{} <a href="{}">{}</a>', said, url, _("Show the result"))
            messages.success(self.request, said)
        if selection.remaining.number:
            text = ngettext(
                "%(count)s more task remains. Repeat the action for it.",
                "%(count)s more tasks remain. Repeat the action for them.",
                selection.remaining.number,
            )
            messages.warning(self.request, text % {"count": selection.remaining})
        if rejected := [*refused, *selection.rejected]:
            self.report_rejected(rejected)

    def _delete(self, records: list[TaskRecord]) -> list[tuple[TaskRecord, str]]:
        """Delete the records, and return those that are kept. The admin log records the user."""
        kept = set(pruning.delete_records([record.pk for record in records]))
        if deleted := [record for record in records if record.pk not in kept]:
            LogEntry.objects.log_actions(self.request.user.pk, deleted, DELETION)  # type: ignore[arg-type]
        return [(record, _("other data refers to it")) for record in records if record.pk in kept]

    def _redirect_back(self) -> HttpResponse:
        return HttpResponseRedirect(self._back_url())

    def _back_url(self) -> str:
        """Return the URL of the page with the selection, by default the list."""
        return self.next_url(self.list_url(self.request.POST.get("filter", "")))


ONE_YEAR = 365 * 24 * 60 * 60


class RefreshIntervalView(DashboardView):
    """Store the refresh interval in a cookie, and redirect back to the page."""

    http_method_names = ["post", "options"]

    def post(self, request: HttpRequest) -> HttpResponse:
        response = HttpResponseRedirect(self.next_url(self.url("changelist")))
        seconds = request.POST.get("seconds", "")
        if seconds in {str(choice) for choice in refresh_choices()}:
            response.set_cookie(
                REFRESH_COOKIE, seconds, max_age=ONE_YEAR, secure=request.is_secure(), httponly=True, samesite="Lax"
            )
        return response
