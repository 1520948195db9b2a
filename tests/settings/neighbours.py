"""Other packages that change the admin, installed beside ours."""

from __future__ import annotations

from tests.settings.sqlite import *
from tests.settings.sqlite import INSTALLED_APPS as _APPS
from tests.settings.sqlite import MIDDLEWARE as _MIDDLEWARE

INSTALLED_APPS = [
    *_APPS,
    "django_otp",
    "django_otp.plugins.otp_static",
    "guardian",
    "mptt",
    "parler",
    "reversion",
    "simple_history",
    "tests.neighbours",
]
MIDDLEWARE = [
    *_MIDDLEWARE,
    "django.middleware.locale.LocaleMiddleware",
    "django_otp.middleware.OTPMiddleware",
    "simple_history.middleware.HistoryRequestMiddleware",
]
ROOT_URLCONF = "tests.neighbours.urls"
AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.ModelBackend", "guardian.backends.ObjectPermissionBackend"]
LANGUAGES = [("en", "English"), ("en-gb", "British English"), ("de", "German")]
PARLER_LANGUAGES = {None: ({"code": "en"}, {"code": "de"}), "default": {"fallbacks": ["en"]}}
ANONYMOUS_USER_NAME = None
GUARDIAN_MONKEY_PATCH_USER = False
