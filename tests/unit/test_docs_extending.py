"""The code in docs/extending.md does what the page says."""

from __future__ import annotations

import re
import sys
from collections import namedtuple
from types import ModuleType

import pytest
from django.conf import settings as django_settings
from django.core.checks import run_checks
from django.urls import reverse

from powercrud_dashboard import extension
from powercrud_dashboard.models import Alert, TaskRecord
from tests.alerting import evaluate

pytestmark = pytest.mark.django_db(transaction=True)

PAGE = (django_settings.ROOT / "docs" / "extending.md").read_text()
CLASS, NAMED, CHECK, CHECKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture
def use(settings, monkeypatch):
    """Put a block into the module that its first line names, and take the settings of another."""

    def use(block: str, given: str) -> ModuleType:
        name = re.match(r"# (\w+)/(\w+)\.py", block)
        module = ModuleType(f"{name[1]}.{name[2]}")
        monkeypatch.setitem(sys.modules, name[1], ModuleType(name[1]))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(block, module.__dict__)
        found: dict = {}
        exec(given, found)
        settings.POWERCRUD_SETTINGS = found["POWERCRUD_SETTINGS"]
        problems = [message.id for message in run_checks() if message.id in ("powercrud_dashboard.E014", NO_DASHBOARD)]
        assert problems == []
        return module

    yield use
    # The next test's module of this name is another.
    extension.dashboard_of.cache_clear()


NO_DASHBOARD = "powercrud_dashboard.E016"


def url(page: str, *args: object) -> str:
    return reverse(f"admin:powercrud_dashboard_taskrecord_{page}", args=args)


def test_the_class_changes_what_the_page_says(use, boss):
    use(CLASS, NAMED)
    load = TaskRecord.objects.create(
        task_name="load",
        label="Load",
        func="myapp.tasks.load",
        status="success",
        user_label="ann lee",
        task_args=["old.csv"],
        task_kwargs={"customer": "Acme"},
        result={"rows": 12},
        affected_count=1,
        first_objects=[{"model": "myapp.project", "id": "7", "text": "Mill"}],
    )
    payment = TaskRecord.objects.create(
        task_name="pay", label="Pay", func="myapp.payments.send", status="failed", resolution="open"
    )
    page = boss.get(url("change", load.pk)).content.decode()
    for text in ("Ann Lee", "From old.csv", "12 rows", f'<a href="/runbooks/{load.func}/">'):
        assert text in page
    listed = boss.get(url("changelist")).content.decode()
    for text in ("Ann Lee", "Mill (no. 7)", "Acme</div>"):
        assert text in listed
    assert "Acme" not in boss.get(url("changelist") + "?customer=Other").content.decode()
    assert "Loads run at night." in boss.get(reverse("admin:index")).content.decode()
    assert boss.post(url("retry", payment.pk)).status_code == 403


def test_people_of_one_group_see_each_others_tasks(use, make_user, client_of, django_user_model):
    from django.contrib.auth.models import Group

    use(CLASS, NAMED)
    group = Group.objects.create(name="team")
    group.user_set.add(ann := make_user("ann"), bob := make_user("bob"))
    record = TaskRecord.objects.create(task_name="a", label="A", func="f", status="success", user=ann)
    assert client_of(bob).get(url("change", record.pk)).status_code == 200
    assert client_of(make_user("eve")).get(url("change", record.pk)).status_code == 404


def test_the_check_opens_an_alert(use, monkeypatch):
    module = use(CHECK, CHECKS)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(1_000_000, 0, 5 if path == "/tmp" else 500_000))
    evaluate()
    alert = Alert.objects.get(kind="check")
    assert (alert.subject, alert.details["text"]) == ("myapp.checks.disk_space /tmp", "The disk /tmp is full.")


def test_all_methods_and_attributes_are_named():
    own = [name for name in vars(extension.Dashboard) if not name.startswith(("_", "may_", "has_permission"))]
    assert [name for name in own if f"`{name}`" not in PAGE] == []
