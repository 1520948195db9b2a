"""The confirmation page of an action: its form, the selected objects and their locks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet
from django.forms import BaseForm, Form
from django.forms.formsets import BaseFormSet
from django.http import HttpRequest
from django.template.response import TemplateResponse

from powercrud_dashboard.admin.actions import FORM_PREFIX, Admin, BackgroundAction, bound_form
from powercrud_dashboard.admin.selection import SelectedRows, lock_label
from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.dashboard.listing import Count
from powercrud_dashboard.engine import locks
from powercrud_dashboard.exceptions import FileTooLarge
from powercrud_dashboard.models.locks import READ_OF_WHOLE_MODEL, WHOLE_MODEL

CONFIRMED = "pcrud-confirmed"

#: Names of the fields of list_editable begin so.
EDITABLE_PREFIX = f"{BaseFormSet.get_default_prefix()}-"

#: Objects and locks listed on the confirmation page.
SHOWN_OBJECTS = 20
#: If a holder has locked more of the objects than this, they are folded.
FOLDED_FROM = 3


@dataclass(frozen=True)
class Holder:
    """Who has locked some of the selected objects: how many, and the first of them."""

    name: str
    count: Count
    objects: list[Any]

    @property
    def is_folded(self) -> bool:
        return self.count.number > FOLDED_FROM


def submitted_form(action: BackgroundAction, request: HttpRequest) -> BaseForm | None:
    """Return the form from the confirmation page; None if the page has not been shown yet.

    A file that is too large to be kept is an error of its field.
    """
    if CONFIRMED not in request.POST:
        return None
    form = bound_form(action, request.POST, request.FILES)
    for name in form.fields:
        for upload in request.FILES.getlist(form.add_prefix(name)):
            if (upload.size or 0) > app_settings.DASHBOARD_FILE_LIMIT:
                form.add_error(name, str(FileTooLarge(upload.name or name, app_settings.DASHBOARD_FILE_LIMIT)))
    return form


def confirmation_page(
    action: BackgroundAction,
    model_admin: Admin,
    request: HttpRequest,
    queryset: QuerySet[Any],
    form: BaseForm | None,
) -> TemplateResponse:
    """Return the confirmation page; ``form`` is the invalid form, or None at first."""
    if form is None:
        form = (action.form or Form)(prefix=FORM_PREFIX)
    rows = SelectedRows.of_click(model_admin, request, queryset)
    locked, are_all_read = _locked(action, model_admin, rows)
    objects = rows.described()
    # Of a lock only the label and the key are known.
    names = {(lock_label(model_admin), str(row.pk)): row for row in objects}
    holders = _holders(locked, names)
    label = action.label_for(model_admin)
    request.current_app = model_admin.admin_site.name
    context = {
        **model_admin.admin_site.each_context(request),
        "title": label,
        "opts": model_admin.opts,
        "media": model_admin.media + form.media,
        "action": action,
        "form": form,
        "count": rows.count(),
        "objects": objects[:SHOWN_OBJECTS],
        "holders": holders[:SHOWN_OBJECTS],
        "has_more_holders": len(holders) > SHOWN_OBJECTS,
        "locked_count": Count(len(locked), is_capped=not are_all_read),
        "skips": action.on_conflict == "skip",
        "changelist_fields": _changelist_fields(request),
        "back_url": request.get_full_path(),
    }
    return TemplateResponse(request, "powercrud_dashboard/admin/confirm.html", context)


def _locked(action: BackgroundAction, model_admin: Admin, rows: SelectedRows) -> tuple[list[Any], bool]:
    """Return locks that conflict with the action, and whether all were read."""
    if not action.conflict:
        return [], True
    label, own = model_admin.opts.label_lower, lock_label(model_admin)
    if action.conflict != "model" and rows.pks is not None:
        return locks.locks_on(locks.lock_keys({label: rows.pks})), True
    on_model = locks.locks_on(locks.lock_keys({label: locks.ALL_OBJECTS}))
    are_all_read = len(on_model) < READ_OF_WHOLE_MODEL
    if action.conflict == "model":
        return on_model, are_all_read
    # Of locks in the tables of further parents it is not known here which of the model's objects they are on.
    on_objects = [lock for lock in on_model if lock.object_id != WHOLE_MODEL and lock.model_label == own]
    selected = rows.among([lock.object_id for lock in on_objects])
    on_all = [lock for lock in on_model if lock.object_id == WHOLE_MODEL]
    return [*on_all, *(lock for lock in on_objects if lock.object_id in selected)], are_all_read


def _holders(locked: list[Any], names: dict[tuple[str, str], Any]) -> list[Holder]:
    """Return the holders of these locks, each with the first of the objects that it has locked."""
    by_holder: dict[int, list[Any]] = {}
    for lock in locked:
        by_holder.setdefault(lock.active_task_id, []).append(lock)
    return [
        Holder(
            str(of_holder[0].active_task),
            Count(len(of_holder)),
            [names.get((lock.model_label, lock.object_id), lock) for lock in of_holder[:SHOWN_OBJECTS]],
        )
        for of_holder in by_holder.values()
    ]


def _changelist_fields(request: HttpRequest) -> list[tuple[str, str]]:
    """Return the fields of the changelist, those of its action_form included, which the page submits again."""
    own = ("csrfmiddlewaretoken", CONFIRMED)
    return [
        (name, value)
        for name, values in request.POST.lists()
        if name not in own and not name.startswith((f"{FORM_PREFIX}-", EDITABLE_PREFIX))
        for value in values
    ]
