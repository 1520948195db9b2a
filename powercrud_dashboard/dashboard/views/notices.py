"""What a person is told of their tasks: the tray in the header, and the page on which they choose their mails."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.translation import gettext as _
from django.views.generic.base import TemplateResponseMixin
from django.views.generic.edit import FormMixin

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.dashboard.formatting import duration
from powercrud_dashboard.dashboard.tray import Tray
from powercrud_dashboard.dashboard.views.base import DashboardView, RefreshingPageView, refresh_interval
from powercrud_dashboard.models import NoticePreference, TaskNotice


class TrayView(RefreshingPageView):
    """The tray, as it refreshes itself. It is no page of its own."""

    partial_template_name = "powercrud_dashboard/tray/_tray.html"

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        self.tray = Tray(request.user, self.site.name, refresh_interval(request))
        if not self.is_partial_request:
            return HttpResponseRedirect(self.tray.all_url)
        return super().get(request, *args, **kwargs)

    def current_version(self) -> str:
        return self.tray.version

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(tray=self.tray, **kwargs)


class SeenView(DashboardView):
    """Mark the ended tasks as seen that the tray has shown."""

    http_method_names = ["post", "options"]

    def post(self, request: HttpRequest) -> HttpResponse:
        newest = request.POST.get("newest", "")
        if len(newest) < 19 and newest.isascii() and newest.isdecimal():
            TaskNotice.objects.of(request.user).filter(pk__lte=int(newest)).see()
        return HttpResponseRedirect(self.next_url(self.url("changelist")))


class MailForm(forms.Form):
    mails = forms.BooleanField(required=False)


class NotificationsView(TemplateResponseMixin, FormMixin, DashboardView):  # type: ignore[type-arg]
    """The page on which a person chooses whether they get mails."""

    page_name = "notifications"
    template_name = "powercrud_dashboard/notifications/page.html"
    form_class = MailForm

    def get(self, request: HttpRequest) -> HttpResponse:
        return self.render_to_response(self.get_context_data())

    def post(self, request: HttpRequest) -> HttpResponse:
        form = self.get_form()
        form.is_valid()
        NoticePreference.objects.update_or_create(user=self.user, defaults=form.cleaned_data)
        messages.success(request, _("Your choice was saved."))
        return HttpResponseRedirect(self.url("notifications"))

    @property
    def user(self) -> Any:
        return self.request.user

    def get_initial(self) -> dict[str, Any]:
        return {"mails": NoticePreference.objects.wants_mail(self.user)}

    def get_form(self, form_class: Any = None) -> forms.Form:
        form: forms.Form = super().get_form(form_class)
        label = _("Send me a mail when a task of mine ends or fails")
        if after := app_settings.DASHBOARD_MAIL_AFTER:
            text = _("Send me a mail when a task of mine ends or fails after more than %(time)s")
            label = text % {"time": duration(timedelta(seconds=after))}
        form.fields["mails"].label = label
        return form

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        address = getattr(self.user, self.user.get_email_field_name(), "")
        return super().get_context_data(
            title=_("Notifications"),
            sends_mails=app_settings.DASHBOARD_MAIL_AFTER is not None,
            address=address,
            **kwargs,
        )
