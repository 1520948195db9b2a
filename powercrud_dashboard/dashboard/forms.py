from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from powercrud_dashboard.dashboard.formatting import mask, masked, readable_json
from powercrud_dashboard.text import MAX_DEPTH, is_nested


class _JSONField(forms.JSONField):
    """A JSON field for values of one type, formatted for editing."""

    def __init__(self, expected: type, message: Any, **options: Any) -> None:
        #: The names of the items, if the value is a list of arguments.
        self.argument_names: Sequence[str] = ()
        self._expected = expected
        self._message = message
        widget = forms.Textarea(attrs={"class": "vLargeTextField pcrud-json", "rows": 8, "spellcheck": "false"})
        super().__init__(widget=widget, required=False, **options)

    def prepare_value(self, value: Any) -> Any:
        return value if isinstance(value, str) else readable_json(value, self.argument_names)

    def to_python(self, value: Any) -> Any:
        try:
            data = super().to_python(value)
            # Not every JSON text can be stored: it may contain halves of surrogate pairs.
            json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise ValidationError(self.error_messages["invalid"], code="invalid") from error
        if data is None:
            return self._expected()
        if not isinstance(data, self._expected):
            raise ValidationError(self._message)
        if is_nested(data, MAX_DEPTH):
            raise ValidationError(_("Nest lists and objects at most %(depth)d levels deep.") % {"depth": MAX_DEPTH})
        return data

    def bound_data(self, data: Any, initial: Any) -> Any:
        # Show what was entered, as it was entered.
        return data


class ArgumentsForm(forms.Form):
    """The arguments for a retry. Secrets are masked; a masked value that is not edited keeps its secret."""

    task_args = _JSONField(list, gettext_lazy("Enter a JSON list, such as [1, 2]."), label=gettext_lazy("Arguments"))
    task_kwargs = _JSONField(
        dict, gettext_lazy('Enter a JSON object, such as {"limit": 5}.'), label=gettext_lazy("Keyword arguments")
    )

    def __init__(self, *args: Any, argument_names: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._names = {"task_args": argument_names, "task_kwargs": ()}
        self.fields["task_args"].argument_names = argument_names  # type: ignore[attr-defined]

    def clean_task_args(self) -> list[Any]:
        return self._unmasked("task_args")  # type: ignore[no-any-return]

    def clean_task_kwargs(self) -> dict[str, Any]:
        return self._unmasked("task_kwargs")  # type: ignore[no-any-return]

    def _unmasked(self, name: str) -> Any:
        original = self.get_initial_for_field(self.fields[name], name)
        return _with_secrets(self.cleaned_data[name], original, masked(original, self._names[name]))


def _with_secrets(edited: Any, original: Any, shown: Any) -> Any:
    """Return the edited data, with each unchanged mask replaced by the original secret.

    Raises:
        ValidationError: if the edited data has a mask where the original has no secret.
    """
    if isinstance(edited, dict):
        originals, masks = _if_both(dict, original, shown)
        return {name: _with_secrets(value, originals.get(name), masks.get(name)) for name, value in edited.items()}
    if isinstance(edited, list):
        originals, masks = _if_both(list, original, shown)
        return [_with_secrets(item, *_as_shown(number, edited, originals, masks)) for number, item in enumerate(edited)]
    if type(edited) is type(shown) and edited == shown:
        return original
    if isinstance(edited, str) and mask() in edited:
        raise ValidationError(_("This value was not masked before, or not in this place. Enter the value itself."))
    return edited


def _as_shown(number: int, edited: list[Any], originals: list[Any], masks: list[Any]) -> tuple[Any, Any]:
    """Return the original of an item of an edited list, and how it was shown; (None, None) if that can't be told.

    Items may have been added, removed or moved: a secret must not get into another item than its own.
    """
    item = edited[number]
    if len(edited) == len(masks):
        shown = masks[number]
        if item == shown or (item not in masks and shown not in edited):
            return originals[number], shown
    pairs = list(zip(originals, masks, strict=True))
    alike = [pair for pair in pairs if pair[1] == item] or [pair for pair in pairs if pair[0] != pair[1]]
    return alike[0] if alike and alike.count(alike[0]) == len(alike) else (None, None)


def _if_both(kind: type, original: Any, shown: Any) -> tuple[Any, Any]:
    return (original, shown) if isinstance(original, kind) and isinstance(shown, kind) else (kind(), kind())
