"""In clusters: the points at which a process kills itself when a round wants it to."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig


class FaultsConfig(AppConfig):
    name = "tests.faults"
    label = "faults"

    def ready(self) -> None:
        from django.conf import settings
        from django.db.models.signals import pre_save
        from django_q.models import Success, Task
        from django_q.signals import post_execute_in_worker, pre_execute

        from tests.faults import clock, hosts, release
        from tests.faults.crashes import crash_here

        if host := settings.OPTIONS.get("host"):
            hosts.take_name(host)
        clock.install()
        release.use(settings.OPTIONS.get("releases_later", 0))

        def crash(stage: str) -> Any:
            def receiver(**kwargs: Any) -> None:
                crash_here(stage)

            return receiver

        for signal, sender, stage in (
            (pre_execute, None, "before the claim"),
            (post_execute_in_worker, None, "before the acknowledgement"),
            (pre_save, Task, "in the monitor"),
            (pre_save, Success, "in the monitor"),
        ):
            signal.connect(crash(stage), sender=sender, weak=False, dispatch_uid=f"faults {stage} {sender}")
