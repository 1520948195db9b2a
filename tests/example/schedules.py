"""What runs by itself."""

from __future__ import annotations

from powercrud_dashboard.schedules import (
    cleanup_async_artifacts,
    declared_schedules,
    scheduled,
    sync_schedules,
)


@scheduled(every="daily", name="example nightly", conflict_ids={"testapp.Project": []})
def nightly(day: str = "") -> str:
    return f"done {day}"


def tidy() -> list[str]:
    """Write the declared schedules, and clean up. Return the names of the schedules."""
    sync_schedules(dry_run=True)
    cleanup_async_artifacts()
    return sorted(declared_schedules())
