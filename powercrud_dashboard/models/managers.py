"""The manager of all the package's models."""

from __future__ import annotations

from typing import TypeVar

from django.db import models, router

Row = TypeVar("Row", bound=models.Model)


class OfPrimary(models.Manager[Row]):
    """Reads where it writes.

    A replica that lags behind must not decide who holds a lock, and a task that has just been launched is there.
    """

    def get_queryset(self) -> models.QuerySet[Row]:
        return super().get_queryset().using(router.db_for_write(self.model))
