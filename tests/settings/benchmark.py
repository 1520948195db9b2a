"""A database, a cache and a broker for the benchmarks, with the peer beside this package."""

from __future__ import annotations

import os

from tests.settings.base import *
from tests.settings.base import INSTALLED_APPS as TESTED_APPS
from tests.settings.base import Q_CLUSTER as TEST_CLUSTER
from tests.settings.base import STATE_DIR

#: "sqlite", "postgresql", or "postgresql-redis" with Redis as cache and broker.
ENVIRONMENT = os.environ.get("PCRUD_BENCH_ON", "sqlite")

if ENVIRONMENT == "sqlite":
    from tests.settings.sqlite import DATABASES
else:
    from tests.settings.postgresql import DATABASES
DATABASES = {"default": {**DATABASES["default"], "CONN_MAX_AGE": int(os.environ.get("PCRUD_BENCH_CONN_MAX_AGE", "0"))}}
DATABASE_ROUTERS = []

NOT_NEEDED = ("import_export", "django_object_actions", "tests.testapp")
PEER = ["powercrud", "tests.benchmarks.peer"]
OURS = "powercrud_dashboard"
# Less for what a worker takes: with this package but not the peer, or with neither.
WITHOUT = {
    "all": NOT_NEEDED,
    "ours": (*NOT_NEEDED, *PEER),
    "bare": (*NOT_NEEDED, *PEER, OURS),
}[os.environ.get("PCRUD_BENCH_APPS", "all")]
INSTALLED_APPS = [app for app in [*TESTED_APPS, *PEER] if app not in WITHOUT]
MIGRATION_MODULES = {"peer": None}
ROOT_URLCONF = "tests.benchmarks.urls"

REDIS_SOCKET = STATE_DIR / "redis" / "redis.sock"
Q_CLUSTER = {name: value for name, value in TEST_CLUSTER.items() if name != "orm"}
Q_CLUSTER |= {"save_limit": 0, "poll": 0.02, "log_level": "CRITICAL"}
if ENVIRONMENT == "postgresql-redis":
    Q_CLUSTER["redis"] = f"unix://{REDIS_SOCKET}"
    CACHES = {
        "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": f"unix://{REDIS_SOCKET}"}
    }
else:
    Q_CLUSTER["orm"] = "default"
    CACHES = {"default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "bench_cache"}}
    CACHES["default"]["OPTIONS"] = {"MAX_ENTRIES": 1_000_000}

# The same names for both managers.
POWERCRUD_SETTINGS = {"ASYNC_ENABLED": True, "CACHE_NAME": "default"}
# Bare django-q2 is not observed.
POWERCRUD_SETTINGS["DASHBOARD_TRACK"] = os.environ.get("PCRUD_BENCH_TRACK", "own")

# The peer warns of each conflict with all keys.
LOGGING = {"version": 1, "disable_existing_loggers": False, "loggers": {"powercrud": {"level": "ERROR"}}}
