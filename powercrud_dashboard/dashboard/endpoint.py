"""The progress endpoint that a page polls while a task runs."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.views import View
from django.views.decorators.cache import never_cache

from powercrud_dashboard.dashboard import access

if TYPE_CHECKING:
    from collections.abc import Callable

#: Tells htmx 2 to stop polling.
STOP_POLLING = 286


class ProgressSource(Protocol):
    def describe_progress(self, task_name: str) -> dict[str, Any]: ...

    def is_open_to_all(self, task_name: str) -> bool: ...


@method_decorator(never_cache, name="dispatch")
class ProgressView(View):
    """Return the status and progress of the task in ``?task_name=`` as JSON.

    The status code is 400 without a task name, 404 for a task that does not exist or that the user may not see, and
    286 once the task has ended. Anonymous users get 401, unless the manager opens the task to all; a browser that opens
    the URL as a page is redirected to the login page. A request does not renew the session.
    """

    http_method_names = ["get", "head", "options"]
    #: Set by :meth:`AsyncManager.as_view`.
    manager_class: Callable[[], ProgressSource] | None = None

    def get(self, request: HttpRequest) -> HttpResponse:
        access.do_not_renew_session(request)
        if self.manager_class is None:
            raise ImproperlyConfigured("manager_class is not set. Use AsyncManager.as_view() to create this view.")
        task_name, manager = request.GET.get("task_name", ""), self.manager_class()
        may_see = bool(task_name) and (access.may_see(request.user, task_name) or manager.is_open_to_all(task_name))
        if not (may_see or request.user.is_authenticated):
            return self._login_required_response(request)
        if not task_name:
            return JsonResponse({"error": _("The parameter task_name is required.")}, status=HTTPStatus.BAD_REQUEST)
        if not may_see:
            return JsonResponse({"error": _("Task not found.")}, status=HTTPStatus.NOT_FOUND)
        progress = manager.describe_progress(task_name)
        if progress["progress"]:
            # It is kept without translation.
            progress["progress"] = _(progress["progress"])
        finished = progress.pop("finished")
        return JsonResponse(progress, status=STOP_POLLING if finished else HTTPStatus.OK)

    @staticmethod
    def _login_required_response(request: HttpRequest) -> HttpResponse:
        # Scripts send "*/*", which accepts a page as well, but can't do anything with it.
        wants_page = "text/html" in request.headers.get("Accept", "") and request.headers.get("HX-Request") != "true"
        if wants_page:
            return redirect_to_login(request.get_full_path())
        return JsonResponse({"error": _("Log in to see this task.")}, status=HTTPStatus.UNAUTHORIZED)
