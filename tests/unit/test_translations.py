"""All that a person reads is translatable, and the catalogues are complete."""

from __future__ import annotations

import gettext
import re
import shutil
import subprocess
from pathlib import Path

import django_q
import pytest
from django.core.management import call_command
from django.test import override_settings
from django.utils import translation

from powercrud_dashboard.exceptions import TaskNotRetryable
from powercrud_dashboard.models import TaskStatus
from powercrud_dashboard.models.coordination import ActiveTaskState
from powercrud_dashboard.models.objects import Outcome
from tests import services
from tests.settings.base import ROOT

PACKAGE = ROOT / "powercrud_dashboard"
LANGUAGES = sorted(path.parts[-3] for path in (PACKAGE / "locale").glob("*/LC_MESSAGES/django.po"))
#: What a translation keeps as it is: values, and elements of HTML.
KEPT = r"%\(\w+\)[sdf]|{\w*}|</?\w[^>]*>"
#: All but one that holds attributes of an element and no words.
TEMPLATES = sorted(path for path in (ROOT / "templates").rglob("*.html") if path.name != "_refresh.html")
CLASS_BLOCKS = r"{% block (?:coltype|bodyclass) %}.*?{% endblock %}"
#: Words in templates that are the same in every language.
UNTRANSLATED = {
    "python manage.py qcluster",
    "python manage.py pcrud_schedule_cleanup",
    "python manage.py pcrud_sync_schedules",
    ", p95",
    "j",
    "k",
    "r",
    "x",
    "Enter",
}
LIST = "/admin/powercrud_dashboard/taskrecord/"
#: Translations by message, or by message and plural form.
Texts = dict[str | tuple[str, int], str]


def catalogue(language: str) -> Texts:
    return loaded(PACKAGE / "locale" / language / "LC_MESSAGES" / "django.mo")


def kept(text: str) -> list[str]:
    return sorted(re.findall(KEPT, text))


def compiled(po: Path) -> Texts:
    """Return what msgfmt makes of a catalogue, after its own checks, by message."""
    mo = po.with_suffix(".compiled")
    command = [services.program("msgfmt"), "--check-format", "--statistics", "-o", mo, po]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env={"LC_ALL": "C"}).stderr
    assert re.fullmatch(r"\d+ translated messages\.", said.strip()), said
    return loaded(mo)


def loaded(mo: Path) -> Texts:
    with mo.open("rb") as file:
        texts = dict(gettext.GNUTranslations(file)._catalog)
    # The header, with its times.
    del texts[""]
    return texts


@pytest.fixture(scope="module")
def extracted(tmp_path_factory) -> Path:
    """Extract all texts anew, and return the folder of the catalogues."""
    services.program("xgettext")
    place = tmp_path_factory.mktemp("texts")
    for name in ("powercrud_dashboard", "templates"):
        shutil.copytree(ROOT / name, place / name)
    folder = place / "powercrud_dashboard" / "locale"
    with pytest.MonkeyPatch.context() as patch, override_settings(LOCALE_PATHS=[folder]):
        patch.chdir(place)
        call_command("makemessages", locale=LANGUAGES, no_obsolete=True, no_wrap=True, verbosity=0)
    return folder


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_catalogue_is_complete_and_compiled(extracted, language):
    """No text is untranslated, none is uncertain, and the compiled file is the same."""
    fresh = compiled(extracted / language / "LC_MESSAGES" / "django.po")
    assert fresh == catalogue(language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_keep_values_and_elements(language):
    """Not those of texts with a number: a language may say "one" without it, and msgfmt checks the others."""
    texts = {text: said for text, said in catalogue(language).items() if isinstance(text, str)}
    assert [text for text, said in texts.items() if kept(text) != kept(said)] == []


def test_a_lost_value_is_found():
    assert kept("<b>%(name)s</b> {0}") == ["%(name)s", "</b>", "<b>", "{0}"]


def test_german_is_among_the_languages():
    assert "de" in LANGUAGES


def bare_text(template: str) -> list[str]:
    """Return the words of a template that no translation reaches."""
    for markup in (
        r"&\w+;",
        CLASS_BLOCKS,
        r"{#.*?#}",
        r"{% blocktranslate.*?{% endblocktranslate %}",
        r"{%.*?%}",
        r"{{.*?}}",
    ):
        template = re.sub(markup, "", template, flags=re.DOTALL)
    attributes = re.findall(r'(?:aria-label|title|placeholder|alt)="([^"]*)"', template)
    texts = re.sub(r"<[^>]*>", "\n", template).split("\n")
    return [text.strip() for text in (*attributes, *texts) if re.search(r"[^\W\d_]", text)]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: str(path.relative_to(ROOT / "templates")))
def test_templates_hold_no_bare_words(path):
    assert set(bare_text(path.read_text())) <= UNTRANSLATED


@pytest.mark.parametrize("template", ["<p>Hello</p>", '<i title="Hello"></i>', "{% if a %}Hello{% endif %}"])
def test_bare_words_are_found(template):
    assert bare_text(template) == ["Hello"]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("language", "address", "words"),
    [
        ("de", LIST, ["Hintergrundaufgaben", "Fehlgeschlagen", "Weitere Filter", "Als Nächste an der Reihe"]),
        (
            "de",
            f"{LIST}failures/",
            ["Fehlschläge", "Die letzten 24 Stunden", "In diesem Zeitraum ist kein Fehlschlag offen."],
        ),
        ("de", f"{LIST}locks/", ["Es gibt keine Sperren.", "Gehalten von"]),
        ("de", f"{LIST}cluster/", ["Warteschlangen", "Es gibt keine Zeitpläne."]),
        ("de", f"{LIST}alerts/", ["Offene Alarme", "Es gibt keine offenen Alarme."]),
        ("de", "/admin/", ["In den letzten 24 Stunden fehlgeschlagen"]),
        ("es", LIST, ["Tareas en segundo plano", "Con fallo", "Más filtros", "Siguiente en la cola"]),
        ("es", f"{LIST}cluster/", ["Procesos worker", "No hay programaciones."]),
        ("fr", LIST, ["Tâches en arrière-plan", "En échec", "Plus de filtres", "Prochaine de la file d’attente"]),
        ("fr", f"{LIST}?user=anna", ["Lancée par\N{NO-BREAK SPACE}: anna"]),
        ("fr", f"{LIST}cluster/", ["Processus workers", "Il n’y a pas de planification."]),
    ],
)
def test_the_pages_are_translated(client_of, superuser, manager, language, address, words):
    manager.launch_async_task("tests.testapp.tasks.add", 1)
    with translation.override(language):
        page = client_of(superuser).get(address).content.decode()
    assert [word for word in words if word not in page] == []


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 tareas"), (1, "1 tarea"), (2, "2 tareas"), (10**6, "1000000 tareas")]
)
def test_spanish_has_three_forms_of_a_number(count, said):
    with translation.override("es"):
        assert translation.ngettext("%(count)s task", "%(count)s tasks", count) % {"count": count} == said


@pytest.mark.parametrize(("count", "said"), [(0, "0 tâche"), (1, "1 tâche"), (2, "2 tâches")])
def test_none_is_singular_in_french(count, said):
    with translation.override("fr"):
        assert translation.ngettext("%(count)s task", "%(count)s tasks", count) % {"count": count} == said


@pytest.mark.django_db
def test_words_that_apps_before_this_one_translate_otherwise(client_of, superuser, settings):
    """Without the catalogues in LOCALE_PATHS, as in a project, those of django-q2 come first."""
    settings.LOCALE_PATHS = []
    with translation.override("fr"):
        page = client_of(superuser).get(f"{LIST}failures/").content.decode()
    assert "<h1>Échecs</h1>" in page
    assert "Défaillances" not in page


@pytest.mark.django_db
def test_refusals_speak_german(client_of, superuser, manager, record_of):
    record = record_of(manager.launch_async_task("tests.testapp.tasks.add", 1))
    with translation.override("de"):
        page = client_of(superuser).post(f"{LIST}{record.pk}/retry/", follow=True).content.decode()
    assert "kann nicht wiederholt werden: sie ist noch nicht beendet" in page


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ("", "ihre Argumente wurden nicht aufbewahrt."),
        ("x", "ihre Signatur passt nicht zum SECRET_KEY dieses Projekts."),
    ],
)
def test_so_do_their_reasons(manager, record_of, payload, reason):
    record = record_of(manager.launch_async_task("tests.testapp.tasks.add", 1, sync=True))
    record.payload = payload
    record.save()
    with pytest.raises(TaskNotRetryable) as refusal:
        manager.retry_task(record.task_name)
    with translation.override("de"):
        said = str(refusal.value)
    assert said == f"Aufgabe {record.task_name} kann nicht wiederholt werden: {reason}"


@pytest.mark.django_db
def test_buttons_for_all_tasks_of_a_cause_speak_german(client_of, superuser, manager):
    with pytest.raises(ValueError, match="it broke"):
        manager.launch_async_task("tests.testapp.tasks.fail", sync=True)
    with translation.override("de"):
        page = client_of(superuser).get(f"{LIST}failures/").content.decode()
    assert ">Alle wiederholen<" in page
    assert ">Alle löschen<" in page
    assert 'aria-label="Alle löschen: ' in page


@pytest.mark.parametrize(
    ("language", "other"),
    [
        ("de", "anlauf"),
        ("de", "anläufe"),
        ("de", "herzschl"),
        ("es", "trabajador"),
        ("es", "candado"),
        ("es", "planificaci"),
        ("es", "ejecutor"),
        ("fr", "ouvrier"),
        ("fr", "battement"),
        ("fr", "réessai "),
    ],
)
def test_a_catalogue_has_one_word_for_a_thing(language, other):
    assert other not in (PACKAGE / "locale" / language / "LC_MESSAGES" / "django.po").read_text().lower()


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_order_of_the_apps_decides_about_no_status(language):
    """Django takes the translation of the app that stands first: what django-q2 has as well has a context."""
    path = Path(django_q.__file__).parent / "locale" / language / "LC_MESSAGES" / "django.mo"
    ours, theirs = catalogue(language), loaded(path) if path.exists() else {}
    labels = {str(label) for choices in (TaskStatus, ActiveTaskState, Outcome) for label in choices.labels}
    shared = labels & ours.keys() & theirs.keys()
    assert {label: theirs[label] for label in shared if theirs[label] != ours[label]} == {}
    with translation.override("de"):
        assert (TaskStatus.PENDING.label, ActiveTaskState.PENDING.label) == ("Wartet", "Wartet")
