from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib import messages
from django.db.models import Exists, OuterRef
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.views.generic.base import TemplateResponseMixin

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.dashboard import access, customized
from powercrud_dashboard.dashboard.listing import WIDE_COLUMNS, CappedCount, Count
from powercrud_dashboard.dashboard.live import MAX_LOCKS, LiveTask, live_tasks
from powercrud_dashboard.dashboard.locking import matching_locks, texts_of
from powercrud_dashboard.dashboard.tables import LockTable, paginate_table
from powercrud_dashboard.dashboard.views.base import DashboardView, ObjectLinks, RefreshingPageView
from powercrud_dashboard.exceptions import TaskBusy
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord
from powercrud_dashboard.models.coordination import ActiveTaskState
from powercrud_dashboard.models.database import Now
from powercrud_dashboard.text import translated

#: Locked objects that a row names at once, and those that it unfolds.
NAMED_OBJECTS = 3
LISTED_OBJECTS = 50


@dataclass(frozen=True)
class LockedObject:
    """A locked object: its name, the URL of its admin page, and the one to release its lock; "" for none."""

    name: str
    url: str
    release_url: str


@dataclass(frozen=True)
class Holder:
    """A task or a reservation, and the objects that it has locked."""

    active: ActiveTask
    lock_count: Count
    read_at: datetime
    #: None for a reservation, and for a task that the user may not see.
    record: TaskRecord | None
    live: LiveTask | None
    url: str
    #: Those that match the search.
    objects: list[LockedObject]

    @property
    def named(self) -> list[LockedObject]:
        return self.objects[:NAMED_OBJECTS]

    @property
    def folded(self) -> list[LockedObject]:
        return self.objects[NAMED_OBJECTS:]

    @property
    def person(self) -> str:
        return customized.user_text(self.record) if self.record else str(self.active.user or "")


class LockListView(RefreshingPageView):
    """Who holds locks: one row for each task or reservation, with its objects."""

    page_name = "locks"
    required_permission = "view_conflictlock"
    template_name = "powercrud_dashboard/locks/page.html"
    partial_template_name = "powercrud_dashboard/locks/_list.html"

    @cached_property
    def search(self) -> str:
        return self.request.GET.get("q", "")

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(
            title=_("Locks"),
            table=self._table(),
            search=self.search,
            **kwargs,
        )

    def _table(self) -> LockTable:
        of_holder = matching_locks(self.search).filter(active_task=OuterRef("pk"))
        counted = ConflictLock.objects.filter(active_task=OuterRef("pk")).values("pk")
        holders = (
            ActiveTask.objects.filter(Exists(of_holder))
            .select_related("worker")
            .prefetch_related("user")
            .annotate(read_at=Now(), lock_count=CappedCount(counted[: MAX_LOCKS + 1]))
        )
        shown: dict[int, Holder] = {}
        table = LockTable(
            holders,
            empty_text=_("No lock matches the search.") if self.search.strip() else None,
            holders=shown,
        )
        paginate_table(table, self.request)
        shown.update(self._holders([row.record for row in table.page.object_list]))
        return table

    def _holders(self, rows: list[Any]) -> dict[int, Holder]:
        names = [active.task_name for active in rows if active.state != ActiveTaskState.RESERVED]
        visible = TaskRecord.objects.visible_to(self.request.user).filter(task_name__in=names)
        records = {record.task_name: record for record in visible.defer(*WIDE_COLUMNS)}
        live = live_tasks(records.values())
        locks = {active.pk: self._locks_of(active) for active in rows}
        texts = texts_of([lock for of_holder in locks.values() for lock in of_holder], names)
        links = ObjectLinks(self.site, self.request)
        may_release = access.may_release_locks(self.request.user)
        return {
            active.pk: Holder(
                active,
                Count.capped(active.lock_count, MAX_LOCKS),
                active.read_at,
                records.get(active.task_name),
                live.get(active.task_name),
                self.url("change", records[active.task_name].pk) if active.task_name in records else "",
                [
                    LockedObject(
                        customized.object_text(
                            lock.model_label,
                            lock.object_id,
                            texts.get((active.task_name, lock.model_label, lock.object_id)) or str(lock),
                        ),
                        links.url(lock.model_label, lock.object_id),
                        self.url("release", lock.pk) if may_release else "",
                    )
                    for lock in locks[active.pk]
                ],
            )
            for active in rows
        }

    def _locks_of(self, active: ActiveTask) -> list[ConflictLock]:
        return list(matching_locks(self.search).filter(active_task=active.pk).order_by("pk")[:LISTED_OBJECTS])


class ReleaseLockView(TemplateResponseMixin, DashboardView):
    """Release a lock, after confirmation."""

    page_name = "locks"
    required_permission = "release_conflictlock"
    template_name = "powercrud_dashboard/locks/release.html"

    def get(self, request: HttpRequest, pk: int) -> HttpResponse:
        lock = self._lock(pk)
        if lock is None:
            return self._lock_not_found()
        return self.render_to_response(
            self.get_context_data(
                title=_("Release this lock?"),
                lock=lock,
                object_name=self._name_of(lock),
                holder=self._holder_of(lock),
                locks_url=self.url("locks"),
            )
        )

    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        lock = self._lock(pk)
        name = self._name_of(lock) if lock else ""
        manager, note = AsyncManager.resolve_manager(), request.POST.get("note", "").strip()
        try:
            if lock is None or not manager.release_conflict_lock(lock, user=request.user, note=note):
                return self._lock_not_found()
        except TaskBusy as error:
            messages.error(request, str(error))
            return HttpResponseRedirect(self.url("locks"))
        messages.success(request, _("The lock on %(object)s was released.") % {"object": name})
        return HttpResponseRedirect(self.url("locks"))

    @staticmethod
    def _name_of(lock: ConflictLock) -> str:
        """Return the object's name as the list of locks shows it."""
        key = (lock.active_task.task_name, lock.model_label, lock.object_id)
        text = texts_of([lock], [lock.active_task.task_name]).get(key) or str(lock)
        return customized.object_text(lock.model_label, lock.object_id, text)

    def _holder_of(self, lock: ConflictLock) -> str:
        """Return the holder's name, with a link to its page for who may see it."""
        name = translated(str(lock.active_task))
        visible = TaskRecord.objects.visible_to(self.request.user).filter(task_name=lock.active_task.task_name)
        pk = visible.values_list("pk", flat=True).first()
        return name if pk is None else format_html('<a href="{}">{}</a>', self.url("change", pk), name)

    def _lock_not_found(self) -> HttpResponse:
        messages.info(self.request, _("The lock was already released."))
        return HttpResponseRedirect(self.url("locks"))

    @staticmethod
    def _lock(pk: int) -> ConflictLock | None:
        return ConflictLock.objects.all().with_holders().filter(pk=pk).first()
