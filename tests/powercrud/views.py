"""Views as a project of PowerCRUD has them; nothing in them knows of this package."""

from __future__ import annotations

from typing import Any

from neapolitan.views import CRUDView
from powercrud.bulk_persistence import DefaultBulkUpdatePersistenceBackend
from powercrud.mixins import PowerCRUDAsyncMixin

from tests.powercrud.models import Book, Chapter


class BookView(PowerCRUDAsyncMixin, CRUDView):
    model = Book
    base_template_path = "library/base.html"
    fields = ["title", "pages", "is_read", "shelf", "genre"]
    properties: list[str] = []
    use_htmx = True
    use_modal = True
    default_htmx_target = "#content"
    inline_edit_fields = ["title", "pages"]
    bulk_fields = ["pages", "is_read", "shelf", "genre", "tags"]
    bulk_delete = True
    bulk_async = True
    bulk_min_async_records = 2
    show_record_count = True


class ChapterView(PowerCRUDAsyncMixin, CRUDView):
    """Only for people who are logged in, and with a backend of its own."""

    model = Chapter
    base_template_path = "library/base.html"
    fields = ["book"]
    use_htmx = True
    use_modal = True
    bulk_fields = ["book"]
    bulk_async = True
    bulk_min_async_records = 1
    bulk_async_allow_anonymous = False
    bulk_update_persistence_backend_path = "tests.powercrud.views.Audited"
    bulk_update_persistence_backend_config = {"reason": "stocktaking"}


class Audited(DefaultBulkUpdatePersistenceBackend):
    """Leaves a word for each bulk update."""

    def persist_bulk_update(self, **options: Any) -> dict[str, Any]:
        context = options["context"]
        result = super().persist_bulk_update(**options)
        user, count = context.user_id, len(context.selected_ids)
        Book.objects.create(title=f"{self.config['reason']} {context.mode} {user} {count}")
        if context.task_name is None or not context.manager_class_path:
            raise ValueError("no task")
        return result
