from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.apps import apps
from django.contrib import messages
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.functional import cached_property
from django.utils.translation import gettext as _
from django.views.generic.base import TemplateResponseMixin

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.dashboard import access
from powercrud_dashboard.dashboard.listing import WIDE_COLUMNS, CappedCount, Count
from powercrud_dashboard.dashboard.live import MAX_LOCKS, LiveTask, live_tasks
from powercrud_dashboard.dashboard.tables import LockTable, paginate_table
from powercrud_dashboard.dashboard.views.base import DashboardView, ObjectLinks, RefreshingPageView
from powercrud_dashboard.exceptions import TaskBusy
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskObject, TaskRecord
from powercrud_dashboard.models.coordination import ActiveTaskState
from powercrud_dashboard.models.database import Now
from powercrud_dashboard.models.search import MAX_WORDS
from powercrud_dashboard.text import is_storable

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
        return self.record.user_label if self.record else str(self.active.user or "")


class LockListView(RefreshingPageView):
    """Who holds locks: one row for each task or reservation, with its objects."""

    page_name = "locks"
    required_permission = "view_conflictlock"
    template_name = "powercrud_dashboard/locks/page.html"
    partial_template_name = "powercrud_dashboard/locks/_list.html"

    @cached_property
    def search(self) -> str:
        return self.request.GET.get("q", "")

    def matching_locks(self) -> QuerySet[ConflictLock]:
        """Return the locks that match all words of the search: by object, its name or key, model, holder or person."""
        locks: QuerySet[ConflictLock] = ConflictLock.objects.all()
        if not is_storable(self.search):
            return locks.none()
        for word in self.search.split()[:MAX_WORDS]:
            locks = locks.filter(_matches(word))
        return locks

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(
            title=_("Locks"),
            table=self._table(),
            search=self.search,
            **kwargs,
        )

    def _table(self) -> LockTable:
        of_holder = self.matching_locks().filter(active_task=OuterRef("pk"))
        counted = ConflictLock.objects.filter(active_task=OuterRef("pk")).values("pk")
        holders = (
            ActiveTask.objects.filter(Exists(of_holder))
            .select_related("worker", "user")
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
        texts = _texts_of([lock for of_holder in locks.values() for lock in of_holder], names)
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
                        texts.get((active.task_name, lock.model_label, lock.object_id)) or str(lock),
                        links.url(lock.model_label, lock.object_id),
                        self.url("release", lock.pk) if may_release else "",
                    )
                    for lock in locks[active.pk]
                ],
            )
            for active in rows
        }

    def _locks_of(self, active: ActiveTask) -> list[ConflictLock]:
        return list(self.matching_locks().filter(active_task=active.pk).order_by("pk")[:LISTED_OBJECTS])


def _matches(word: str) -> Q:
    """Return the condition for locks that a word of a search is about."""
    models = [
        model._meta.label_lower for model in apps.get_models() if word.lower() in str(model._meta.verbose_name).lower()
    ]
    of_person = TaskRecord.objects.unfinished().filter(user_label__icontains=word).values("task_name")
    named = TaskObject.objects.filter(
        object_id=OuterRef("object_id"),
        model_label=OuterRef("model_label"),
        record__task_name=OuterRef("active_task__task_name"),
        text__icontains=word,
    )
    return (
        Q(model_label__icontains=word)
        | Q(model_label__in=models)
        | Q(object_id=word)
        | Q(active_task__label__icontains=word)
        | Q(active_task__task_name=word)
        | Q(active_task__task_name__in=of_person)
        | Q(Exists(named))
    )


def _texts_of(locks: list[ConflictLock], task_names: list[str]) -> dict[tuple[str, str, str], str]:
    """Return the descriptions of locked objects by task, model and key, as far as they are known."""
    entries = TaskObject.objects.filter(
        object_id__in={lock.object_id for lock in locks}, record__task_name__in=task_names
    ).exclude(text="")
    rows = entries.values_list("record__task_name", "model_label", "object_id", "text")
    return {(name, label, key): text for name, label, key, text in rows}


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
            self.get_context_data(title=_("Release this lock?"), lock=lock, locks_url=self.url("locks"))
        )

    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        lock = self._lock(pk)
        manager = AsyncManager.resolve_manager()
        try:
            if lock is None or not manager.release_conflict_lock(lock, user=request.user):
                return self._lock_not_found()
        except TaskBusy as error:
            messages.error(request, str(error))
            return HttpResponseRedirect(self.url("locks"))
        messages.success(request, _("The lock on %(object)s was released.") % {"object": lock})
        return HttpResponseRedirect(self.url("locks"))

    def _lock_not_found(self) -> HttpResponse:
        messages.info(self.request, _("The lock was already released."))
        return HttpResponseRedirect(self.url("locks"))

    @staticmethod
    def _lock(pk: int) -> ConflictLock | None:
        return ConflictLock.objects.all().with_holders().filter(pk=pk).first()
