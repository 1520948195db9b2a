from __future__ import annotations

from itertools import islice, zip_longest
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from powercrud_dashboard.dashboard.formatting import mask, masked, readable_json


class _JSONField(forms.JSONField):
    """JSON of one type, laid out for people to edit."""

    def __init__(self, expected: type, message: Any, **options: Any) -> None:
        self._expected = expected
        self._message = message
        widget = forms.Textarea(attrs={"class": "vLargeTextField pcrud-json", "rows": 8, "spellcheck": "false"})
        super().__init__(widget=widget, required=False, **options)

    def prepare_value(self, value: Any) -> Any:
        return value if isinstance(value, str) else readable_json(value)

    def to_python(self, value: Any) -> Any:
        found = super().to_python(value)
        if found is None:
            return self._expected()
        if not isinstance(found, self._expected):
            raise ValidationError(self._message)
        return found


class ArgumentsForm(forms.Form):
    """The arguments that a task is to be run with again. Secrets are masked, and are kept if they are left so."""

    task_args = _JSONField(list, gettext_lazy("Give a JSON list, such as [1, 2]."), label=gettext_lazy("Arguments"))
    task_kwargs = _JSONField(
        dict, gettext_lazy('Give a JSON object, such as {"limit": 5}.'), label=gettext_lazy("Keyword arguments")
    )

    def clean_task_args(self) -> list[Any]:
        return self._unmasked("task_args")  # type: ignore[no-any-return]

    def clean_task_kwargs(self) -> dict[str, Any]:
        return self._unmasked("task_kwargs")  # type: ignore[no-any-return]

    def _unmasked(self, name: str) -> Any:
        original = self.get_initial_for_field(self.fields[name], name)
        return _with_secrets(self.cleaned_data[name], original, masked(original))


def _with_secrets(edited: Any, original: Any, shown: Any) -> Any:
    """Return the edited data with the secrets of the original where their masks were left as they were shown.

    Raises:
        ValidationError: if a mask stands where no secret was.
    """
    if isinstance(edited, dict):
        known, seen = _if_both(dict, original, shown)
        return {name: _with_secrets(value, known.get(name), seen.get(name)) for name, value in edited.items()}
    if isinstance(edited, list):
        triples = zip_longest(edited, *_if_both(list, original, shown))
        return [_with_secrets(*triple) for triple in islice(triples, len(edited))]
    if edited != mask():
        return edited
    if shown != mask():
        raise ValidationError(_("A masked value stands where none was: give the value itself."))
    return original


def _if_both(kind: type, original: Any, shown: Any) -> tuple[Any, Any]:
    return (original, shown) if isinstance(original, kind) and isinstance(shown, kind) else (kind(), kind())
