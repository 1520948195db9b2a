"""Test a cluster, and see how far the test comes."""

from __future__ import annotations

import hashlib
import time
from datetime import timedelta
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.functional import cached_property
from django.utils.translation import gettext as _

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.dashboard import access
from powercrud_dashboard.dashboard.views.base import DashboardView, RefreshingPageView
from powercrud_dashboard.engine import smoke
from powercrud_dashboard.exceptions import EnqueueError, TaskBusy
from powercrud_dashboard.models import TaskRecord

#: Milliseconds of a launch that the address of a report can tell.
MAX_LAUNCH = 1_000_000


class StartTestView(DashboardView):
    """Launch the test of a cluster."""

    http_method_names = ["post", "options"]
    page_name = "cluster"
    required_permission = "view_taskrecord"

    def post(self, request: HttpRequest, queue: str) -> HttpResponse:
        if not access.may_test_clusters(request.user):
            raise PermissionDenied
        began = time.monotonic()
        try:
            name = smoke.start(AsyncManager.resolve_manager(), queue, request.user)
        except (smoke.NotTestable, EnqueueError, TaskBusy, ValueError) as error:
            messages.error(request, _("The test could not be launched. %(error)s") % {"error": error})
            return HttpResponseRedirect(self.url("cluster"))
        took = round((time.monotonic() - began) * 1_000)
        record = TaskRecord.objects.filter(task_name=name).only("pk").first()
        if record is None:
            return HttpResponseRedirect(self.url("cluster"))
        return HttpResponseRedirect(f"{self.url('test_report', record.pk)}?launch={took}")


class TestReportView(RefreshingPageView):
    """How far the test of a cluster has come, step by step."""

    page_name = "cluster"
    required_permission = "view_taskrecord"
    template_name = "powercrud_dashboard/smoke/page.html"
    partial_template_name = "powercrud_dashboard/smoke/_report.html"

    record: TaskRecord

    @cached_property
    def report(self) -> smoke.Report:
        given = self.request.GET.get("launch", "")
        is_number = given.isascii() and given.isdecimal() and len(given) < 10
        launch = timedelta(milliseconds=int(given)) if is_number and int(given) < MAX_LAUNCH else None
        return smoke.report(self.record, launch)

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        record = TaskRecord.objects.tests_of_the_cluster().filter(pk=kwargs["pk"]).first()
        if record is None:
            messages.info(request, _("This test of the cluster was deleted. Start another one."))
            return HttpResponseRedirect(self.url("cluster"))
        self.record = record
        return super().get(request, *args, **kwargs)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        may_repeat = access.may_test_clusters(self.request.user)
        return super().get_context_data(
            title=_("Test of the cluster “%(name)s”") % {"name": self.report.cluster},
            report=self.report,
            version=self.current_version(),
            task_url=self.url("change", self.record.pk),
            cluster_url=self.url("cluster"),
            test_url=self.url("start_test", self.report.cluster) if may_repeat else "",
            **kwargs,
        )

    def current_version(self) -> str:
        report = self.report
        # While it waits, the page shows for how long.
        state = [report.steps, str(report.advice), 0 if report.has_ended else int(report.waits.total_seconds())]
        return hashlib.blake2s(repr(state).encode(), digest_size=8).hexdigest()
