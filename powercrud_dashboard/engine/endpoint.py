"""The addresses of the progress endpoint, which a project puts into its ``urlpatterns``, and who may use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.urls import URLPattern, URLResolver, include, path

from powercrud_dashboard.engine import registry


class ProgressEndpoint:
    """What a manager has to do with its progress endpoint."""

    @classmethod
    def as_view(cls) -> Callable[..., Any]:
        """Return the progress endpoint as a view."""
        view: Callable[..., Any] = registry.progress_view().as_view(manager_class=cls)
        return view

    @classmethod
    def get_url(cls, pattern: str = "powercrud/async/progress/", name: str = "powercrud_async_progress") -> URLPattern:
        """Return a URL pattern for the progress endpoint, without a namespace."""
        return path(pattern, cls.as_view(), name=name)

    @classmethod
    def get_urlpatterns(cls, prefix: str = "powercrud/", namespace: str = "powercrud") -> URLResolver:
        """Return the URLs to put into ``urlpatterns``: ``async_progress`` in a namespace.

        Where the URLs of django-powercrud are in use too, whose namespace is ``powercrud``, give it another one.
        """
        patterns = [path("async/progress/", cls.as_view(), name="async_progress")]
        return path(prefix, include((patterns, "powercrud"), namespace=namespace))

    def is_open_to_all(self, task_name: str) -> bool:
        """Return whether the endpoint answers everybody who knows the task's name, also without a login."""
        return False
