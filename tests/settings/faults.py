"""One lane of the fault suite: a database, a broker, and what a round changes of the clusters that it starts."""

from __future__ import annotations

import json
import os

# So long that faults meet it.
os.environ.setdefault("PCRUD_VISIT_TAKES", "0.05")

from tests.settings.base import *
from tests.settings.base import INSTALLED_APPS as TESTED_APPS
from tests.settings.base import Q_CLUSTER as TEST_CLUSTER
from tests.settings.base import SECRET_KEY as USUAL_KEY
from tests.settings.base import STATE_DIR

database, _, broker = os.environ["PCRUD_FAULTS_LANE"].partition("-")
#: What this process, or the clusters of a round, have different.
OPTIONS = json.loads(os.environ.get("PCRUD_FAULTS_OPTIONS", "{}"))

if database == "sqlite":
    from tests.settings.sqlite import DATABASES
else:
    from tests.settings.postgresql import DATABASES
DATABASES = {"default": {**DATABASES["default"], "OPTIONS": {**DATABASES["default"].get("OPTIONS", {})}}}
if "database_at" in OPTIONS:
    # From another host than the server's.
    DATABASES["default"]["HOST"], DATABASES["default"]["PORT"] = OPTIONS["database_at"]
if "max_page_count" in OPTIONS:
    # SQLite then finds the disk full, in its own words.
    DATABASES["default"]["OPTIONS"]["init_command"] += f" PRAGMA max_page_count={OPTIONS['max_page_count']};"
if database == "sqlite":
    # Impatient, so that "database is locked" is met.
    DATABASES["default"]["OPTIONS"]["timeout"] = OPTIONS.get("busy_timeout", 5)

INSTALLED_APPS = [*TESTED_APPS, "tests.faults"]
DATABASE_ROUTERS = []
SECRET_KEY = OPTIONS.get("secret_key", USUAL_KEY)
SECRET_KEY_FALLBACKS = OPTIONS.get("secret_key_fallbacks", [])

Q_CLUSTER = {
    **{name: value for name, value in TEST_CLUSTER.items() if name != "orm"},
    "workers": 3,
    "timeout": 8,
    "retry": OPTIONS.get("retry", 10),
    "save_limit": OPTIONS.get("save_limit", 250),
    "max_attempts": 0,
    "log_level": "CRITICAL",
}
if broker == "orm":
    Q_CLUSTER["orm"] = "default"
elif "redis_at" in OPTIONS:
    Q_CLUSTER["redis"] = "redis://{}:{}".format(*OPTIONS["redis_at"])
else:
    Q_CLUSTER["redis"] = f"unix://{STATE_DIR / 'redis' / 'redis.sock'}"

# What takes hours in production takes seconds here.
POWERCRUD_SETTINGS = {
    "CACHE_NAME": "default",
    "CLEANUP_GRACE_PERIOD": 3,
    "DASHBOARD_HEARTBEAT_TIMEOUT": 6,
    "MAX_TASK_DURATION": 20,
}
