"""Naive local times, in a time zone that is far from UTC."""

from __future__ import annotations

from tests.settings.postgresql import *

USE_TZ = False
TIME_ZONE = "Asia/Tokyo"
