"""The addresses of the pages, for code that is on none of them."""

from __future__ import annotations

from django.contrib import admin
from django.http import QueryDict
from django.urls import NoReverseMatch, reverse

#: The URL names of a ``ModelAdmin``, so that the links of the admin lead to these pages.
URL_NAME = "powercrud_dashboard_taskrecord_{}"


def dashboard_url(site_name: str | None, page: str, *args: object, **parameters: object) -> str:
    """Return the URL of a page, with these query parameters, or "" if there is none.

    If the admin site does not have the pages, the URL is outside of the admin or in the default admin site.
    """
    url_name = URL_NAME.format(page)
    for namespace, instance in (
        ("admin", site_name),
        ("powercrud_dashboard", None),
        ("admin", admin.site.name),
    ):
        try:
            url = reverse(f"{namespace}:{url_name}", args=args, current_app=instance)
        except NoReverseMatch:
            continue
        query = QueryDict(mutable=True)
        query.update({name: str(value) for name, value in parameters.items()})
        return f"{url}?{query.urlencode()}" if query else url
    return ""
