"""The settings with which the docstrings are read."""

from __future__ import annotations

SECRET_KEY = "only for the documentation"  # noqa: S105
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django_q",
    "django_htmx",
    "django_tables2",
    "django_filters",
    "powercrud_dashboard",
]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
Q_CLUSTER = {"orm": "default", "timeout": 60, "retry": 90}
USE_TZ = True
