from __future__ import annotations

from tests.settings import postgresql
from tests.settings.powercrud import *

DATABASES = postgresql.DATABASES
