from __future__ import annotations

import uuid

from django.db import models

# As a project's models do that launch tasks: not all models are there yet.
import powercrud_dashboard.schedules  # noqa: F401


class Project(models.Model):
    name = models.CharField(max_length=100)
    archived = models.BooleanField(default=False)

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return self.name


class Visit(models.Model):
    """A row for each time that an action has worked on a project, and has stored that."""

    project = models.IntegerField()
    task = models.CharField(max_length=100)

    def __str__(self) -> str:
        return f"Visit of {self.project}"


class SpecialProject(Project):
    """The same rows under another name."""

    class Meta:
        proxy = True


class OrdinaryProject(Project):
    """For actions of an ordinary kind."""

    class Meta:
        proxy = True


class Shelf(models.Model):
    """Rows in a database of their own."""

    label = models.CharField(max_length=100)
    is_full = models.BooleanField(default=False)

    def __str__(self) -> str:
        return self.label


class Country(models.Model):
    """Keys that are texts."""

    name = models.CharField(max_length=60, primary_key=True)

    def __str__(self) -> str:
        return self.name


class Document(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)

    def __str__(self) -> str:
        return str(self.id)
