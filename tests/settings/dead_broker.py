"""A broker that nobody listens at."""

from __future__ import annotations

from tests.settings.base import Q_CLUSTER as ORM_CLUSTER
from tests.settings.base import STATE_DIR
from tests.settings.sqlite import *

Q_CLUSTER = {name: value for name, value in ORM_CLUSTER.items() if name != "orm"}
Q_CLUSTER["redis"] = f"unix://{STATE_DIR / 'nobody-listens-here.sock'}"
