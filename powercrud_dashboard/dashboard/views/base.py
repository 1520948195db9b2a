"""Base classes of the views."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from operator import attrgetter
from typing import Any

from django.apps import apps
from django.contrib import admin, messages
from django.contrib.admin import AdminSite
from django.contrib.admin.sites import all_sites
from django.contrib.admin.utils import quote
from django.contrib.auth.mixins import AccessMixin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect, QueryDict
from django.urls import NoReverseMatch, Resolver404, get_script_prefix, resolve, reverse
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.utils.translation import pgettext
from django.views import View
from django.views.generic.base import ContextMixin, TemplateResponseMixin
from django_htmx.http import HttpResponseClientRedirect
from django_htmx.middleware import HtmxDetails

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.dashboard import access
from powercrud_dashboard.dashboard.keyset import is_key
from powercrud_dashboard.dashboard.listing import WIDE_COLUMNS
from powercrud_dashboard.dashboard.live import no_cluster_runs
from powercrud_dashboard.dashboard.operations import retry_task
from powercrud_dashboard.exceptions import TaskAlreadyActive, TaskBusy
from powercrud_dashboard.models import TaskRecord
from powercrud_dashboard.models.database import Now
from powercrud_dashboard.models.labels import label_given, row_label
from powercrud_dashboard.models.locks import WHOLE_MODEL
from powercrud_dashboard.models.pausing import Pause
from powercrud_dashboard.text import translated


class ObjectLinks:
    """URLs of the admin pages of objects, for one request. Permissions are checked once for each model."""

    def __init__(self, site: AdminSite, request: HttpRequest) -> None:
        self._site = site
        self._request = request
        self._names: dict[str, str] = {}

    def url_in(self, record: TaskRecord, model_label: str, object_id: str) -> str:
        """Return the URL of the admin page of an object of this task, of the model that the task was launched for.

        That may be a proxy or a child of the model whose label is recorded.
        """
        return self.url(label_given(record.model_labels, model_label), object_id)

    def url(self, model_label: str, object_id: str) -> str:
        """Return the URL of the admin page of the object, or "" if there is none or the user may not view it."""
        if model_label not in self._names:
            self._names[model_label] = self._url_name(model_label)
        name = self._names[model_label]
        if not name or object_id == WHOLE_MODEL:
            return ""
        try:
            return reverse(name, args=[quote(object_id)], current_app=self._site.name)
        except NoReverseMatch:
            return ""

    def _url_name(self, model_label: str) -> str:
        try:
            model = apps.get_model(model_label)
        except (LookupError, ValueError):
            return ""
        site, request, own = self._site, self._request, row_label(model)
        # The admin, or the user, may know the rows only under a proxy model, a parent or a child model.
        others = [other for other in site._registry if row_label(other) == own]
        for candidate in (model, *sorted(others, key=lambda other: other._meta.label_lower != own)):
            if site.is_registered(candidate) and site.get_model_admin(candidate).has_view_or_change_permission(request):
                return f"admin:{candidate._meta.app_label}_{candidate._meta.model_name}_change"
        return ""


#: The header with their keys must not be longer than web servers take.
MAX_HELD_ROWS = 500

#: Name of the cookie with the refresh interval, in seconds.
REFRESH_COOKIE = "pcrud_refresh"


@dataclass(frozen=True)
class PageLink:
    label: str
    url: str
    is_current: bool


def mounted_site() -> AdminSite:
    """Return the admin site whose look the pages outside of the admin have: the default one, unless it has no URLs."""
    for site in (admin.site, *sorted(all_sites, key=attrgetter("name"))):
        try:
            index = reverse("admin:index", current_app=site.name)
            # Another site's, if this one has no URLs.
            namespace = resolve(f"/{index.removeprefix(get_script_prefix())}").namespace
        except (NoReverseMatch, Resolver404):
            continue
        if namespace == site.name:
            return site
    return admin.site


#: Paused queues and functions that a page names.
SHOWN_PAUSES = 10


class DashboardView(AccessMixin, ContextMixin, View):
    """Base class of all pages and actions. Requires an active user whom the admin site lets in."""

    #: The admin site that the pages belong to; None outside of the admin.
    admin_site: AdminSite | None = None
    #: The entry of the navigation that is marked as current.
    page_name = ""
    #: Codename of the required permission; "" for none.
    required_permission = ""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if not (request.user.is_active and self.site.has_permission(request)):
            return self.handle_no_permission()
        if self.required_permission and not access.has_permission(request.user, self.required_permission):
            raise PermissionDenied
        return super().dispatch(request, *args, **kwargs)

    @cached_property
    def site(self) -> AdminSite:
        return self.admin_site or mounted_site()

    def url(self, name: str, *args: object) -> str:
        """Return the URL of a page in the namespace of the current one, in the admin or elsewhere."""
        match = self.request.resolver_match
        namespace = match.namespace if match else self.site.name
        return reverse(f"{namespace}:powercrud_dashboard_taskrecord_{name}", args=args)

    def list_url(self, query: str = "") -> str:
        """Return the URL of the task list with this query string, encoded again."""
        encoded = QueryDict(query).urlencode()
        return f"{self.url('changelist')}?{encoded}" if encoded else self.url("changelist")

    def list_of(self, **filters: object) -> str:
        """Return the URL of the task list with these filters."""
        return f"{self.url('changelist')}?{_encoded(filters)}"

    def function_url(self, func: str, pattern: str = "") -> str:
        """Return the URL of the page of a function, which looks for an error there; "" for who may not view it."""
        if not func or not access.has_permission(self.request.user, "view_taskrecord"):
            return ""
        return f"{self.url('function')}?{_encoded({'func': func, **({'pattern': pattern} if pattern else {})})}"

    def next_url(self, fallback: str) -> str:
        """Return the submitted ``next`` URL if it is on this site, else ``fallback``."""
        url = self.request.POST.get("next", "")
        is_safe = url_has_allowed_host_and_scheme(
            url, allowed_hosts={self.request.get_host()}, require_https=self.request.is_secure()
        )
        return url if is_safe else fallback

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        # A refresh replaces only a part of the page. each_context() is slow: it checks permissions for each model.
        site_context = {} if self.is_partial_request else self.site.each_context(self.request)
        return {
            **site_context,
            "opts": TaskRecord._meta,
            "list_url": self.url("changelist"),
            "pages": self._pages(),
            # Asked by the pages that say it.
            "no_cluster_runs": no_cluster_runs,
            **super().get_context_data(**kwargs),
        }

    def _pages(self) -> list[PageLink]:
        """Return the navigation: the pages that the user may view."""
        pages = [
            PageLink(_("Tasks"), self.url("changelist"), self.page_name == "changelist"),
            PageLink(pgettext("of tasks", "Failures"), self.url("failures"), self.page_name == "failures"),
        ]
        if access.has_permission(self.request.user, "view_taskrecord"):
            pages.append(PageLink(_("Insights"), self.url("insights"), self.page_name == "insights"))
        if access.has_permission(self.request.user, "view_conflictlock"):
            pages.append(PageLink(_("Locks"), self.url("locks"), self.page_name == "locks"))
        if access.has_permission(self.request.user, "view_taskrecord"):
            pages.append(PageLink(_("Schedules"), self.url("schedules"), self.page_name == "schedules"))
            pages.append(PageLink(_("Cluster"), self.url("cluster"), self.page_name == "cluster"))
            pages.append(PageLink(_("Alerts"), self.url("alerts"), self.page_name == "alerts"))
        return pages

    def retry(self, record: TaskRecord, **changes: Any) -> TaskRecord:
        """Retry a finished task as the user, and return and raise as :func:`retry_task` does."""
        return retry_task(record, self.request.user, **changes)

    def pauses(self, **which: Any) -> dict[str, Any]:
        """Return what the pages show of paused queues and functions, of those that keep a task back if one is given."""
        pauses = Pause.objects.all().applying_to(**which) if which else Pause.objects.all()
        url = self.url("resume_queue") if access.may_pause_queues(self.request.user) else ""
        return {"pauses": pauses.order_by("since").annotate(read_at=Now())[:SHOWN_PAUSES], "resume_pause_url": url}

    def explain(self, error: Exception) -> str:
        """Return the text of an error, with a link to the task that it is about."""
        if not isinstance(error, TaskAlreadyActive):
            return str(error)
        visible = TaskRecord.objects.visible_to(self.request.user).filter(task_name=error.task_name)
        if (record := visible.only("pk", "label").first()) is None:
            return str(error)
        text = _("The same task is already queued or running:")
        return format_html('{} <a href="{}">{}</a>', text, self.url("change", record.pk), translated(record.label))

    @property
    def is_partial_request(self) -> bool:
        return is_partial_request(self.request)


def _encoded(parameters: Mapping[str, object]) -> str:
    query = QueryDict(mutable=True)
    for name, value in parameters.items():
        query[name] = str(value)
    return query.urlencode()


def is_partial_request(request: HttpRequest) -> bool:
    """Return whether htmx requests only the refreshing part of a page."""
    details = HtmxDetails(request)
    return bool(details) and not details.boosted and not details.history_restore_request


def refreshable(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """Wrap the view of a page, so that it also serves the refreshes of the page.

    A refresh does not renew the session. A redirect, such as the one to the login page, is followed by the browser and
    not by htmx, which would insert the page it leads to, or fail if that is on another origin.
    """

    @wraps(view)
    def respond(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if not is_partial_request(request):
            return view(request, *args, **kwargs)
        access.do_not_renew_session(request)
        response = view(request, *args, **kwargs)
        return HttpResponseClientRedirect(response.url) if isinstance(response, HttpResponseRedirect) else response

    return respond


class RefreshingPageView(TemplateResponseMixin, DashboardView):
    """Base class of pages that refresh a part of themselves. htmx requests this part at the URL of the page.

    If the requested version is still the :meth:`current_version`, the response is 204 without a body.
    """

    partial_template_name = ""

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if self.is_partial_request and self.shown_version and self.shown_version == self.current_version():
            return HttpResponse(status=204)
        return self.render_to_response(self.get_context_data())

    def get_template_names(self) -> list[str]:
        return [self.partial_template_name if self.is_partial_request else str(self.template_name)]

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        interval = refresh_interval(self.request)
        return super().get_context_data(
            refresh_url=self.request.get_full_path(),
            refresh_interval=interval,
            refresh_choices=[(seconds, _interval_text(seconds)) for seconds in refresh_choices()],
            refresh_choice_url=self.url("refresh"),
            **kwargs,
        )

    def current_version(self) -> str:
        """Return a text that changes whenever the refreshing part changes; "" to render it each time."""
        return ""

    # Request headers that describe the displayed part

    @property
    def shown_version(self) -> str:
        return self.request.headers.get("X-Pcrud-State", "")

    @property
    def newest_seen(self) -> str:
        """The cursor of the newest row that the user has seen."""
        return self.request.headers.get("X-Pcrud-Newest", "")

    @property
    def held_keys(self) -> list[str]:
        """The keys of the rows that a list must not move, because some of them are selected."""
        keys = self.request.headers.get("X-Pcrud-Hold", "").split(",")
        return [key for key in keys if is_key(key)][:MAX_HELD_ROWS]


def refresh_choices() -> list[int]:
    """Return the intervals that a user can select, in seconds; 0 disables the refresh."""
    return sorted({0, 1, 2, 5, 15, app_settings.DASHBOARD_REFRESH_INTERVAL})


def refresh_interval(request: HttpRequest) -> int:
    """Return the interval that the user has selected, or the default, in seconds."""
    selected = request.COOKIES.get(REFRESH_COOKIE, "")
    choices = {str(seconds): seconds for seconds in refresh_choices()}
    return choices.get(selected, app_settings.DASHBOARD_REFRESH_INTERVAL)


def _interval_text(seconds: int) -> str:
    return _("%(seconds)d s") % {"seconds": seconds} if seconds else _("off")


class TaskActionView(DashboardView):
    """Base class of actions on one task. It redirects to the page of the task, or to the list, with a message."""

    http_method_names = ["post", "options"]
    #: Codename of the permission that users need for tasks that they have not launched.
    task_permission = ""

    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        record = TaskRecord.objects.visible_to(request.user).filter(pk=pk).defer(*WIDE_COLUMNS).first()
        if record is None:
            messages.error(request, _("The task no longer exists."))
            return HttpResponseRedirect(self.url("changelist"))
        if not access.has_permission_for(request.user, self.task_permission, record):
            raise PermissionDenied
        try:
            record_to_show: TaskRecord | HttpResponse = self.act(record)
        except TaskBusy as error:
            messages.error(request, str(error))
            record_to_show = record
        if isinstance(record_to_show, HttpResponse):
            return record_to_show
        if "filter" in request.POST:
            return HttpResponseRedirect(self.list_url(request.POST["filter"]))
        return HttpResponseRedirect(self.next_url(self.url("change", record_to_show.pk)))

    def act(self, record: TaskRecord) -> TaskRecord | HttpResponse:
        """Perform the action, add a message, and return the record to show next. Or return a page that asks first."""
        raise NotImplementedError
