"""What persons are to be told of the ends of their tasks, and whether they want mail."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.models.database import PrimaryManager
from powercrud_dashboard.models.fields import CharField, user_key
from powercrud_dashboard.models.history import TaskRecord
from powercrud_dashboard.models.prepared import PreparedInsert

#: How long a person can still be told of an end.
KEPT_FOR = timedelta(days=7)
#: How long a process has for sending a mail until another one tries.
LEASE = timedelta(minutes=5)
#: How long a mail is tried to be sent.
MAILED_WITHIN = timedelta(days=1)


class TaskNoticeQuerySet(models.QuerySet["TaskNotice"]):
    def of(self, user: Any) -> TaskNoticeQuerySet:
        return self.filter(user_id=user.pk)

    def untold(self) -> TaskNoticeQuerySet:
        return self.filter(told_by="")

    def tell(self, by: str) -> int:
        """Reserve the notices for the page with this token. Return how many were still to be told."""
        return self.untold().update(told_by=by)

    def see(self) -> None:
        """Show the notices no more. Mails that are due are sent nevertheless: a page may be open with nobody there."""
        self.filter(mail_due_at=None).delete()
        self.update(is_for_pages=False, told_by="-")

    def expired(self) -> TaskNoticeQuerySet:
        return self.filter(created_at__lt=timezone.now() - KEPT_FOR)

    def to_mail(self) -> TaskNoticeQuerySet:
        """Those for which a mail is due; of a group once all of its tasks that the person has launched have ended."""
        of_group = TaskRecord.objects.using(self.db).filter(group=OuterRef("record__group"), user=OuterRef("user"))
        unfinished = of_group.unfinished()
        due = self.filter(mail_due_at__lte=timezone.now())
        return due.filter(Q(record__group="") | ~Exists(unfinished))

    def claim_mail(self) -> int:
        """Reserve their mails for this process. Return how many of them were still due."""
        now = timezone.now()
        return self.filter(mail_due_at__lte=now).update(mail_due_at=now + LEASE)

    def end_mail(self) -> None:
        """Note that no mail is to be sent any more. Notices that are for nothing else are deleted."""
        self.filter(is_for_pages=False).delete()
        self.update(mail_due_at=None)


_TaskNoticeBase = PrimaryManager.from_queryset(TaskNoticeQuerySet)


class TaskNoticeManager(_TaskNoticeBase["TaskNotice"]):
    def add(self, record: TaskRecord, *, is_for_pages: bool, mails: bool) -> None:
        """Add the notice for the person who has launched a task that has ended."""
        now = timezone.now()
        values = {
            "record": record.pk,
            "user": record.user_id,
            "created_at": now,
            "is_for_pages": is_for_pages,
            "told_by": "" if is_for_pages else "-",
            "mail_due_at": now if mails else None,
        }
        _ADD_NOTICE.execute([values])


class TaskNotice(models.Model):
    """The end of a task that the person who launched it has not seen yet, or is to get a mail about."""

    record = models.ForeignKey(TaskRecord, verbose_name=_("task"), on_delete=models.CASCADE, related_name="+")
    user = user_key(_("user"), on_delete=models.CASCADE)
    created_at = models.DateTimeField(_("created at"), default=timezone.now)
    #: Whether the middleware and the tray show it; others are only for the mail.
    is_for_pages = models.BooleanField(_("is for pages"), default=True)
    #: The token of the page whose message has told of it; empty until then.
    told_by = CharField(_("told by"), max_length=32, blank=True)
    #: When a mail is to be sent; empty for none.
    mail_due_at = models.DateTimeField(_("mail due at"), null=True, blank=True)

    objects = TaskNoticeManager()

    class Meta:
        verbose_name = _("task notice")
        verbose_name_plural = _("task notices")
        default_permissions = ()
        indexes = [
            models.Index(fields=["user", "told_by"], name="pcrud_notice_user"),
            models.Index(fields=["mail_due_at"], condition=Q(mail_due_at__isnull=False), name="pcrud_notice_mail"),
        ]

    def __str__(self) -> str:
        return str(self.record)


_ADD_NOTICE = PreparedInsert(TaskNotice)


class NoticePreferenceManager(PrimaryManager["NoticePreference"]):
    def wants_mail(self, user: Any) -> bool:
        """Return whether the person wants mails about long tasks."""
        chosen = self.filter(user_id=user.pk).values_list("mails", flat=True).first()
        return app_settings.DASHBOARD_MAIL_DEFAULT if chosen is None else chosen


class NoticePreference(models.Model):
    """What a person has chosen; without a row, the settings say."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL,
        verbose_name=_("user"),
        on_delete=models.CASCADE,
        db_constraint=False,
        related_name="+",
    )
    mails = models.BooleanField(_("mails"))

    objects = NoticePreferenceManager()

    class Meta:
        verbose_name = _("notice preference")
        verbose_name_plural = _("notice preferences")
        default_permissions = ()

    def __str__(self) -> str:
        return str(self.user)
