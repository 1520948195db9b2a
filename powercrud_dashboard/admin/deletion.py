"""Why "Delete selected" was refused in a worker, in the words of the page on which Django says so."""

from __future__ import annotations

from collections.abc import Collection
from html import unescape
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib.admin.utils import model_ngettext
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import translation
from django.utils.html import strip_tags
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as of_django

from powercrud_dashboard.exceptions import DeletionRefused, and_more
from powercrud_dashboard.text import KeptText

if TYPE_CHECKING:
    from powercrud_dashboard.admin.actions import Admin

#: Objects, or kinds of objects, that the message names.
NAMED = 20


def _listing(sentence: object) -> KeptText:
    return KeptText(format_lazy("{} {}", sentence, "%(items)s"), inner=["items"])


# Not marked for this package's catalogue: Django has them.
_PROTECTED = _listing(
    of_django("Deleting the selected %(objects_name)s would require deleting the following protected related objects:")
)
_NO_PERMISSION = _listing(
    of_django(
        "Deleting the selected %(objects_name)s would result in deleting related objects, but your account doesn't "
        "have permission to delete the following types of objects:"
    )
)


def is_refusal(answer: object) -> bool:
    """Return whether the answer of an action is Django's page that says why nothing can be deleted."""
    context = getattr(answer, "context_data", None) or {}
    return bool(context.get("protected") or context.get("perms_lacking"))


def refusal(model_admin: Admin, request: HttpRequest, queryset: QuerySet[Any]) -> Exception | None:
    """Return the error that says why these rows can't be deleted; None if they can."""
    # Names of models are kept in the site's own language.
    with translation.override(settings.LANGUAGE_CODE):
        _objects, _counts, lacking, protected = model_admin.get_deleted_objects(queryset, request)
        name = str(model_ngettext(queryset))
        if lacking:
            return PermissionDenied(_NO_PERMISSION(objects_name=name, items=_named(sorted(map(str, lacking)))))
        if protected:
            return DeletionRefused(
                _PROTECTED(objects_name=name, items=_named([_without_link(item) for item in protected]))
            )
    return None


def _named(items: Collection[str]) -> str:
    first = list(items)[:NAMED]
    return and_more(", ".join(first), len(items) - len(first))


def _without_link(item: object) -> str:
    return unescape(strip_tags(str(item)))
