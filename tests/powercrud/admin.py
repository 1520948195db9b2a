from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from powercrud_dashboard.admin import BackgroundActionsMixin, background_action
from tests.powercrud.models import Book


@admin.register(Book)
class BookAdmin(BackgroundActionsMixin, admin.ModelAdmin):
    actions = ["rebind"]

    @background_action(description="Rebind selected books", permissions=["change"])
    def rebind(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        for book in queryset:
            book.save()
