from __future__ import annotations

from django.db import models


class SourceFile(models.Model):
    """A file of the running Python's standard library."""

    path = models.CharField(max_length=500, unique=True, help_text="Relative to the standard library's directory.")
    size = models.PositiveBigIntegerField(default=0, help_text="Bytes.")
    sha256 = models.CharField("SHA-256", max_length=64, blank=True)
    lines = models.PositiveIntegerField(null=True, blank=True)
    definitions = models.PositiveIntegerField("names defined", null=True, blank=True)
    checked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["path"]

    def __str__(self) -> str:
        return self.path
