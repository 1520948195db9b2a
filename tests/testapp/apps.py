from __future__ import annotations

import os

from django.apps import AppConfig


class TestappConfig(AppConfig):
    name = "tests.testapp"
    label = "testapp"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from tests.testapp import processes

        if method := os.environ.get("PCRUD_TEST_START_METHOD"):
            processes.start_processes_by(method)
        if path := os.environ.get("PCRUD_TEST_HANDLERS"):
            processes.install_handlers(path)
        if os.environ.get("PCRUD_TEST_EARLY_QUERY"):
            # As many a project does, although Django advises against it.
            self.get_model("Project").objects.exists()
