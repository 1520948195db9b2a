"""Models of the kinds that other packages bring."""

from __future__ import annotations

from django.db import models
from mptt.models import MPTTModel, TreeForeignKey
from parler.models import TranslatableModel, TranslatedFields
from simple_history.models import HistoricalRecords


class Category(MPTTModel):
    name = models.CharField(max_length=50)
    parent = TreeForeignKey("self", models.CASCADE, null=True, blank=True)

    def __str__(self) -> str:
        return self.name


class Article(TranslatableModel):
    translations = TranslatedFields(title=models.CharField(max_length=50))

    def __str__(self) -> str:
        return f"article {self.pk}"


class Invoice(models.Model):
    number = models.CharField(max_length=20)
    is_sent = models.BooleanField(default=False)
    history = HistoricalRecords()

    def __str__(self) -> str:
        return self.number


class Page(models.Model):
    title = models.CharField(max_length=50)

    def __str__(self) -> str:
        return self.title


class Folder(models.Model):
    name = models.CharField(max_length=50)

    def __str__(self) -> str:
        return self.name


class Line(models.Model):
    """Goes with its folder."""

    folder = models.ForeignKey(Folder, models.CASCADE)
    text = models.CharField(max_length=50)

    def __str__(self) -> str:
        return self.text


class Pin(models.Model):
    """Stays without its folder."""

    folder = models.ForeignKey(Folder, models.SET_NULL, null=True)

    def __str__(self) -> str:
        return f"pin {self.pk}"


class Seal(models.Model):
    """Keeps its folder from being deleted."""

    folder = models.ForeignKey(Folder, models.PROTECT)
    number = models.PositiveIntegerField()

    def __str__(self) -> str:
        return f"seal <{self.number}>"


class Stamp(models.Model):
    """Goes with its folder, if that is permitted."""

    folder = models.ForeignKey(Folder, models.CASCADE)

    def __str__(self) -> str:
        return f"stamp {self.pk}"


class Sender(models.Model):
    sender_id = models.BigAutoField(primary_key=True)
    name = models.CharField(max_length=50)

    def __str__(self) -> str:
        return self.name


class Receiver(models.Model):
    receiver_id = models.BigAutoField(primary_key=True)
    city = models.CharField(max_length=50)

    def __str__(self) -> str:
        return self.city


class Partner(Sender, Receiver):
    """A row in three tables."""

    def __str__(self) -> str:
        return self.name
