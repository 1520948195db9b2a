from __future__ import annotations

from typing import Any

from django.views.debug import SafeExceptionReporterFilter


class HidesLimits(SafeExceptionReporterFilter):
    """A project's own idea of what is secret."""

    def cleanse_setting(self, key: str, value: Any) -> Any:
        return "hidden" if key == "limit" else super().cleanse_setting(key, value)
