"""Links from the objects of tasks and locks to their pages in the admin."""

from __future__ import annotations

from django.apps import apps
from django.contrib.admin import AdminSite
from django.contrib.admin.utils import quote
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse

from powercrud_dashboard.models.coordination import WHOLE_MODEL


class ObjectLinks:
    """Addresses of objects' admin pages for one request: what a person may open is asked once a model."""

    def __init__(self, site: AdminSite, request: HttpRequest) -> None:
        self._site = site
        self._request = request
        self._names: dict[str, str] = {}

    def url(self, model_label: str, object_id: str) -> str:
        """Return the address of the object's admin page, or "" if there is none that this person may open."""
        if model_label not in self._names:
            self._names[model_label] = self._url_name(model_label)
        name = self._names[model_label]
        if not name or object_id == WHOLE_MODEL:
            return ""
        try:
            return reverse(name, args=[quote(object_id)], current_app=self._site.name)
        except NoReverseMatch:
            return ""

    def _url_name(self, model_label: str) -> str:
        try:
            model = apps.get_model(model_label)
        except (LookupError, ValueError):
            return ""
        site, request = self._site, self._request
        if not site.is_registered(model) or not site.get_model_admin(model).has_view_or_change_permission(request):
            return ""
        return f"admin:{model._meta.app_label}_{model._meta.model_name}_change"
