"""The progress endpoint: what a page polls while a task runs."""

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

from powercrud_dashboard import access

if TYPE_CHECKING:
    from collections.abc import Callable

#: Tells htmx 2 to stop polling.
STOP_POLLING = 286


class ProgressSource(Protocol):
    def describe_progress(self, task_name: str) -> dict[str, Any]: ...


@method_decorator(never_cache, name="dispatch")
class ProgressView(View):
    """Answer ``?task_name=`` with the task's status and progress as JSON.

    400 without a name; 404 for a task that is not there or that this person may not see; 286
    once it has ended. An anonymous visitor is sent to the login page, a script gets 401.
    """

    http_method_names = ["get", "head", "options"]
    #: Given by :meth:`AsyncManager.as_view`.
    manager_class: Callable[[], ProgressSource] | None = None

    def get(self, request: HttpRequest) -> HttpResponse:
        if not request.user.is_authenticated:
            return self._ask_to_log_in(request)
        task_name = request.GET.get("task_name", "")
        if not task_name:
            return JsonResponse({"error": _("Name the task: ?task_name=…")}, status=HTTPStatus.BAD_REQUEST)
        if not access.may_see(request.user, task_name):
            return JsonResponse({"error": _("There is no such task.")}, status=HTTPStatus.NOT_FOUND)
        if self.manager_class is None:
            raise ImproperlyConfigured("Get this view from AsyncManager.as_view().")
        progress = self.manager_class().describe_progress(task_name)
        finished = progress.pop("finished")
        return JsonResponse(progress, status=STOP_POLLING if finished else HTTPStatus.OK)

    @staticmethod
    def _ask_to_log_in(request: HttpRequest) -> HttpResponse:
        wants_page = request.accepts("text/html") and request.headers.get("HX-Request") != "true"
        if wants_page:
            return redirect_to_login(request.get_full_path())
        return JsonResponse({"error": _("Log in first.")}, status=HTTPStatus.UNAUTHORIZED)
