from __future__ import annotations

import pytest
from django.urls import path, reverse

from powercrud_dashboard.async_manager import AsyncManager

pytestmark = pytest.mark.django_db

ADD = "tests.testapp.tasks.add"
URL = "/powercrud/async/progress/"


class OpenManager(AsyncManager):
    def is_open_to_all(self, task_name):
        return task_name == "open"


urlpatterns = [
    AsyncManager.get_url(),
    path("own/", AsyncManager.as_view()),
    OpenManager.get_urlpatterns("open/", namespace="open"),
]


def test_it_is_registered_under_the_names_that_powercrud_uses():
    assert reverse("powercrud:async_progress") == URL


@pytest.mark.urls(__name__)
def test_it_can_be_mounted_elsewhere(client_of, superuser, manager):
    assert reverse("powercrud_async_progress") == URL
    name = manager.launch_async_task(ADD, 1)
    assert client_of(superuser).get("/own/", {"task_name": name}).json()["status"] == "pending"


@pytest.mark.urls(__name__)
def test_a_manager_may_open_a_task_to_people_without_a_login(client, client_of, make_user, manager):
    url = reverse("open:async_progress")
    for name in ("open", "closed"):
        manager.launch_async_task(ADD, 1, task_key=name)
    assert client.get(url, {"task_name": "open"}).json()["status"] == "pending"
    assert client.get(url, {"task_name": "closed"}).status_code == 401
    assert client.get(url).status_code == 401
    assert client.get("/own/", {"task_name": "open"}).status_code == 401
    # All are people who have logged in, too.
    me = client_of(make_user("me"))
    assert me.get(url, {"task_name": "open"}).json()["status"] == "pending"
    assert me.get(url, {"task_name": "closed"}).status_code == 404
    assert me.get("/own/", {"task_name": "open"}).status_code == 404


def test_a_living_task_is_described(client_of, superuser, manager):
    name = manager.launch_async_task(ADD, 1)
    manager.update_progress(name, "Step 3/4: nearly there")
    response = client_of(superuser).get(URL, {"task_name": name})
    assert response.status_code == 200
    assert response.json() == {
        "task_name": name,
        "status": "pending",
        "progress": "Step 3/4: nearly there",
        "current": 3,
        "total": 4,
        "percent": 75,
    }
    assert "no-store" in response["Cache-Control"]


def test_an_ended_task_stops_the_polling(client_of, superuser, manager):
    name = manager.launch_async_task(ADD, 1, sync=True)
    response = client_of(superuser).get(URL, {"task_name": name})
    assert (response.status_code, response.json()["status"]) == (286, "success")


def test_a_name_is_needed(client_of, superuser):
    assert client_of(superuser).get(URL).status_code == 400


def test_what_does_not_exist_and_what_one_may_not_see_are_the_same(client_of, make_user, manager):
    mine, theirs = make_user("me"), make_user("they")
    name = manager.launch_async_task(ADD, 1, user=theirs)
    answers = [client_of(mine).get(URL, {"task_name": task}) for task in (name, "nobody", "\x00")]
    assert [answer.status_code for answer in answers] == [404, 404, 404]
    assert len({answer.content for answer in answers}) == 1


@pytest.mark.parametrize("manager_class", [AsyncManager, None])
def test_who_launched_a_task_may_see_it_with_or_without_history(client_of, make_user, manager, manager_class):
    user = make_user("me", is_staff=False)
    name = (manager_class() if manager_class else manager).launch_async_task(ADD, 1, user=user)
    assert client_of(user).get(URL, {"task_name": name}).status_code == 200


def test_the_view_permission_shows_all(client_of, make_user, manager):
    name = manager.launch_async_task(ADD, 1)
    assert client_of(make_user("viewer", "view_taskrecord")).get(URL, {"task_name": name}).status_code == 200


def test_login_is_required(client):
    response = client.get(URL, {"task_name": "x"}, headers={"accept": "text/html,*/*;q=0.8"})
    assert response.status_code == 302
    assert response["Location"].startswith("/admin/login/?next=/powercrud/async/progress/")


@pytest.mark.parametrize(
    "headers",
    [{}, {"accept": "*/*"}, {"accept": "application/json"}, {"hx-request": "true", "accept": "text/html, */*"}],
)
def test_a_script_without_a_login_gets_401(client, headers):
    assert client.get(URL, {"task_name": "x"}, headers=headers).status_code == 401


def test_nothing_is_changed_by_it(client_of, superuser):
    assert client_of(superuser).post(URL, {"task_name": "x"}).status_code == 405
