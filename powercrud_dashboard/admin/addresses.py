"""Addresses of the dashboard's pages in an admin site."""

from __future__ import annotations

from django.contrib import admin
from django.urls import NoReverseMatch, reverse

from powercrud_dashboard.dashboard.urls import URL_NAME
from powercrud_dashboard.models import TaskRecord


def dashboard_url(site_name: str, page: str, *args: object) -> str:
    """Return the address of a page, or "" if there is none.

    It is the one in this admin site; for a site that does not have the pages, the one outside of the admin, or in the
    default site.
    """
    url_name = URL_NAME.format(page)
    for namespace, instance in (
        ("admin", site_name),
        ("powercrud_dashboard", None),
        ("admin", admin.site.name),
    ):
        try:
            return reverse(f"{namespace}:{url_name}", args=args, current_app=instance)
        except NoReverseMatch:
            continue
    return ""


def task_url(site_name: str, task_name: str) -> str:
    """Return the address of a task's page in this admin site, or "" if it has none."""
    pk = TaskRecord.objects.filter(task_name=task_name).values_list("pk", flat=True).first()
    return dashboard_url(site_name, "change", pk) if pk else ""
