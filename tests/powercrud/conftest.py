from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from django.urls import reverse

from tests.browser.conftest import browser, page, page_of, profiles, tolerated  # noqa: F401

# These tests need django-powercrud, and so Python 3.12: run them with "make powercrud".
IS_CHOSEN = "tests.powercrud" in settings.INSTALLED_APPS
collect_ignore_glob = [] if IS_CHOSEN else ["*.py"]

if IS_CHOSEN:
    from tests.powercrud.models import Book, Genre


@pytest.fixture
def genre(db: None) -> Any:
    return Genre.objects.create(name="Crime")


@pytest.fixture
def make_books(db: None) -> Callable[..., list[Any]]:
    def make(count: int, **fields: Any) -> list[Any]:
        return Book.objects.bulk_create([Book(**{"title": f"book {number}", **fields}) for number in range(count)])

    return make


class Pages:
    """What somebody does on PowerCRUD's pages."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def get(self, name: str, *args: Any, **data: Any) -> Any:
        return self.client.get(reverse(name, args=args), data, headers={"HX-Request": "true"})

    def post(self, name: str, *args: Any, **data: Any) -> Any:
        return self.client.post(reverse(name, args=args), data, headers={"HX-Request": "true"})

    def bulk(self, objects: Iterable[Any], view: str = "book", **data: Any) -> Any:
        chosen = {"selected_ids[]": [item.pk for item in objects], "bulk_submit": "1"}
        return self.post(f"{view}-bulk-edit", **chosen, **data)

    def update(self, objects: Iterable[Any], **values: Any) -> Any:
        return self.bulk(objects, fields_to_update=[*values], **values)

    def delete(self, objects: Iterable[Any]) -> Any:
        return self.bulk(objects, delete_selected="1")

    def poll(self, task_name: str) -> Any:
        return self.get("powercrud:async_progress", task_name=task_name)


@pytest.fixture
def pages(boss: Client) -> Pages:
    return Pages(boss)


@pytest.fixture
def visitor() -> Pages:
    """Somebody who is not logged in."""
    return Pages(Client())


def launched(response: Any) -> str:
    """Return the name of the task that the page has launched."""
    found = re.search(r'"task_name": "([0-9a-f-]{36})"', response.content.decode())
    assert found, response.content.decode()[:2000]
    return found[1]
