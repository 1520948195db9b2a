from __future__ import annotations

import csv
import io
import json

import pytest

from tests.testapp import tasks

pytestmark = pytest.mark.django_db

LIST = "/admin/powercrud_dashboard/taskrecord/"


@pytest.fixture
def two(manager, superuser, make_user) -> None:
    manager.launch_async_task(tasks.add, 1, label='=HYPERLINK("evil")', user=superuser)
    manager.launch_async_task(
        tasks.add, 1, label='plain; text, with "marks"\nand lines', user=make_user("anna"), sync=True
    )


def exported(client, file_format: str, **parameters: str) -> str:
    response = client.get(f"{LIST}export/{file_format}/", parameters)
    assert response.status_code == 200
    assert f'.{file_format}"' in response["Content-Disposition"]
    return response.getvalue().decode()


def test_csv_has_a_line_for_each_task_and_no_formulas(client_of, superuser, two):
    rows = list(csv.DictReader(io.StringIO(exported(client_of(superuser), "csv"))))
    labels = {row["label"] for row in rows}
    assert labels == {'\'=HYPERLINK("evil")', 'plain; text, with "marks"\nand lines'}
    assert {row["status"] for row in rows} == {"pending", "success"}


def test_json_has_the_values_as_they_are(client_of, superuser, two):
    records = json.loads(exported(client_of(superuser), "json"))
    assert {record["label"] for record in records} >= {'=HYPERLINK("evil")'}
    assert {record["user_label"] for record in records} == {"boss", "anna"}
    assert {record["source"] for record in records} == {""}


@pytest.mark.parametrize(
    "parameters", [{"status": "success"}, {"status": "completed"}, {"user": "anna"}, {"q": "plain"}]
)
def test_what_is_exported_is_what_the_list_shows(client_of, superuser, two, parameters):
    (record,) = json.loads(exported(client_of(superuser), "json", **parameters))
    assert record["user_label"] == "anna"


def test_nothing_is_an_empty_file(client_of, superuser):
    assert json.loads(exported(client_of(superuser), "json")) == []
    assert len(exported(client_of(superuser), "csv").splitlines()) == 1


def test_one_exports_only_what_one_may_see(client_of, two):
    from django.contrib.auth.models import User

    (record,) = json.loads(exported(client_of(User.objects.get(username="anna")), "json"))
    assert record["user_label"] == "anna"


def test_the_list_links_to_its_export(client_of, superuser, two):
    page = client_of(superuser).get(LIST, {"q": "plain", "page": "1"}).content.decode()
    assert f'href="{LIST}export/csv/?q=plain"' in page


def test_other_formats_do_not_exist_and_visitors_get_nothing(client, client_of, superuser):
    assert client_of(superuser).get(f"{LIST}export/xls/").status_code == 404
    assert client.get(f"{LIST}export/csv/").status_code == 302
