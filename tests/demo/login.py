"""The demo's superuser; it guards nothing."""

from __future__ import annotations

USERNAME = "demo"
PASSWORD = "demo"
