"""Addresses of the dashboard's pages in an admin site."""

from __future__ import annotations

from django.urls import NoReverseMatch, reverse

from powercrud_dashboard.dashboard.urls import URL_NAME
from powercrud_dashboard.models import TaskRecord


def dashboard_url(site_name: str, page: str, *args: object) -> str:
    """Return the address of a page in this admin site, or "" if the site has none."""
    try:
        return reverse(f"admin:{URL_NAME.format(page)}", args=args, current_app=site_name)
    except NoReverseMatch:
        return ""


def task_url(site_name: str, task_name: str) -> str:
    """Return the address of a task's page in this admin site, or "" if it has none."""
    pk = TaskRecord.objects.filter(task_name=task_name).values_list("pk", flat=True).first()
    return dashboard_url(site_name, "change", pk) if pk else ""
