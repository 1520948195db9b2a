"""The page that asks before an action runs: for its parameters, for a confirmation, and showing what is locked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from django.contrib.admin import helpers
from django.core.exceptions import ValidationError
from django.core.files.uploadedfile import UploadedFile
from django.db.models import QuerySet
from django.forms import BaseForm, Form
from django.http import HttpRequest, QueryDict
from django.template.response import TemplateResponse
from django.utils.datastructures import MultiValueDict
from django.utils.translation import gettext as _

from powercrud_dashboard import locks
from powercrud_dashboard.admin.selected import Rows, lock_label
from powercrud_dashboard.models.coordination import WHOLE_MODEL

if TYPE_CHECKING:
    from powercrud_dashboard.admin.actions import Admin, BackgroundAction

#: Tells the form's fields from what the changelist itself sends.
PREFIX = "pcrud"
CONFIRMED = "pcrud-confirmed"

#: Objects, and locked ones, that the page names; their numbers are exact.
NAMED = 20


def sent_form(action: BackgroundAction, request: HttpRequest) -> BaseForm | None:
    """Return the form as the page has sent it; None if the page has not been shown yet."""
    if CONFIRMED not in request.POST:
        return None
    return _bound(action, request.POST, request.FILES)


def form_of(
    action: BackgroundAction, post: Mapping[str, list[str]], files: Mapping[str, Iterable[UploadedFile[Any]]]
) -> BaseForm | None:
    """Return the form that was sent with a click, valid once more; None for an action without a form.

    Raises:
        ValidationError: if what was valid at the click is not valid any more.
    """
    if action.form is None:
        return None
    data = QueryDict(mutable=True)
    for name, values in post.items():
        data.setlist(name, list(values))
    form = _bound(action, data, MultiValueDict({name: list(uploads) for name, uploads in files.items()}))
    if not form.is_valid():
        problems = "; ".join(f"{name}: {' '.join(map(str, errors))}" for name, errors in form.errors.items())
        raise ValidationError(_("The parameters are not valid any more: %(problems)s") % {"problems": problems})
    return form


def _bound(action: BackgroundAction, data: QueryDict, files: MultiValueDict[str, Any]) -> BaseForm:
    return (action.form or Form)(data, files, prefix=PREFIX)


def ask(
    action: BackgroundAction,
    model_admin: Admin,
    request: HttpRequest,
    queryset: QuerySet[Any],
    form: BaseForm | None,
) -> TemplateResponse:
    """Return the page that asks; ``form`` is one that was filled in wrongly, or None at first."""
    if form is None:
        form = (action.form or Form)(prefix=PREFIX)
    rows = Rows.of(queryset)
    locked = _locked(action, model_admin, rows)
    label = action.label_for(model_admin)
    request.current_app = model_admin.admin_site.name
    context = {
        **model_admin.admin_site.each_context(request),
        "title": label,
        "opts": model_admin.opts,
        "media": model_admin.media + form.media,
        "action": action,
        "form": form,
        "count": rows.count_in(queryset),
        "objects": queryset[:NAMED],
        "locked": locked[:NAMED],
        "locked_count": len(locked),
        "skips": action.on_conflict == "skip",
        "sent": _sent_by_the_list(request),
        "back_url": request.get_full_path(),
    }
    return TemplateResponse(request, "powercrud_dashboard/admin/confirm.html", context)


def _locked(action: BackgroundAction, model_admin: Admin, rows: Rows) -> list[Any]:
    """Return the locks that are in the action's way."""
    if not action.conflict:
        return []
    label = lock_label(model_admin)
    wants_all = action.conflict == "model" or rows.pks is None
    keys = {label: [WHOLE_MODEL]} if wants_all else locks.normalise({label: rows.pks or []})
    return locks.locks_on(keys)


def _sent_by_the_list(request: HttpRequest) -> list[tuple[str, str]]:
    """Return what the changelist has sent, to be sent once more with the answer."""
    names = ("action", "index", "select_across", helpers.ACTION_CHECKBOX_NAME)
    return [(name, value) for name in names for value in request.POST.getlist(name)]
