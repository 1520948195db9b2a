"""Installing the mixin changes nothing else: each page of another package's admin class opens, and its action runs."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.db.models import Model
from django.test import Client

from powercrud_dashboard.models import TaskRecord
from tests.clicks import choose
from tests.neighbours.models import Article, Category, Folder, Invoice, Page

pytestmark = pytest.mark.django_db

#: The changelist, the model and the fields of an object.
CLASSES: dict[str, tuple[str, type[Model], dict[str, Any]]] = {
    "django's users": ("/admin/auth/user/", User, {"username": "somebody"}),
    "django's groups": ("/admin/auth/group/", Group, {"name": "readers"}),
    "mptt, draggable": ("/admin/neighbours/category/", Category, {"name": "root"}),
    "mptt": ("/more/neighbours/category/", Category, {"name": "root"}),
    "parler": ("/admin/neighbours/article/", Article, {"title": "one"}),
    "simple-history": ("/admin/neighbours/invoice/", Invoice, {"number": "1"}),
    "reversion": ("/admin/neighbours/page/", Page, {"title": "one"}),
    "guardian": ("/admin/neighbours/folder/", Folder, {"name": "one"}),
    "import-export": ("/more/neighbours/folder/", Folder, {"name": "one"}),
    "object-actions": ("/more/neighbours/page/", Page, {"title": "one"}),
}


@pytest.fixture(params=CLASSES)
def place(request: Any) -> tuple[str, Model]:
    changelist, model, fields = CLASSES[request.param]
    return changelist, model._default_manager.create(**fields)


@pytest.mark.parametrize("page", ["", "add/", "{pk}/change/", "{pk}/delete/", "{pk}/history/", "background-tasks/"])
def test_each_page_opens(boss: Client, place: tuple[str, Model], page: str) -> None:
    changelist, obj = place
    assert boss.get(changelist + page.format(pk=obj.pk)).status_code == 200


def test_an_action_runs_in_the_background(boss: Client, place: tuple[str, Model], at_once: None) -> None:
    changelist, obj = place
    choose(boss, "visit", [obj], changelist)
    record = TaskRecord.objects.get()
    assert (record.status, record.done_count) == ("success", 1)


def test_the_history_leads_to_the_tasks_of_the_object(boss: Client, place: tuple[str, Model]) -> None:
    changelist, obj = place
    page = boss.get(f"{changelist}{obj.pk}/history/").content.decode()
    assert f"object_id={obj.pk}" in page
    assert "Background tasks of this object" in page


def test_the_form_of_an_old_state_stays_as_it_is(boss: Client) -> None:
    invoice = Invoice.objects.create(number="1")
    page = boss.get(f"/admin/neighbours/invoice/{invoice.pk}/history/{invoice.history.get().pk}/").content.decode()
    assert "Background tasks of this object" not in page
    assert 'name="number"' in page
