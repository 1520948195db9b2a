"""``lock_blocks_edit`` covers every row that a request would change or delete."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client

from tests.clicks import choose, said
from tests.neighbours.models import Folder, Invoice, Line, Partner, Pin, Receiver, Sender

pytestmark = pytest.mark.django_db

FOLDERS = "/admin/neighbours/folder/"


@pytest.fixture
def folder(db: None) -> Folder:
    return Folder.objects.create(name="first")


@pytest.fixture
def line(folder: Folder) -> Line:
    return Line.objects.create(folder=folder, text="line")


def save(client: Client, folder: Folder, lines: list[Line], **more: str) -> Any:
    """Send the form of a folder with its lines."""
    fields = {"name": folder.name, "line_set-TOTAL_FORMS": len(lines), "line_set-INITIAL_FORMS": len(lines)}
    for number, line in enumerate(lines):
        fields |= {f"line_set-{number}-{name}": getattr(line, name) for name in ("id", "folder_id", "text")}
        fields[f"line_set-{number}-folder"] = folder.pk
    return client.post(f"{FOLDERS}{folder.pk}/change/", fields | more, follow=True)


def test_a_row_of_an_inline(boss, manager, folder, line):
    other = Line.objects.create(folder=folder, text="other")
    manager.add_conflict_ids("nightly", {"neighbours.Line": [line.pk]})
    page = save(boss, folder, [line, other], **{"line_set-0-text": "typed"}).content.decode()
    assert "nightly" in page
    assert 'value="typed"' in page
    assert "nightly" in save(boss, folder, [line, other], **{"line_set-0-DELETE": "on"}).content.decode()
    assert Line.objects.get(pk=line.pk).text == "line"
    # Its neighbours are free.
    save(boss, folder, [line, other], **{"line_set-1-text": "changed"})
    assert Line.objects.get(pk=other.pk).text == "changed"


def test_an_object_of_which_only_an_inline_is_changed(boss, manager, folder, line):
    """Django saves the object too, with what it was when the form was opened."""
    manager.add_conflict_ids("nightly", {"neighbours.Folder": [folder.pk]})
    page = save(boss, folder, [line], **{"line_set-0-text": "typed"}).content.decode()
    assert "nightly" in page
    assert 'value="typed"' in page
    assert Line.objects.get().text == "line"


@pytest.mark.parametrize("kind", [Line, Pin])
@pytest.mark.parametrize("selected", [False, True])
def test_a_row_that_refers_to_what_is_deleted(boss, manager, folder, kind, selected):
    row = kind.objects.create(folder=folder)
    manager.add_conflict_ids("nightly", {f"neighbours.{kind.__name__}": [row.pk]})
    if selected:
        answer = choose(boss, "delete_selected", [folder], FOLDERS, post="yes")
    else:
        answer = boss.post(f"{FOLDERS}{folder.pk}/delete/", {"post": "yes"}, follow=True)
    assert "nightly" in answer.content.decode()
    assert kind.objects.get().folder == folder
    # Nor does the log tell of a deletion.
    assert not LogEntry.objects.exists()
    manager.remove_conflict_ids("nightly")
    boss.post(f"{FOLDERS}{folder.pk}/delete/", {"post": "yes"})
    assert not Folder.objects.exists()


def test_a_row_of_the_list(boss, manager, folder):
    other = Folder.objects.create(name="second")
    manager.add_conflict_ids("nightly", {"neighbours.Folder": [folder.pk]})

    def save_list(names: list[str]) -> str:
        fields = {"form-TOTAL_FORMS": 2, "form-INITIAL_FORMS": 2, "_save": "Save"}
        for number, (row, name) in enumerate(zip([other, folder], names, strict=True)):
            fields |= {f"form-{number}-id": row.pk, f"form-{number}-name": name}
        return boss.post(FOLDERS, fields, follow=True).content.decode()

    page = save_list(["changed", "typed"])
    assert "nightly" in page
    assert 'value="typed"' in page
    assert set(Folder.objects.values_list("name", flat=True)) == {"first", "second"}
    save_list(["changed", "first"])
    assert set(Folder.objects.values_list("name", flat=True)) == {"first", "changed"}


@pytest.mark.parametrize("parent", [Sender, Receiver])
def test_the_rows_of_all_parents(boss, manager, parent):
    partner = Partner.objects.create(name="name", city="city")
    key = getattr(partner, parent._meta.pk.name)
    manager.add_conflict_ids("nightly", {f"neighbours.{parent.__name__}": [key]})
    page = f"/admin/neighbours/partner/{partner.pk}/change/"
    answer = boss.post(page, {"name": "changed", "city": "changed"}, follow=True)
    assert "nightly" in answer.content.decode()
    assert Partner.objects.get().name == "name"


@pytest.mark.parametrize("parent", [Sender, Receiver])
def test_a_click_on_a_row_of_several_parents(boss, manager, parent):
    Receiver.objects.create(city="other")
    partner = Partner.objects.create(name="name", city="city")
    page, ids = (
        "/admin/neighbours/partner/",
        {f"neighbours.{parent.__name__}": [getattr(partner, parent._meta.pk.name)]},
    )
    manager.add_conflict_ids("nightly", ids)
    assert "nightly" in said(choose(boss, "visit", [partner], page))[0]
    assert (
        boss.post(f"{page}background-tasks/", {"key": [partner.pk]}).context["locked_keys_json"] == f'["{partner.pk}"]'
    )
    manager.remove_conflict_ids("nightly")
    choose(boss, "visit", [partner], page)
    assert not manager.add_conflict_ids("nightly", ids)


def test_a_view_of_another_package(boss, manager):
    """simple-history saves the object as it was."""
    invoice = Invoice.objects.create(number="first")
    invoice.number = "second"
    invoice.save()
    first = invoice.history.earliest()
    manager.add_conflict_ids("nightly", {"neighbours.Invoice": [invoice.pk]})
    page = f"/admin/neighbours/invoice/{invoice.pk}/history/{first.pk}/"
    answer = boss.post(page, {"number": "first"}, follow=True)
    assert answer.status_code == 200
    assert "nightly" in answer.content.decode()
    assert Invoice.objects.get().number == "second"
