"""The tasks selected for a bulk action: those that it can be applied to are chosen first, up to a limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.http import QueryDict
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from powercrud_dashboard.dashboard import access
from powercrud_dashboard.dashboard.filters import ALL_FAILURES
from powercrud_dashboard.dashboard.keyset import is_key
from powercrud_dashboard.dashboard.listing import WIDE_COLUMNS, Count, Listing, capped_counts
from powercrud_dashboard.dashboard.statuses import stored_status
from powercrud_dashboard.models import Resolution, TaskRecord, TaskStatus
from powercrud_dashboard.models.history import TaskRecordQuerySet
from powercrud_dashboard.models.statuses import FINISHED, UNFINISHED

if TYPE_CHECKING:
    from powercrud_dashboard.dashboard.access import User

#: The limit of a bulk action. Each task gets its own action and event, so a larger selection would take too long for
#: one request.
MAX_SELECTED = 1_000

NONE = Count(0)


@dataclass(frozen=True)
class BulkAction:
    """An action on several tasks."""

    name: str
    label: Any
    #: The label of a button that applies it to a whole group of tasks.
    label_for_all: Any
    permission: str
    #: The statuses of the tasks that it can be applied to; those of the first are chosen first.
    statuses: tuple[TaskStatus, ...]
    #: Returns the reason why the action can't be applied to a record in this state, or "".
    state_refusal: Callable[[TaskRecord], str]
    #: Restricts the records of a list with one of these statuses to those that it is applied to.
    applicable: Callable[[TaskRecordQuerySet, Listing], TaskRecordQuerySet] = lambda records, listing: records
    #: Whether it is offered in a list of tasks in all states.
    is_general: bool = True
    #: The resolutions in whose lists of failures it is offered.
    resolutions: tuple[str, ...] = (*Resolution.values, ALL_FAILURES)
    #: The query string of the list of what it makes of the tasks, of new tasks with "mine"; "" if they are gone.
    result: str = ""

    def refusal(self, user: User, record: TaskRecord) -> str:
        """Return the reason why the user can't apply the action to a record, or ""."""
        return access.refusal(user, self.permission, record) or self.state_refusal(record)

    def is_offered(self, listing: Listing) -> bool:
        """Return whether the list may have tasks that the action is for."""
        if not listing.status:
            return self.is_general
        is_for_failures = listing.status != TaskStatus.FAILED or listing.resolution in self.resolutions
        return stored_status(listing.status) in self.statuses and is_for_failures


@dataclass(frozen=True)
class RowAction:
    """A button in the row of a task: its URL, and the value to post if several actions share the URL."""

    name: str
    label: Any
    url: str
    value: str = ""


def _refuse_unfinished(record: TaskRecord) -> str:
    return "" if record.is_finished else _("has not ended yet")


def _refuse_unfinished_own(record: TaskRecord) -> str:
    # What is only observed may never be told to end.
    return "" if record.is_observed else _refuse_unfinished(record)


def _refuse_finished(record: TaskRecord) -> str:
    return _("has already ended") if record.is_finished else ""


def _refuse_done(record: TaskRecord) -> str:
    return _refuse_unfinished(record) or (_("has completed") if record.is_done else "")


def _refuse_not_done(record: TaskRecord) -> str:
    return _refuse_unfinished(record) or ("" if record.is_done else _("has not completed"))


def _refuse_not_active(record: TaskRecord) -> str:
    return _refuse_finished(record) or (_("is paused already") if record.status == TaskStatus.PAUSED else "")


def _refuse_not_paused(record: TaskRecord) -> str:
    return "" if record.status == TaskStatus.PAUSED else _("is not paused")


def _refuse_not_open(record: TaskRecord) -> str:
    return "" if record.resolution == Resolution.OPEN else _("is no open failure")


def _refuse_not_dismissed(record: TaskRecord) -> str:
    return "" if record.resolution == Resolution.DISMISSED else _("was not dismissed")


def _to_retry(records: TaskRecordQuerySet, listing: Listing) -> TaskRecordQuerySet:
    # What somebody has dismissed is retried only from the list of what was dismissed.
    settled = {Resolution.RESOLVED, Resolution.DISMISSED} - {listing.resolution}
    # Of the tries of a task only the last, so that a second click does nothing twice.
    last = records.filter(superseded=False).exclude(resolution__in=settled)
    return last.not_being_retried().not_done_later()


def _to_run_again(records: TaskRecordQuerySet, listing: Listing) -> TaskRecordQuerySet:
    done = records.exclude(resolution__in=[Resolution.OPEN, Resolution.DISMISSED])
    return done.filter(superseded=False).not_being_retried().not_completed_later()


BULK_ACTIONS = {
    action.name: action
    for action in (
        BulkAction(
            "retry",
            gettext_lazy("Retry"),
            gettext_lazy("Retry all"),
            "retry_taskrecord",
            (TaskStatus.FAILED, TaskStatus.CANCELLED),
            _refuse_done,
            _to_retry,
            resolutions=(Resolution.OPEN, Resolution.DISMISSED, ALL_FAILURES),
            result="mine=on",
        ),
        BulkAction(
            "run_again",
            gettext_lazy("Run again"),
            gettext_lazy("Run all again"),
            "retry_taskrecord",
            (TaskStatus.SUCCESS,),
            _refuse_not_done,
            _to_run_again,
            is_general=False,
            result="mine=on",
        ),
        BulkAction(
            "resume",
            gettext_lazy("Resume"),
            gettext_lazy("Resume all"),
            "pause_taskrecord",
            (TaskStatus.PAUSED,),
            _refuse_not_paused,
            is_general=False,
            result="status=pending",
        ),
        BulkAction(
            "cancel",
            gettext_lazy("Cancel"),
            gettext_lazy("Cancel all"),
            "cancel_taskrecord",
            UNFINISHED,
            _refuse_finished,
            result="status=cancelled&sort=-finished_at",
        ),
        BulkAction(
            "pause",
            gettext_lazy("Pause"),
            gettext_lazy("Pause all"),
            "pause_taskrecord",
            (TaskStatus.PENDING, TaskStatus.IN_PROGRESS),
            _refuse_not_active,
            is_general=False,
            result="status=paused",
        ),
        BulkAction(
            "dismiss",
            gettext_lazy("Dismiss"),
            gettext_lazy("Dismiss all"),
            "dismiss_taskrecord",
            (TaskStatus.FAILED,),
            _refuse_not_open,
            lambda records, listing: records.open_failures(),
            resolutions=(Resolution.OPEN, ALL_FAILURES),
            result="status=failed&resolution=dismissed",
        ),
        BulkAction(
            "reopen",
            gettext_lazy("Reopen"),
            gettext_lazy("Reopen all"),
            "dismiss_taskrecord",
            (TaskStatus.FAILED,),
            _refuse_not_dismissed,
            lambda records, listing: records.of_resolution(Resolution.DISMISSED).filter(superseded=False),
            is_general=False,
            resolutions=(Resolution.DISMISSED, ALL_FAILURES),
            result="status=failed",
        ),
        BulkAction(
            "delete",
            gettext_lazy("Delete"),
            gettext_lazy("Delete all"),
            "delete_taskrecord",
            FINISHED,
            _refuse_unfinished_own,
        ),
    )
}


def actions_for(user: User, records: Iterable[TaskRecord]) -> list[BulkAction]:
    """Return the bulk actions that the user may use on some of these records, whatever their state."""
    own = [record for record in records if record.user_id == user.pk][:1]
    return [
        action
        for action in BULK_ACTIONS.values()
        if access.has_permission(user, action.permission)
        or any(access.has_permission_for(user, action.permission, record) for record in own)
    ]


def actions_for_all(user: User) -> list[BulkAction]:
    """Return the bulk actions that the user may use on all records that they see."""
    sees_only_own = not access.has_permission(user, "view_taskrecord")
    return [
        action
        for action in BULK_ACTIONS.values()
        if access.has_permission(user, action.permission)
        or (sees_only_own and access.manages_own_tasks(user, action.permission))
    ]


@dataclass
class Selection:
    """The selected records that the action can be applied to, and what is known of the others."""

    action: BulkAction
    accepted: list[TaskRecord] = field(default_factory=list)
    #: Ticked rows, each with the reason for the rejection.
    rejected: list[tuple[TaskRecord, str]] = field(default_factory=list)
    #: How many more there are that the action can be applied to, beyond ``MAX_SELECTED``.
    remaining: Count = NONE
    #: How many completed tasks are left out of a retry.
    done: Count = NONE
    #: Whether completed tasks are not left out.
    includes_done: bool = False
    #: The keys of the selected rows, which the confirmation page submits again.
    selected_keys: list[str] = field(default_factory=list)
    #: The query strings of the lists whose tasks are all selected, and the newest task on the page with the question.
    filters: list[str] = field(default_factory=list)
    up_to: str = ""
    #: Whether anything at all is selected.
    is_empty: bool = False

    @classmethod
    def from_form(cls, data: QueryDict, user: User) -> Selection | None:
        """Return the selection for the submitted list form; None without a valid action.

        The button of a row submits ``row`` as "action:key", which selects only that task. ``all_action`` is an
        action for the whole list. ``group`` is the query string of a list of which all tasks are selected, and may
        occur several times.
        """
        row_action, __, row_key = data.get("row", "").partition(":")
        all_action = data.get("all_action", "")
        action = BULK_ACTIONS.get(row_action or all_action or data.get("action", ""))
        if action is None:
            return None
        selection = cls(action, includes_done=bool(data.get("include_completed")))
        groups = data.getlist("group")
        if not row_action and (groups or all_action or data.get("all")):
            selection.filters = groups or [data.get("filter", "")]
            newest = TaskRecord.objects.order_by("-pk").values_list("pk", flat=True).first() or 0
            up_to = data.get("up_to", "")
            selection.up_to = up_to if is_key(up_to) else str(newest)
            selection._choose_matching(user)
        else:
            keys = [row_key] if row_action else data.getlist("selected")
            selection.selected_keys = [key for key in keys if is_key(key)]
            selection._choose_ticked(user)
        return selection

    @property
    def what(self) -> str:
        """What is going to be done, such as "Cancel 12 tasks"."""
        number = len(self.accepted)
        text = ngettext("%(action)s %(count)d task", "%(action)s %(count)d tasks", number)
        return text % {"action": self.action.label, "count": number}

    def is_permitted_to(self, user: User) -> bool:
        """Return whether the user has the permission, or needs none for one of the records."""
        permission = self.action.permission
        if access.has_permission(user, permission):
            return True
        if self.filters:
            return access.manages_own_tasks(user, permission)
        records = (*self.accepted, *(record for record, _reason in self.rejected))
        return any(access.has_permission_for(user, permission, record) for record in records)

    def _choose_ticked(self, user: User) -> None:
        ticked = TaskRecord.objects.visible_to(user).filter(pk__in=self.selected_keys).defer(*WIDE_COLUMNS)
        done = 0
        left_to_do = set(ticked.not_done_later().values_list("pk", flat=True)) if self.action.name == "retry" else set()
        for record in ticked:
            reason = self.action.refusal(user, record)
            if not reason and self.action.name == "retry" and record.pk not in left_to_do:
                # Such as a cancelled one whose retry has completed.
                done += 1
                reason = "" if self.includes_done else _("a later try has completed")
            elif reason and self.action.name == "retry" and record.is_done and not _RUN_AGAIN.refusal(user, record):
                done += 1
                reason = "" if self.includes_done else reason
            if reason:
                self.rejected.append((record, reason))
            else:
                self.accepted.append(record)
        self.remaining = Count(max(0, len(self.accepted) - MAX_SELECTED))
        del self.accepted[MAX_SELECTED:]
        self.done = Count(done)
        self.is_empty = not (self.accepted or self.rejected)

    def _choose_matching(self, user: User) -> None:
        listings = [Listing(QueryDict(query), user) for query in self.filters]
        done = list(self._matching(listings, _RUN_AGAIN, user)) if self.action.name == "retry" else []
        chosen = [*self._matching(listings, self.action, user), *(done if self.includes_done else ())]
        for records in chosen:
            room = MAX_SELECTED + 1 - len(self.accepted)
            self.accepted += records.defer(*WIDE_COLUMNS)[:room]
            if len(self.accepted) > MAX_SELECTED:
                self.remaining = Count(-MAX_SELECTED) + _number_of(chosen)
                del self.accepted[MAX_SELECTED:]
                break
        refusals = [(record, access.refusal(user, self.action.permission, record)) for record in self.accepted]
        self.rejected = [(record, reason) for record, reason in refusals if reason]
        self.accepted = [record for record, reason in refusals if not reason]
        self.done = _number_of(done)
        self.is_empty = not (
            self.accepted or self.rejected or self.done.number or any(listing.matches_any for listing in listings)
        )

    def _matching(self, listings: list[Listing], action: BulkAction, user: User) -> Iterator[TaskRecordQuerySet]:
        for listing in listings:
            for records in applicable(listing, action, user):
                yield records.filter(pk__lte=self.up_to)


def applicable(listing: Listing, action: BulkAction, user: User) -> Iterator[TaskRecordQuerySet]:
    """Return the tasks in a list that the action can be applied to, a queryset for each status.

    So each is found by an index, however many other tasks there are.
    """
    for status in action.statuses:
        if stored_status(listing.status) in ("", status):
            records = listing.matching_with(status)
            if not access.has_permission(user, action.permission):
                is_own = access.manages_own_tasks(user, action.permission)
                records = records.filter(user=user.pk) if is_own else records.none()
            if (sources := access.sources_for(action.permission)) is not None:
                records = records.filter(source__in=sources)
            yield action.applicable(records, listing)


_RUN_AGAIN = BULK_ACTIONS["run_again"]


def _number_of(querysets: list[TaskRecordQuerySet]) -> Count:
    counted = {str(number): records.order_by("pk").values_list("pk") for number, records in enumerate(querysets)}
    return sum(capped_counts(list(counted), counted.__getitem__).values(), NONE)
