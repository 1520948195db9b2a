"""Long admin actions in the background on django-q2: locks, live progress, tracebacks, retry."""

from __future__ import annotations

__version__ = "0.1.0"
