"""Links from the objects of tasks and locks to their pages in the admin."""

from __future__ import annotations

from django.apps import apps
from django.contrib.admin import AdminSite
from django.contrib.admin.utils import quote
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse


def object_url(site: AdminSite, request: HttpRequest, model_label: str, object_id: str) -> str:
    """Return the address of the object's admin page, or "" if there is none that this person may open."""
    try:
        model = apps.get_model(model_label)
    except (LookupError, ValueError):
        return ""
    if not site.is_registered(model) or not site.get_model_admin(model).has_view_or_change_permission(request):
        return ""
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}_change"
    try:
        return reverse(name, args=[quote(object_id)], current_app=site.name)
    except NoReverseMatch:
        return ""
