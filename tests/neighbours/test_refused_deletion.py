"""What "Delete selected" can't delete in a worker is said as its own page says it."""

from __future__ import annotations

from html import unescape

import pytest
from django.core.exceptions import PermissionDenied
from django.utils.translation import gettext_lazy

from powercrud_dashboard.admin.deletion import NAMED
from powercrud_dashboard.exceptions import DeletionRefused
from powercrud_dashboard.models import TaskRecord
from tests.clicks import TASKS, choose, said
from tests.neighbours.models import Folder, Seal, Stamp
from tests.workers import deliver

pytestmark = pytest.mark.django_db(transaction=True)

FOLDERS = "/more/neighbours/folder/"
PROTECTED = (
    "Deleting the selected folder would require deleting the following protected related objects: Seal: seal <1>"
)
LACKING = (
    "Deleting the selected folders would result in deleting related objects, but your account doesn't have permission "
    "to delete the following types of objects: stamp"
)


def test_the_objects_that_protect_are_named(boss):
    folder = Folder.objects.create(name="one")
    Seal.objects.create(folder=folder, number=1)
    choose(boss, "delete_selected", [folder], FOLDERS, post="yes")
    with pytest.raises(DeletionRefused):
        deliver()
    record = TaskRecord.objects.get()
    assert (record.status, record.error) == ("failed", PROTECTED)
    answer = boss.get(f"{TASKS}{record.pk}/change/", headers={"accept-language": "de"})
    page = unescape(answer.content.decode())
    assert "geschützten verwandten Objekte" in page
    assert "Seal: seal <1>" in page
    assert Folder.objects.exists()


def test_models_are_named_in_the_language_of_the_site_whatever_that_of_the_click(boss, settings, monkeypatch):
    settings.LANGUAGE_CODE = "de"
    monkeypatch.setattr(Folder._meta, "verbose_name", gettext_lazy("user"))
    folder = Folder.objects.create(name="one")
    Seal.objects.create(folder=folder, number=1)
    choose(boss, "delete_selected", [folder], FOLDERS, post="yes", headers={"accept-language": "en"})
    with pytest.raises(DeletionRefused):
        deliver()
    assert TaskRecord.objects.get().error.startswith("Deleting the selected Benutzer would require")


def test_of_many_the_first_are_named(boss):
    folder = Folder.objects.create(name="one")
    Seal.objects.bulk_create(Seal(folder=folder, number=number) for number in range(NAMED + 2))
    choose(boss, "delete_selected", [folder], FOLDERS, post="yes")
    with pytest.raises(DeletionRefused):
        deliver()
    assert TaskRecord.objects.get().error.endswith(" and 2 more")


def test_the_kinds_that_one_may_not_delete_are_named(client_of, make_user):
    folders = [Folder.objects.create(name=name) for name in ("one", "two")]
    Stamp.objects.create(folder=folders[0])
    clerk = client_of(make_user("clerk", "view_folder", "delete_folder"))
    choose(clerk, "delete_selected", folders, FOLDERS, post="yes")
    with pytest.raises(PermissionDenied):
        deliver()
    assert TaskRecord.objects.get().error == LACKING


def test_in_the_request_it_is_said_at_once(boss, at_once):
    folder = Folder.objects.create(name="one")
    Seal.objects.create(folder=folder, number=1)
    answer = choose(boss, "delete_selected", [folder], FOLDERS, post="yes")
    assert any(PROTECTED in unescape(message) for message in said(answer))
    assert TaskRecord.objects.get().status == "failed"


def test_what_can_be_deleted_is(boss, at_once):
    folder = Folder.objects.create(name="one")
    Stamp.objects.create(folder=folder)
    choose(boss, "delete_selected", [folder], FOLDERS, post="yes")
    assert not Folder.objects.exists()
    assert TaskRecord.objects.get().status == "success"
