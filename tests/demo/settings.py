from __future__ import annotations

import os
from pathlib import Path

import django

import powercrud_dashboard

ROOT = Path(__file__).resolve().parents[2]
IN_CHECKOUT = Path(powercrud_dashboard.__file__).resolve().is_relative_to(ROOT)
#: Database, cache and nothing else; `make demo-check` uses a fresh directory.
DATA_DIR = Path(os.environ.get("PCRUD_DEMO_DATA", ROOT / ".demo"))
DATA_DIR.mkdir(parents=True, exist_ok=True)

SECRET_KEY = "the demo's key, which protects nothing"
DEBUG = True
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"]
ROOT_URLCONF = "tests.demo.urls"
WSGI_APPLICATION = None
USE_TZ = True
TIME_ZONE = "UTC"
STATIC_URL = "static/"
STATICFILES_DIRS = [ROOT / "static"] if IN_CHECKOUT else []
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGIN_URL = "admin:login"

#: "unfold" or "jazzmin", if that is installed; Django's own look otherwise.
THEME = os.environ.get("PCRUD_DEMO_THEME", "")

INSTALLED_APPS = [
    *([THEME] if THEME else []),
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_q",
    "django_htmx",
    "django_tables2",
    "django_filters",
    "powercrud_dashboard",
    "tests.demo.inventory",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "powercrud_dashboard.middleware.TaskNoticesMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [Path(__file__).with_name("templates"), *([ROOT / "templates"] if IN_CHECKOUT else [])],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATA_DIR / "db.sqlite3",
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
    }
}

# Shared by the web process and the workers: progress while SQLite is busy, and django-q2's cluster state.
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": DATA_DIR / "cache"},
}

Q_CLUSTER = {
    "name": "demo",
    "orm": "default",
    "workers": 2,
    "timeout": 600,
    "retry": 660,
    "poll": 0.2,
    "log_level": "WARNING",
}

JAZZMIN_UI_TWEAKS = {"default_theme_mode": "auto"}

POWERCRUD_SETTINGS = {"CACHE_NAME": "default", "DASHBOARD_MAIL_AFTER": 60, "DASHBOARD_RELEASE": "v2.4"}

# What the tasks log is on their pages; the console of the demo stays quiet.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {"tests.demo": {"level": "INFO"}},
}
# Mails are files.
if django.VERSION >= (6, 1):
    MAILERS = {
        "default": {
            "BACKEND": "django.core.mail.backends.filebased.EmailBackend",
            "OPTIONS": {"file_path": DATA_DIR / "mails"},
        }
    }
else:
    EMAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
    EMAIL_FILE_PATH = DATA_DIR / "mails"
