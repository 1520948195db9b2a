from __future__ import annotations

from tests.settings.base import *
from tests.settings.base import ARCHIVE_DATABASE, STATE_DIR

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "pcrud",
        "USER": "postgres",
        # The directory of a socket that tests/services.py makes.
        "HOST": str(STATE_DIR / "postgresql"),
        # Clusters open the database that the test process has made.
        "TEST": {"NAME": "pcrud"},
    },
    "archive": ARCHIVE_DATABASE,
}
