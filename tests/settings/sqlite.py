from __future__ import annotations

from tests.settings.base import *
from tests.settings.base import ARCHIVE_DATABASE, STATE_DIR

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": STATE_DIR / "db.sqlite3",
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 30,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
        # A file, which the clusters that the tests start open as well.
        "TEST": {"NAME": STATE_DIR / "db.sqlite3"},
    },
    "archive": ARCHIVE_DATABASE,
}
