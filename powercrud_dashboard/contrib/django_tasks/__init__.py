"""Django's tasks framework: a backend that runs ``@task`` functions on django-q2.

It needs Django 6 or later, or the package ``django-tasks``.
"""

from __future__ import annotations

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured

if not apps.is_installed("powercrud_dashboard"):
    # Otherwise Django names one of the models, which is no help.
    raise ImproperlyConfigured(
        "DjangoQ2Backend keeps tasks and their results in tables: add 'powercrud_dashboard' to INSTALLED_APPS."
    )

from powercrud_dashboard.contrib.django_tasks.backend import DjangoQ2Backend

__all__ = ["DjangoQ2Backend"]
