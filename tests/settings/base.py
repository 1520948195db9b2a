from __future__ import annotations

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import django

import powercrud_dashboard

ROOT = Path(__file__).resolve().parents[2]
#: False when a built wheel is under test: then its own templates and static files must do.
IN_CHECKOUT = Path(powercrud_dashboard.__file__).resolve().is_relative_to(ROOT)

#: Shared by the test process and the clusters that it starts.
STATE_DIR = Path(os.environ.get("PCRUD_TEST_STATE") or tempfile.mkdtemp(prefix="pcrud-test-"))
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and not STATE_DIR.name.endswith(f"-{worker}"):
    # Of test processes side by side each has its own database, servers and clusters.
    STATE_DIR = STATE_DIR.with_name(f"{STATE_DIR.name}-{worker}")
    STATE_DIR.mkdir(exist_ok=True)
os.environ["PCRUD_TEST_STATE"] = str(STATE_DIR)

SECRET_KEY = "only for the tests"
DEBUG = False
ALLOWED_HOSTS = ["*"]
# Django 6.1 asks for it; older ones do not look at it.
MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}
USE_TZ = True
TIME_ZONE = "UTC"
ROOT_URLCONF = "tests.urls"
# Where makemessages puts what it finds in templates/, which in a wheel lies within the package.
LOCALE_PATHS = [ROOT / "powercrud_dashboard" / "locale"] if IN_CHECKOUT else []
STATIC_URL = "static/"
STATICFILES_DIRS = [ROOT / "static"] if IN_CHECKOUT else []
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
LOGIN_URL = "admin:login"

CSP_MIDDLEWARE = (
    "django.middleware.csp.ContentSecurityPolicyMiddleware"
    if django.VERSION >= (6, 0)
    else "tests.middleware.content_security_policy"
)

INSTALLED_APPS = [
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
    "import_export",
    "django_object_actions",
    "tests.testapp",
]

#: Django's tasks framework, or its backport; "" where neither is there.
TASKS_FRAMEWORK = "django.tasks" if django.VERSION >= (6, 0) else "django_tasks" * bool(find_spec("django_tasks"))
if TASKS_FRAMEWORK == "django_tasks":
    INSTALLED_APPS.append("django_tasks")
TASKS = {
    "default": {
        "BACKEND": "powercrud_dashboard.contrib.django_tasks.DjangoQ2Backend",
        "QUEUES": ["default", "queue_1"],
    },
    "immediate": {"BACKEND": f"{TASKS_FRAMEWORK}.backends.immediate.ImmediateBackend", "QUEUES": []},
    "dummy": {"BACKEND": f"{TASKS_FRAMEWORK}.backends.dummy.DummyBackend"},
}

DATABASE_ROUTERS = ["tests.testapp.routers.ArchiveRouter"]

#: The other database is a file on every run.
ARCHIVE_DATABASE = {
    "ENGINE": "django.db.backends.sqlite3",
    "NAME": STATE_DIR / "archive.sqlite3",
    "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 30, "init_command": "PRAGMA journal_mode=WAL;"},
    "TEST": {"NAME": STATE_DIR / "archive.sqlite3"},
}

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    CSP_MIDDLEWARE,
]

# For Django's own middleware, where there is one.
SECURE_CSP = {"default-src": ["'self'"]}

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [ROOT / "templates"] if IN_CHECKOUT else [],
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

CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": STATE_DIR / "cache"},
}

Q_CLUSTER = {
    "name": "pcrud-tests",
    "workers": 2,
    "timeout": 60,
    "retry": 90,
    "poll": 0.1,
    "guard_cycle": float(os.environ.get("PCRUD_TEST_GUARD_CYCLE", "0.2")),
    "orm": "default",
    "log_level": "WARNING",
}

# Real clusters are quick to notice a dead worker, so that the tests are quick too.
POWERCRUD_SETTINGS: dict[str, object] = {"CACHE_NAME": "default", "DASHBOARD_HEARTBEAT_TIMEOUT": 5}
if os.environ.get("PCRUD_TEST_SCHEDULES"):
    POWERCRUD_SETTINGS["DASHBOARD_SCHEDULE_LOCKS"] = {"plain": True}

# For the clusters of a test whose own process tells the same receiver.
if webhook := os.environ.get("PCRUD_TEST_WEBHOOK"):
    POWERCRUD_SETTINGS["DASHBOARD_ALERTS"] = {"webhook": {"url": webhook, "secret": "s3cret"}}

# As a project sets the level of its own loggers.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {"tests.testapp.chatty": {"level": "INFO"}},
}

# Says for itself that it wants to be told.
DJANGO_OBJECT_ACTIONS_DEFAULT_HTTP_METHOD = "POST"
