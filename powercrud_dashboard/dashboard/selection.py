"""What a person has chosen in the task list for an action, and what of it the action can be done to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.db.models import QuerySet
from django.http import QueryDict
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from powercrud_dashboard import access
from powercrud_dashboard.dashboard.keyset import DIGITS_OF_A_KEY
from powercrud_dashboard.dashboard.listing import WIDE, Listing
from powercrud_dashboard.models import TaskRecord

if TYPE_CHECKING:
    from powercrud_dashboard.access import Person

#: Tasks that one click acts on. Each is an action of its own, recorded with its own event, so
#: more would keep the request, and the person, waiting for too long.
ACT_ON_AT_MOST = 1_000


@dataclass(frozen=True)
class BulkAction:
    """Something that can be done to many tasks at once."""

    name: str
    label: Any
    permission: str
    #: Says why it can't be done to this record, or "".
    obstacle: Callable[[TaskRecord], str]


@dataclass(frozen=True)
class RowAction:
    """A button beside one task: where it posts to, and with which value if it is one of several there."""

    name: str
    label: Any
    url: str
    value: str = ""


def _not_ended(record: TaskRecord) -> str:
    return "" if record.is_finished else _("has not ended yet")


def _ended(record: TaskRecord) -> str:
    return _("has ended already") if record.is_finished else ""


BULK_ACTIONS = {
    action.name: action
    for action in (
        BulkAction("retry", gettext_lazy("Retry"), "retry_taskrecord", _not_ended),
        BulkAction("cancel", gettext_lazy("Cancel"), "cancel_taskrecord", _ended),
        BulkAction("delete", gettext_lazy("Delete"), "delete_taskrecord", _not_ended),
    )
}


def actions_for(user: Person) -> list[BulkAction]:
    """Return the actions that this person may do to many tasks at once."""
    return [action for action in BULK_ACTIONS.values() if access.has_permission(user, action.permission)]


@dataclass
class Selection:
    """The chosen records, parted into those that the action can be done to and the others."""

    action: BulkAction
    feasible: list[TaskRecord] = field(default_factory=list)
    #: Each with the reason why it is left out.
    left_out: list[tuple[TaskRecord, str]] = field(default_factory=list)
    #: Whether there are more that match than one click acts on.
    is_capped: bool = False
    #: The keys that were chosen one by one, to be sent once more with the confirmation.
    ticked: list[str] = field(default_factory=list)

    @property
    def newest_pk(self) -> int:
        """The youngest record of the selection: what came later was not confirmed."""
        return max(record.pk for record in (*self.feasible, *(record for record, __ in self.left_out)))

    @classmethod
    def from_form(cls, data: QueryDict, user: Person) -> Selection | None:
        """Read what the list's form has sent; None if it names no known action.

        A button beside one row sends ``row`` as "action:key": then it is about that task, whatever is ticked.
        """
        row_action, __, row_key = data.get("row", "").partition(":")
        action = BULK_ACTIONS.get(row_action or data.get("action", ""))
        if action is None:
            return None
        ticked = [row_key] if row_action else data.getlist("selected")
        selection = cls(action, ticked=[key for key in ticked if _is_key(key)])
        takes_all = bool(data.get("all")) and not row_action
        chosen = _matching(data, user) if takes_all else _ticked(selection.ticked, user)
        records = list(chosen.defer(*WIDE)[: ACT_ON_AT_MOST + 1])
        selection.is_capped = len(records) > ACT_ON_AT_MOST
        for record in records[:ACT_ON_AT_MOST]:
            if reason := action.obstacle(record):
                selection.left_out.append((record, reason))
            else:
                selection.feasible.append(record)
        return selection


def _is_key(text: str) -> bool:
    return text.isdecimal() and len(text) <= DIGITS_OF_A_KEY


def _ticked(keys: list[str], user: Person) -> QuerySet[TaskRecord]:
    return TaskRecord.objects.visible_to(user).filter(pk__in=keys)


def _matching(data: QueryDict, user: Person) -> QuerySet[TaskRecord]:
    """Return what the list shows, with the same filter, so that "all" are those which the person has seen."""
    matching = Listing(QueryDict(data.get("filter", "")), user).matching()
    if _is_key(up_to := data.get("up_to", "")):
        matching = matching.filter(pk__lte=up_to)
    return matching
