from __future__ import annotations

import pytest

from powercrud_dashboard.text import message_pattern


@pytest.mark.parametrize(
    ("kind", "message", "pattern"),
    [
        ("builtins.ValueError", "row 7 of 1,200 has no price", "ValueError: row … of … has no price"),
        ("builtins.KeyError", "'article-4711'", "KeyError: …"),
        ("m.Gone", 'no "invoice" in “cellar”', "Gone: no … in …"),
        # An apostrophe is no quotation mark.
        ("m.E", "it can't be that 'x' isn't there", "E: it can't be that … isn't there"),
        ("m.E", "/srv/app/data/7.csv is empty", "E: … is empty"),
        ("m.E", "lib/tests/data/README can't be parsed", "E: … can't be parsed"),
        ("m.E", "and/or is no path", "E: and/or is no path"),
        ("m.E", "5f4dcc3b5aa765d61d8327deb882cf99 is unknown", "E: … is unknown"),
        ("m.E", "6ba7b810-9dad-11d1-80b4-00c04fd430c8 is unknown", "E: … is unknown"),
        ("m.E", "python3 and utf8 stay", "E: python3 and utf8 stay"),
        ("m.E", "first line\nlast line 3\n\n", "E: last line …"),
        ("m.Timeout", "Timeout: after 5 s", "Timeout: after … s"),
        ("m.E", "", "E"),
        ("m.E", "['blanks ']", "E: blanks"),
        ("", "", ""),
        ("", "Worker lost", "Worker lost"),
    ],
)
def test_errors_of_one_kind_have_one_pattern(kind, message, pattern):
    assert message_pattern(kind, message, 255) == pattern


def test_a_long_message_is_cut():
    assert len(message_pattern("m.E", "word " * 1_000, 255)) <= 255


def test_a_number_that_python_does_not_print_breaks_nothing():
    assert message_pattern("m.E", f"[0x{'f' * 9_000}]", 255).startswith("E: [")
