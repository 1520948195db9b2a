from __future__ import annotations

from tests.settings.postgresql_redis import Q_CLUSTER as REDIS_CLUSTER
from tests.settings.sqlite import *

Q_CLUSTER = REDIS_CLUSTER
