"""Both packages in one project: settings, checks, URLs, and the command that both have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from io import StringIO

import pytest
from django.core import management
from django.core.cache import cache
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from powercrud.async_dashboard import ModelTrackingAsyncManager
from powercrud.async_manager import AsyncManager as PeerManager

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.checks import check_settings
from powercrud_dashboard.contrib.powercrud import PowerCrudManager
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from tests.powercrud.conftest import Pages, launched
from tests.settings.powercrud import INSTALLED_APPS, MANAGER
from tests.workers import claimed_elsewhere, run_queue, silence

pytestmark = pytest.mark.django_db(transaction=True)

#: The settings of PowerCRUD's reference, with a manager of its own.
DOCUMENTED = {
    "ASYNC_ENABLED": True,
    "CONFLICT_TTL": 3600,
    "PROGRESS_TTL": 7200,
    "CLEANUP_GRACE_PERIOD": 86400,
    "MAX_TASK_DURATION": 3600,
    "CLEANUP_SCHEDULE_INTERVAL": 300,
    "CACHE_NAME": "default",
    "QCLUSTER_PROBE_TIMEOUT_MS": 300,
    "BULK_MAX_SELECTED_RECORDS": 1000,
    "FILTER_FAVOURITE_USER_RESOLVER": None,
    "POWERCRUD_CSS_FRAMEWORK": "daisyUI",
    "TAILWIND_SAFELIST_JSON_LOC": ".",
    "ASYNC_MANAGER_DEFAULT": {
        "manager_class": "tests.powercrud.test_beside_each_other.Tracking",
        "config": {"record_model_path": "library.Genre"},
    },
}


class Tracking(ModelTrackingAsyncManager):
    record_model_path = "library.Genre"


class Own(DashboardAsyncManager):
    pass


class Moved(PowerCrudManager):
    pass


OWN, MOVED = (f"{__name__}.{name}" for name in ("Own", "Moved"))


def problems(settings, **given):
    settings.POWERCRUD_SETTINGS = given
    return [(message.id or "").removeprefix("powercrud_dashboard.") for message in check_settings(None)]


class TestSettings:
    def test_documented_settings_are_accepted(self, settings):
        assert problems(settings, **DOCUMENTED) == []
        assert type(AsyncManager.resolve_manager()) is DashboardAsyncManager

    def test_a_manager_of_ours_has_a_key_of_its_own(self, settings):
        own = {"manager_class": OWN, "config": {"colour": "red"}}
        assert problems(settings, **DOCUMENTED, DASHBOARD_MANAGER_DEFAULT=own) == []
        assert type(AsyncManager.resolve_manager()) is Own
        assert AsyncManager.resolve_manager().config == {"colour": "red"}

    def test_the_key_counts_beside_one_for_the_views(self, settings):
        default = {"manager_class": MANAGER}
        assert problems(settings, ASYNC_MANAGER_DEFAULT=default, DASHBOARD_MANAGER_DEFAULT={"manager_class": OWN}) == []
        assert type(AsyncManager.resolve_manager()) is Own
        assert type(PeerManager()) is PowerCrudManager

    def test_a_subclass_may_be_named(self, settings):
        assert problems(settings, ASYNC_MANAGER_DEFAULT={"manager_class": MOVED}) == []
        assert type(AsyncManager.resolve_manager()) is type(PeerManager()) is Moved

    @pytest.mark.parametrize(
        ("given", "problem"),
        [
            ({"ASYNC_MANAGER_DEFAULT": {"manager_class": "no.such.Manager"}}, "E004"),
            ({"ASYNC_MANAGER_DEFAULT": {"manager_class": "tests.powercrud.models.Book"}}, "E004"),
            ({"DASHBOARD_MANAGER_DEFAULT": {"manager_class": "powercrud.async_manager.AsyncManager"}}, "E004"),
            ({"DASHBOARD_MANAGER_DEFAULT": {"manager_clas": OWN}}, "W001"),
            ({"DASHBOARD_PAGE_SIZ": 5}, "W001"),
            ({"ASYNC_MANAGER_DEFAULT": {"manager_class": OWN}}, "W009"),
        ],
    )
    def test_mistakes_are_reported(self, settings, given, problem):
        assert problems(settings, **given) == [problem]

    def test_the_project_has_no_problems(self):
        out = StringIO()
        call_command("check", "powercrud_dashboard", "powercrud", "library", stdout=out)
        assert "no issues" in out.getvalue()


def test_powercruds_base_manager_is_ours_from_the_start():
    code = "import django; django.setup(); from powercrud import async_manager as it; print(type(it.AsyncManager()))"
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings.powercrud"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert MANAGER in printed.stdout


class TestUrls:
    def test_all_names_lead_to_their_own_addresses(self):
        assert reverse("powercrud:async_progress") == "/powercrud/powercrud/async/progress/"
        assert reverse("powercrud:favourites-save") == "/powercrud/favourites/save/"
        assert reverse("pages:async_progress") == "/pages/async/progress/"

    def test_the_managers_urls_have_the_favourites_too(self, settings):
        patterns = [PowerCrudManager.get_urlpatterns(), PowerCrudManager.get_urlpatterns("pages/", "pages")]
        settings.ROOT_URLCONF = type("urls", (), {"urlpatterns": patterns})
        assert reverse("powercrud:favourites-save") == "/powercrud/favourites/save/"
        assert reverse("powercrud:async_progress") == "/powercrud/powercrud/async/progress/"
        assert reverse("pages:async_progress") == "/pages/async/progress/"

    def test_a_subclass_answers_where_it_is_configured(self, settings, monkeypatch, pages, make_books):
        name = launched(pages.update(make_books(2), pages=7))
        settings.POWERCRUD_SETTINGS = {"ASYNC_MANAGER_DEFAULT": {"manager_class": MOVED}}
        monkeypatch.setattr(Moved, "describe_progress", lambda *args: {"progress": "my words", "finished": False})
        assert pages.poll(name).json() == {"progress": "my words"}


class TestNotMoved:
    """The views keep PowerCRUD's manager."""

    @pytest.fixture(autouse=True)
    def _settings(self, settings):
        settings.POWERCRUD_SETTINGS = {"ASYNC_ENABLED": True, "CACHE_NAME": "default"}

    def test_powercruds_endpoint_answers_for_its_tasks(self, visitor):
        peer = PeerManager()
        peer.update_progress("theirs", "half of it")
        assert visitor.poll("theirs").json()["progress"] == "half of it"

    def test_and_ours_for_a_view_that_has_moved(self, pages, make_books, monkeypatch):
        monkeypatch.setattr("tests.powercrud.views.BookView.async_manager_class_path", MANAGER)
        name = launched(pages.update(make_books(2), pages=7))
        assert pages.poll(name).json()["status"] == "pending"
        run_queue()
        assert (pages.poll(name).status_code, pages.poll(name).json()["status"]) == (286, "success")
        assert Pages(Client()).poll(name).status_code == 401


def test_a_cache_that_is_away_keeps_our_cleanup_from_nothing(settings, manager, record_of):
    away = {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "unix:///nowhere/redis.sock"}
    settings.CACHES = {**settings.CACHES, "away": away}
    name = manager.launch_async_task("tests.testapp.tasks.add", 1)
    settings.POWERCRUD_SETTINGS = {**settings.POWERCRUD_SETTINGS, "CACHE_NAME": "away"}
    claimed_elsewhere(name)
    silence()
    assert name in PowerCrudManager().cleanup_completed_tasks()["cleaned"]
    assert record_of(name).failure_reason == "worker_lost"


@pytest.mark.parametrize("is_moved", [True, False])
@pytest.mark.parametrize("first", ["powercrud", "powercrud_dashboard"])
class TestCleanup:
    @pytest.fixture(autouse=True)
    def _apps(self, settings, first, is_moved):
        manager = {"ASYNC_MANAGER_DEFAULT": {"manager_class": MANAGER}} if is_moved else {}
        settings.POWERCRUD_SETTINGS = {"ASYNC_ENABLED": True, "CACHE_NAME": "default", **manager}
        settings.INSTALLED_APPS = [first, *(app for app in INSTALLED_APPS if app != first)]
        management.get_commands.cache_clear()
        assert management.get_commands()["pcrud_cleanup_async"] == first
        yield
        management.get_commands.cache_clear()

    def test_the_command_cleans_up_both(self, manager, record_of):
        peer = object.__new__(PeerManager)
        PeerManager.__init__(peer)
        assert peer.add_active_task("theirs", {"library.book": {1}})
        assert cache.get("powercrud:conflict:model:library.book:1") == "theirs"
        name = manager.launch_async_task("tests.testapp.tasks.add", 1, conflict_ids={"library.Book": {1}})
        claimed_elsewhere(name)
        silence()
        out = StringIO()
        call_command("pcrud_cleanup_async", "--json", stdout=out)
        assert set(json.loads(out.getvalue())["cleaned"]) == {"theirs", name}
        assert cache.get("powercrud:conflict:model:library.book:1") is None
        assert record_of(name).failure_reason == "worker_lost"
        call_command("pcrud_cleanup_async", stdout=out)

    def test_without_a_shared_cache(self, settings, is_moved, first):
        settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
        if not is_moved and first == "powercrud":
            # PowerCRUD's manager can't be made at all.
            return
        call_command("pcrud_cleanup_async", stdout=StringIO())
