"""A library, whose books can be made to wait or to fail when they are saved or deleted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models, transaction
from powercrud.async_context import register_descendant_conflicts, skip_nested_async

from powercrud_dashboard.async_context import get_current_task
from tests.services import wait_until
from tests.testapp.tasks import wait_for_file


class Genre(models.Model):
    name = models.CharField(max_length=50)

    def __str__(self) -> str:
        return self.name


class Book(models.Model):
    title = models.CharField(max_length=50)
    pages = models.PositiveIntegerField(default=100)
    is_read = models.BooleanField(default=False)
    shelf = models.CharField(max_length=10, blank=True, choices=[("low", "Low"), ("high", "High")])
    genre = models.ForeignKey(Genre, models.CASCADE, null=True, blank=True)
    tags = models.ManyToManyField(Genre, related_name="tagged", blank=True)
    #: The file that a change of the book waits for.
    gate = models.CharField(max_length=200, blank=True)
    #: The file that says that a change of the book is committed; then it waits until somebody cancels the task.
    late_gate = models.CharField(max_length=200, blank=True)

    def __str__(self) -> str:
        return self.title

    def save(self, *args: Any, **kwargs: Any) -> None:
        super().save(*args, **kwargs)
        if skip_nested_async():
            register_descendant_conflicts("library.Chapter", self.chapter_set.values_list("pk", flat=True))
        if self.gate:
            wait_for_file(self.gate)
        if self.late_gate:
            transaction.on_commit(self._wait_until_cancelled)

    def _wait_until_cancelled(self) -> None:
        Path(f"{self.late_gate}.started-{os.getpid()}").touch()
        wait_until(lambda: get_current_task().cancel_requested, "the task is cancelled")

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        if self.gate:
            wait_for_file(self.gate)
        return super().delete(*args, **kwargs)

    def clean(self) -> None:
        if self.title == "bad" and self.pages > 100:
            raise ValidationError({"title": ["It is a bad book."]})


class Chapter(models.Model):
    book = models.ForeignKey(Book, models.CASCADE)

    def __str__(self) -> str:
        return f"chapter {self.pk}"
