"""Actions as another package has them, which knows nothing of this one."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest


@admin.action(description="Count rows", permissions=["view"])
def count_rows(modeladmin: Any, request: HttpRequest, queryset: QuerySet[Any]) -> None:
    modeladmin.message_user(request, f"There are {queryset.count()} rows.")
