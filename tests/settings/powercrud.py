"""A project with django-powercrud's views, moved to this package by one setting."""

from __future__ import annotations

import django

from tests.settings.sqlite import *
from tests.settings.sqlite import CSP_MIDDLEWARE as _CSP
from tests.settings.sqlite import INSTALLED_APPS as _APPS
from tests.settings.sqlite import MIDDLEWARE as _MIDDLEWARE
from tests.settings.sqlite import POWERCRUD_SETTINGS as _TESTED

INSTALLED_APPS = [
    *_APPS,
    "powercrud",
    "powercrud.contrib.favourites",
    "neapolitan",
    "crispy_forms",
    "crispy_tailwind",
    "tests.powercrud",
]
if django.VERSION < (6, 0):
    INSTALLED_APPS.append("template_partials")
# PowerCRUD's pages have inline scripts.
MIDDLEWARE = [*(path for path in _MIDDLEWARE if path != _CSP), "django_htmx.middleware.HtmxMiddleware"]
CRISPY_ALLOWED_TEMPLATE_PACKS = CRISPY_TEMPLATE_PACK = "tailwind"
ROOT_URLCONF = "tests.powercrud.urls"
MANAGER = "powercrud_dashboard.contrib.powercrud.PowerCrudManager"
POWERCRUD_SETTINGS = {
    **_TESTED,
    "ASYNC_ENABLED": True,
    "ASYNC_MANAGER_DEFAULT": {"manager_class": MANAGER},
    "BULK_MAX_SELECTED_RECORDS": 5000,
}
# It warns of each conflict with all keys.
LOGGING = {"version": 1, "disable_existing_loggers": False, "loggers": {"powercrud": {"level": "ERROR"}}}
