"""What all pages share: who may come in, the admin's frame, links within the same mount."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.contrib import admin, messages
from django.contrib.auth.mixins import AccessMixin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseBase, QueryDict
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.views import View
from django.views.generic.base import ContextMixin, TemplateResponseMixin
from django_htmx.middleware import HtmxDetails

from powercrud_dashboard import access
from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.models import TaskRecord

#: Keeps how often a person's pages refresh themselves, in seconds.
REFRESH_COOKIE = "pcrud_refresh"


@dataclass(frozen=True)
class PageLink:
    label: str
    url: str
    is_current: bool


class DashboardView(AccessMixin, ContextMixin, View):
    """Base of every page and action; open to active staff."""

    admin_site: admin.AdminSite = admin.site
    #: Which of the pages in the navigation this one belongs to.
    page_name = ""
    #: Codename of the permission without which the page is refused.
    required_permission = ""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if not (request.user.is_active and request.user.is_staff):
            return self.handle_no_permission()
        if self.required_permission and not access.has_permission(request.user, self.required_permission):
            raise PermissionDenied
        return super().dispatch(request, *args, **kwargs)

    def url(self, name: str, *args: object) -> str:
        """Return the address of another page where this one is mounted, in the admin or elsewhere."""
        match = self.request.resolver_match
        namespace = match.namespace if match else self.admin_site.name
        return reverse(f"{namespace}:powercrud_dashboard_taskrecord_{name}", args=args)

    def list_url(self, query: str = "") -> str:
        """Return the address of the task list with this query, which is made clean."""
        clean = QueryDict(query).urlencode()
        return f"{self.url('changelist')}?{clean}" if clean else self.url("changelist")

    def next_url(self, fallback: str) -> str:
        """Return the address that the form names as ``next`` if it is on this site, else ``fallback``."""
        address = self.request.POST.get("next", "")
        is_ours = url_has_allowed_host_and_scheme(
            address, allowed_hosts={self.request.get_host()}, require_https=self.request.is_secure()
        )
        return address if is_ours else fallback

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        # A refresh replaces a part within the frame, which costs permission checks for each model to build.
        frame = {} if self.is_partial_request else self.admin_site.each_context(self.request)
        return {
            **frame,
            "opts": TaskRecord._meta,
            "list_url": self.url("changelist"),
            "pages": self._pages(),
            **super().get_context_data(**kwargs),
        }

    def _pages(self) -> list[PageLink]:
        """Return the pages that this person may open."""
        pages = [
            PageLink(_("Tasks"), self.url("changelist"), self.page_name == "changelist"),
            PageLink(_("Failures"), self.url("failures"), self.page_name == "failures"),
        ]
        if access.has_permission(self.request.user, "view_conflictlock"):
            pages.append(PageLink(_("Locks"), self.url("locks"), self.page_name == "locks"))
        if access.has_permission(self.request.user, "view_taskrecord"):
            pages.append(PageLink(_("Cluster"), self.url("cluster"), self.page_name == "cluster"))
        return pages

    @staticmethod
    def manager_of(record: TaskRecord) -> AsyncManager:
        """Return the manager that the task was launched by, which hears of what is done to it."""
        return AsyncManager.resolve_manager(record.manager_class)

    @property
    def is_partial_request(self) -> bool:
        """Whether htmx asks for the moving part of a page only."""
        details = HtmxDetails(self.request)
        return bool(details) and not details.boosted and not details.history_restore_request


class RefreshingPageView(TemplateResponseMixin, DashboardView):
    """Base of a page whose moving part fetches itself again: htmx gets that part only, at the same address.

    A page that knows its :meth:`current_state` answers 204 without a body as long as that is the one shown.
    """

    partial_template_name = ""

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if self.is_partial_request and self.shown_state and self.shown_state == self.current_state():
            return HttpResponse(status=204)
        return self.render_to_response(self.get_context_data())

    def get_template_names(self) -> list[str]:
        return [self.partial_template_name if self.is_partial_request else str(self.template_name)]

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        interval = refresh_interval(self.request)
        return super().get_context_data(
            refresh_url=self.request.get_full_path(),
            refresh_interval=interval,
            refresh_choices=[(seconds, _interval_words(seconds)) for seconds in refresh_choices()],
            refresh_choice_url=self.url("refresh"),
            **kwargs,
        )

    def current_state(self) -> str:
        """Return a text that is the same as long as the page's moving part is; "" if that can't be told cheaply."""
        return ""

    # What the shown part says of itself when it asks for news.

    @property
    def shown_state(self) -> str:
        return self.request.headers.get("X-Pcrud-State", "")

    @property
    def shown_newest(self) -> str:
        """The place of the newest row that the person knows of."""
        return self.request.headers.get("X-Pcrud-Newest", "")

    @property
    def is_held(self) -> bool:
        """Whether the rows are to stay in their places, as some are ticked."""
        return bool(self.request.headers.get("X-Pcrud-Hold"))


def refresh_choices() -> list[int]:
    """Return the intervals that a person can choose, in seconds; 0 is off."""
    return sorted({0, 1, 2, 5, 15, app_settings.DASHBOARD_REFRESH_INTERVAL})


def refresh_interval(request: HttpRequest) -> int:
    """Return the seconds between two refreshes that this person has chosen, or the project's default."""
    chosen = request.COOKIES.get(REFRESH_COOKIE, "")
    offered = {str(seconds): seconds for seconds in refresh_choices()}
    return offered.get(chosen, app_settings.DASHBOARD_REFRESH_INTERVAL)


def _interval_words(seconds: int) -> str:
    return _("%(seconds)d s") % {"seconds": seconds} if seconds else _("off")


class TaskActionView(DashboardView):
    """Base of what a person does to one task: load it, act, go back to its page, or the list, with a message."""

    http_method_names = ["post", "options"]

    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        record = TaskRecord.objects.visible_to(request.user).filter(pk=pk).first()
        if record is None:
            messages.error(request, _("There is no such task any more."))
            return redirect(self.url("changelist"))
        shown = self.act(record)
        if "filter" in request.POST:
            return redirect(self.list_url(request.POST["filter"]))
        return redirect(self.next_url(self.url("change", shown.pk)))

    def act(self, record: TaskRecord) -> TaskRecord:
        """Do it, leave a message, and return the record to show next."""
        raise NotImplementedError
