from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand

from tests.demo.inventory import library
from tests.demo.inventory.models import SourceFile
from tests.demo.login import PASSWORD, USERNAME


class Command(BaseCommand):
    help = "Fills the inventory from the standard library, and makes the demo's superuser."

    def handle(self, *args: Any, **options: Any) -> None:
        files = [
            SourceFile(path=str(path.relative_to(library.LIBRARY)), size=path.stat().st_size)
            for path in library.library_files()
        ]
        SourceFile.objects.bulk_create(files, ignore_conflicts=True)
        users = get_user_model()
        if not users.objects.filter(username=USERNAME).exists():
            users.objects.create_superuser(USERNAME, "demo@example.com", PASSWORD)
        self.stdout.write(f"{SourceFile.objects.count()} files from {library.LIBRARY}")
