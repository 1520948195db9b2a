from __future__ import annotations

import uuid

from django.db import models


class Project(models.Model):
    name = models.CharField(max_length=100)
    archived = models.BooleanField(default=False)

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return self.name


class SpecialProject(Project):
    """The same rows under another name."""

    class Meta:
        proxy = True


class Shelf(models.Model):
    """Rows in a database of their own."""

    label = models.CharField(max_length=100)
    is_full = models.BooleanField(default=False)

    def __str__(self) -> str:
        return self.label


class Document(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)

    def __str__(self) -> str:
        return str(self.id)
