"""The settings of docs/several-hosts.md, on one of the hosts of ``tests.faults.several_hosts``."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from tests.settings.base import *
from tests.settings.base import INSTALLED_APPS as TESTED_APPS
from tests.settings.base import ROOT, STATE_DIR

#: What this host has different from the others, and what is told by its environment in production.
OPTIONS = json.loads(os.environ.get("PCRUD_FAULTS_OPTIONS", "{}"))

_database = OPTIONS.get("database_at", [str(STATE_DIR / "postgresql"), 5432])
_redis = "redis://{}:{}".format(*OPTIONS["redis_at"]) if "redis_at" in OPTIONS else ""
os.environ.update(
    SECRET_KEY="only for the tests",
    DATABASE_HOST=_database[0],
    DATABASE_PORT=str(_database[1]),
    DATABASE_PASSWORD="",
    BROKER_URL=f"{_redis}/0",
    CACHE_URL=f"{_redis}/1",
    HEALTH_TOKEN="secret",
    RELEASE=OPTIONS.get("release", "none"),
)
_page = (ROOT / "docs" / "several-hosts.md").read_text()
_told: dict[str, Any] = {}
exec(re.findall(r"```python\n(.*?)```", _page, re.DOTALL)[0], _told)
globals().update({name: value for name, value in _told.items() if name.isupper()})

DATABASES = _told["DATABASES"]
DATABASES["default"]["USER"] = "postgres"
CACHES = _told["CACHES"]
if not _redis:
    # The test's own process, which is none of the hosts.
    _redis = f"unix://{STATE_DIR / 'redis' / 'redis.sock'}?db="
    CACHES["default"]["LOCATION"] = f"{_redis}1"
    _told["Q_CLUSTER"]["redis"] = f"{_redis}0"

INSTALLED_APPS = [*TESTED_APPS, "tests.faults", "tests.faults.shop"]
DATABASE_ROUTERS = []

# What takes minutes in production takes seconds here.
Q_CLUSTER = {**_told["Q_CLUSTER"], "workers": 2, "guard_cycle": 0.2, "log_level": "CRITICAL"}
POWERCRUD_SETTINGS = {**_told["POWERCRUD_SETTINGS"], "DASHBOARD_HEARTBEAT_TIMEOUT": 10, "CLEANUP_GRACE_PERIOD": 5}
