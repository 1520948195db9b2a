"""Run in the tutorial's project, with what is installed there: tasks through its cluster, then every page.

It is a script of its own, as nothing of the tests is installed there. Django is set up before it is run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from billing.models import Invoice
from django.contrib.auth.models import User
from django.test import Client
from django.test.signals import template_rendered
from django.test.utils import setup_test_environment
from django.urls import reverse

import powercrud_dashboard
from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.dashboard.urls import dashboard_urls
from powercrud_dashboard.models import TaskRecord

INSTALLED = Path(powercrud_dashboard.__file__).parent
#: Milliseconds.
ENDS_WITHIN = 120_000

assert INSTALLED.is_relative_to(sys.prefix), INSTALLED
setup_test_environment()
rendered: set[str] = set()
template_rendered.connect(lambda template, **kwargs: rendered.add(str(template.name)), weak=False)

client = Client()
client.force_login(User.objects.get(username="admin"))

# The action of the tutorial: the last three of the invoices, of which the last one has no address.
chosen = list(Invoice.objects.filter(pk__gte=58).values_list("pk", flat=True))
client.post(reverse("admin:billing_invoice_changelist"), {"action": "send", "_selected_action": chosen})
record = TaskRecord.objects.latest("pk")
manager = AsyncManager.resolve_manager()
assert manager.get_task_status(record.task_name, wait=ENDS_WITHIN) == manager.STATUSES.SUCCESS
record.refresh_from_db()
assert (record.done_count, record.failed_count, record.user_label) == (2, 1, "admin"), record

grouped = manager.launch_async_task("math.factorial", 5, group="some", user=client.session["_auth_user_id"])
failed = manager.launch_async_task("math.sqrt", -1)
assert manager.get_task_status(grouped, wait=ENDS_WITHIN) == manager.STATUSES.SUCCESS
assert manager.get_task_status(failed, wait=ENDS_WITHIN) == manager.STATUSES.FAILED

arguments = {"pk": record.pk, "group": "some", "file_format": "csv", "file_pk": 0, "action": "run", "queue": "mysite"}
for pattern in dashboard_urls():
    needed = {name: arguments[name] for name in pattern.pattern.converters if name in arguments}
    if needed.keys() == pattern.pattern.converters.keys():
        address = reverse(f"admin:{pattern.name}", kwargs=needed)
        response = client.get(address, {"func": "math.factorial"})
        assert response.status_code < 500, (address, response.status_code)

# This page is that of a task of its own.
client.post(reverse("admin:powercrud_dashboard_taskrecord_start_test", kwargs={"queue": "mysite"}), follow=True)

pages = {
    path.relative_to(INSTALLED / "templates").as_posix()
    for path in (INSTALLED / "templates" / "powercrud_dashboard").glob("*/page.html")
}
assert pages
assert not pages - rendered, f"Not rendered: {sorted(pages - rendered)}"
for address in ("/admin/", "/admin/billing/invoice/", f"/admin/billing/invoice/{chosen[0]}/change/"):
    assert client.get(address).status_code == 200
print(f"{len(pages)} pages")
