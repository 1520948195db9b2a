"""The mixin in front of the admin classes of other packages."""

from __future__ import annotations

from typing import Any

from asgiref.sync import async_to_sync
from django import forms
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone, translation
from django.utils.translation import gettext
from django_object_actions import DjangoObjectActions
from django_otp.admin import OTPAdminSite
from guardian.admin import GuardedModelAdmin
from import_export.admin import ImportExportModelAdmin
from mptt.admin import DraggableMPTTAdmin, MPTTModelAdmin
from parler.admin import TranslatableAdmin
from reversion.admin import VersionAdmin
from simple_history.admin import SimpleHistoryAdmin

from powercrud_dashboard.admin import BackgroundActionsMixin, background_action
from tests.neighbours.models import Article, Category, Folder, Invoice, Line, Page, Partner, Seal, Stamp


class BillForm(forms.Form):
    due = forms.DateTimeField(required=False)
    day = forms.DateField(required=False)
    amount = forms.DecimalField(required=False, localize=True)


class Visits(BackgroundActionsMixin):
    """The mixin, with one action for any model."""

    actions = ["visit", "save_each"]
    lock_blocks_edit = True

    @background_action(description="Visit", per_object=True)
    def visit(self, request: HttpRequest, obj: Any) -> None:
        self.message_user(request, f"{request.user} visited {obj}")

    @background_action(description="Save each", per_object=True)
    def save_each(self, request: HttpRequest, obj: Any) -> None:
        obj.save()


admin.site.unregister([User, Group])


@admin.register(User)
class VisitedUserAdmin(Visits, UserAdmin):
    pass


@admin.register(Group)
class VisitedGroupAdmin(Visits, GroupAdmin):
    pass


@admin.register(Category)
class CategoryAdmin(Visits, DraggableMPTTAdmin):
    pass


@admin.register(Article)
class ArticleAdmin(Visits, TranslatableAdmin):
    pass


@admin.register(Invoice)
class InvoiceAdmin(Visits, SimpleHistoryAdmin):
    actions = ["visit", "save_each", "bill", "look_around", "fail"]

    @background_action(description="Fail")
    def fail(self, request: HttpRequest, queryset: Any) -> None:
        raise LookupError("as it always does")

    @background_action(description="Bill", form=BillForm)
    def bill(self, request: HttpRequest, queryset: Any, cleaned_data: dict[str, Any]) -> dict[str, str]:
        return {name: str(value) for name, value in cleaned_data.items()}

    @background_action(description="Look around")
    def look_around(self, request: Any, queryset: Any) -> dict[str, Any]:
        """Return what an ordinary action may ask its request for."""
        return {
            "url": request.build_absolute_uri("/x/"),
            "is_secure": request.is_secure(),
            "path": request.path,
            "path_info": request.path_info,
            "script_name": request.META["SCRIPT_NAME"],
            "reversed": reverse("admin:index"),
            "address": request.META["REMOTE_ADDR"],
            "language": translation.get_language(),
            "code": request.LANGUAGE_CODE,
            "word": gettext("Delete"),
            "time_zone": timezone.get_current_timezone_name(),
            "view": request.resolver_match.view_name,
            "is_htmx": bool(request.htmx),
            "user": str(async_to_sync(request.auser)()),
            "body": request.body.decode(),
            "session": dict(request.session),
            "is_modified": request.session.modified,
            "search": request.GET.get("q"),
            "hint": getattr(request, "hint", None),
        }

    def prepare_background_request(self, request: Any) -> None:
        request.hint = f"prepared for {request.user}"


@admin.register(Page)
class PageAdmin(Visits, VersionAdmin):
    pass


class LineInline(admin.TabularInline):
    model = Line
    extra = 0


@admin.register(Folder)
class FolderAdmin(Visits, GuardedModelAdmin):
    inlines = [LineInline]
    list_display = ["id", "name"]
    list_editable = ["name"]


@admin.register(Partner)
class PartnerAdmin(Visits, admin.ModelAdmin):
    pass


class PlainSite(admin.AdminSite):
    pass


#: A second site, for more classes on the same models.
more = PlainSite(name="more")


@admin.register(Folder, site=more)
class ImportExportFolderAdmin(Visits, ImportExportModelAdmin):
    background_actions = ["delete_selected"]


more.register([Seal, Stamp])


@admin.register(Page, site=more)
class ObjectActionsPageAdmin(Visits, DjangoObjectActions, admin.ModelAdmin):
    pass


@admin.register(Category, site=more)
class TreeCategoryAdmin(Visits, MPTTModelAdmin):
    pass


#: A site that asks the user for what a middleware gives it.
otp = OTPAdminSite(name="otp")
otp.register(Invoice, InvoiceAdmin)
