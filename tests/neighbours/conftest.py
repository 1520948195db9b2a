from __future__ import annotations

from django.conf import settings

# These tests need the other packages' apps: run them with --ds tests.settings.neighbours.
collect_ignore_glob = [] if "tests.neighbours" in settings.INSTALLED_APPS else ["test_*.py", "admin.py", "models.py"]
