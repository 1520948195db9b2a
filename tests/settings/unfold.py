"""The admin in the look of Unfold, whose own pages have inline scripts and styles."""

from __future__ import annotations

from tests.settings.sqlite import *
from tests.settings.sqlite import CSP_MIDDLEWARE as _CSP_MIDDLEWARE
from tests.settings.sqlite import INSTALLED_APPS as _APPS
from tests.settings.sqlite import MIDDLEWARE as _MIDDLEWARE

INSTALLED_APPS = ["unfold", *_APPS]
MIDDLEWARE = [name for name in _MIDDLEWARE if name != _CSP_MIDDLEWARE]
