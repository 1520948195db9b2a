"""Models of a project that refer to the records of tasks. The app is installed by the tests that need it."""

from __future__ import annotations

from django.db import models


class Invoice(models.Model):
    """May not lose the record of the task that made it."""

    record = models.ForeignKey("powercrud_dashboard.TaskRecord", on_delete=models.PROTECT)


class Approval(models.Model):
    record = models.ForeignKey("powercrud_dashboard.TaskRecord", on_delete=models.RESTRICT)


class Comment(models.Model):
    """Goes with the record."""

    record = models.ForeignKey("powercrud_dashboard.TaskRecord", on_delete=models.CASCADE)


class Batch(models.Model):
    record = models.ForeignKey("powercrud_dashboard.TaskRecord", null=True, on_delete=models.SET_NULL)


class Place(models.Model):
    name = models.CharField(max_length=100)


class Cafe(Place):
    """Its rows are rows of its parent's table too."""

    has_terrace = models.BooleanField(default=False)


class Bakery(Place):
    ovens = models.PositiveIntegerField(default=1)


class Business(models.Model):
    business_id = models.BigAutoField(primary_key=True)


class Eatery(Place, Business):
    """A row in three tables, with two keys."""


class FavouriteCafe(Cafe):
    class Meta:
        proxy = True


class Opening(models.Model):
    """Has the key of its place without being it."""

    place = models.OneToOneField(Place, primary_key=True, on_delete=models.CASCADE)
