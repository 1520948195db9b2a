from __future__ import annotations

from django.db import models


class PeerRecord(models.Model):
    task_name = models.CharField(max_length=100, unique=True)
    status = models.CharField(max_length=20, db_index=True, default="pending")
    message = models.TextField(blank=True)
    progress_payload = models.TextField(blank=True)
    user_label = models.CharField(max_length=255, blank=True)
    affected_objects = models.TextField(blank=True)
    task_args = models.TextField(blank=True)
    task_kwargs = models.TextField(blank=True)
    result = models.TextField(blank=True, null=True)
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)
    updated_at = models.DateTimeField(auto_now=True)
    completed_at = models.DateTimeField(null=True)
    failed_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return self.task_name
