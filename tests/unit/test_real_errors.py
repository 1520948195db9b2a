"""Errors of real libraries: which are of one kind, and which are not."""

from __future__ import annotations

import json
import os
import smtplib
import sqlite3
import ssl

import pytest
from django.core.exceptions import ValidationError

from powercrud_dashboard.text import message_pattern

REFUSED = (
    "HTTPSConnectionPool(host='{host}', port={port}): Max retries exceeded with url: {path} (Caused by "
    "NewConnectionError('<urllib3.connection.HTTPSConnection object at {address}>: Failed to establish a new "
    "connection: [Errno 111] Connection refused'))"
)
UNKNOWN_HOST = REFUSED.replace("[Errno 111] Connection refused", "[Errno -2] Name or service not known")
CERTIFICATE = (
    "HTTPSConnectionPool(host='{host}', port=443): Max retries exceeded with url: / (Caused by "
    "SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
    "{why} (_ssl.c:{line})')))"
)
DUPLICATE = 'duplicate key value violates unique constraint "{name}"\nDETAIL:  Key ({key}) already exists.\n'
UNREACHABLE = (
    'connection to server at "{host}" ({ip}), port {port} failed: {why}\n'
    "\tIs the server running on that host and accepting TCP/IP connections?\n"
)

#: Library and class, then two messages of one kind.
ALIKE = [
    (
        "requests.exceptions.ConnectionError",
        REFUSED.format(host="shop-1.example", port=443, path="/api/orders/17?page=2", address="0x7f12a4c0d510"),
        REFUSED.format(host="10.0.0.7", port=8443, path="/", address="0x7fff00aa"),
    ),
    (
        "requests.exceptions.ConnectionError",
        "('Connection aborted.', RemoteDisconnected('Remote end closed connection without response'))",
        '("Connection aborted.", RemoteDisconnected("Remote end closed connection without response"))',
    ),
    (
        "requests.exceptions.ReadTimeout",
        "HTTPSConnectionPool(host='api.bank.example', port=443): Read timed out. (read timeout=30)",
        "HTTPSConnectionPool(host='eu.bank.example', port=8443): Read timed out. (read timeout=4.5)",
    ),
    (
        "requests.exceptions.HTTPError",
        "404 Client Error: Not Found for url: https://api.example.com/v1/orders/17?expand=lines",
        "404 Client Error: Not Found for url: http://localhost:8000/v2/customers",
    ),
    (
        "requests.exceptions.SSLError",
        CERTIFICATE.format(host="a.example", why="certificate has expired", line=1006),
        CERTIFICATE.format(host="b.example", why="certificate has expired", line=997),
    ),
    (
        "django.db.utils.IntegrityError",
        DUPLICATE.format(name="shop_article_number_key", key="number)=(A-17"),
        DUPLICATE.format(name="shop_article_number_key", key="number)=(über 'alles'"),
    ),
    (
        "psycopg.errors.ForeignKeyViolation",
        'insert or update on table "shop_line" violates foreign key constraint "shop_line_order_id_fk"\n'
        'DETAIL:  Key (order_id)=(4711) is not present in table "shop_order".',
        'insert or update on table "shop_line" violates foreign key constraint "shop_line_order_id_fk"\n'
        'DETAIL:  Key (order_id)=(12) is not present in table "shop_order".\nCONTEXT:  SQL statement "SELECT 1"',
    ),
    (
        "psycopg.errors.DeadlockDetected",
        "deadlock detected\nDETAIL:  Process 4711 waits for ShareLock on transaction 91; blocked by process 4712.\n"
        "HINT:  See server log for query details.\n"
        'CONTEXT:  while updating tuple (0,17) in relation "shop_article"',
        "deadlock detected\nDETAIL:  Process 5 waits for ShareLock on transaction 7; blocked by process 6.",
    ),
    (
        "django.db.utils.OperationalError",
        UNREACHABLE.format(host="db.internal", ip="10.1.2.3", port=5432, why="Connection refused"),
        UNREACHABLE.format(host="localhost", ip="::1", port=6432, why="Connection refused"),
    ),
    (
        "django.db.utils.ProgrammingError",
        'relation "shop_voucher" does not exist\nLINE 1: SELECT "id" FROM "shop_voucher" WHERE id = 5\n     ^',
        'relation "shop_voucher" does not exist\nLINE 1: INSERT INTO "shop_voucher" VALUES (1)\n          ^',
    ),
    (
        "django.db.utils.DataError",
        'invalid input syntax for type integer: "seven"\nLINE 1: ...',
        'invalid input syntax for type integer: "12 a"',
    ),
    (
        "sqlite3.IntegrityError",
        "UNIQUE constraint failed: shop_article.number",
        "UNIQUE constraint failed: shop_article.number",
    ),
    (
        "shop.models.Article.DoesNotExist",
        "Article matching query does not exist.",
        "Article matching query does not exist.",
    ),
    (
        "shop.models.Article.MultipleObjectsReturned",
        "get() returned more than one Article -- it returned 2!",
        "get() returned more than one Article -- it returned 17!",
    ),
    (
        "django.core.exceptions.ValidationError",
        str(ValidationError("“a1” is not a valid UUID.")),
        str(ValidationError(["“b2” is not a valid UUID.", "“c3” is not a valid UUID."])),
    ),
    (
        "django.core.exceptions.ValidationError",
        str(ValidationError({"price": ["Ensure this value is greater than or equal to 0."]})),
        str(ValidationError({"price": ["Ensure this value is greater than or equal to 1,000."]})),
    ),
    (
        "json.decoder.JSONDecodeError",
        "Expecting value: line 1 column 1 (char 0)",
        "Expecting value: line 17 column 3 (char 420)",
    ),
    (
        "ssl.SSLCertVerificationError",
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: Hostname mismatch, certificate is not valid for "
        "'mail.example.com'. (_ssl.c:1006)",
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: Hostname mismatch, certificate is not valid for "
        "'192.168.0.9'. (_ssl.c:997)",
    ),
    (
        "smtplib.SMTPRecipientsRefused",
        str(smtplib.SMTPRecipientsRefused({"anna@example.com": (550, b"5.1.1 User unknown")})),
        str(smtplib.SMTPRecipientsRefused({"bert@mail.test": (550, b"5.1.10 User unknown")})),
    ),
    (
        "smtplib.SMTPAuthenticationError",
        str(smtplib.SMTPAuthenticationError(535, b"5.7.8 Authentication credentials invalid")),
        str(smtplib.SMTPAuthenticationError(534, b"5.7.9 Authentication credentials invalid")),
    ),
    (
        "builtins.FileNotFoundError",
        str(FileNotFoundError(2, os.strerror(2), "/srv/import/2026-11-27/prices.csv")),
        str(FileNotFoundError(2, os.strerror(2), "O'Brien's list.xlsx")),
    ),
    (
        "builtins.PermissionError",
        "[Errno 13] Permission denied: '/data/a'",
        "[Errno 13] Permission denied: 'C:\\\\data\\\\b'",
    ),
    ("builtins.ConnectionRefusedError", "[Errno 111] Connection refused", "[Errno 61] Connection refused"),
    (
        "redis.exceptions.ConnectionError",
        "Error 111 connecting to redis-1.internal:6379. Connection refused.",
        "Error 111 connecting to localhost:6380. Connection refused.",
    ),
    ("builtins.KeyError", str(KeyError("article-17")), str(KeyError("it's"))),
    (
        "builtins.ValueError",
        "time data '27/11/2026' does not match format '%Y-%m-%d'",
        "time data 'tomorrow' does not match format '%d.%m.'",
    ),
    (
        "builtins.TypeError",
        "cannot pickle <Session object at 0x7f0c1b2a3d40>",
        "cannot pickle <Session object at 0x7fffe1>",
    ),
    ("shop.NotDue", "due on 2026-11-27T10:00:00+00:00", "due on Fri, 27 Nov 2026 09:30:00 GMT"),
    ("shop.Missing", "report-2026-11.pdf is missing", "summary.pdf is missing"),
    ("shop.Missing", "no job 9f86d081884c7d65 at node-7:9000", "no job 5E884898DA280471 at worker-12.lan:9001"),
    ("shop.Missing", "charge ch_3OqX12aB was refunded", "charge ch_1AbC99zZ was refunded"),
    ("shop.Missing", "mail to anna@example.com via [2001:db8::1]:25", "mail to bert@x.test via 10.0.0.1:25"),
]

#: Pairs that are of different kinds: class and message of each.
APART = [
    (
        ("requests.exceptions.ConnectionError", REFUSED.format(host="a", port=1, path="/", address="0x1")),
        ("requests.exceptions.ConnectionError", UNKNOWN_HOST.format(host="a", port=1, path="/", address="0x1")),
    ),
    (
        ("requests.exceptions.SSLError", CERTIFICATE.format(host="a", why="certificate has expired", line=1)),
        ("requests.exceptions.SSLError", CERTIFICATE.format(host="a", why="self-signed certificate", line=1)),
    ),
    (
        ("requests.exceptions.HTTPError", "404 Client Error: Not Found for url: https://a.example/"),
        ("requests.exceptions.HTTPError", "401 Client Error: Unauthorized for url: https://a.example/"),
    ),
    (
        ("django.db.utils.IntegrityError", DUPLICATE.format(name="shop_article_number_key", key="number)=(1")),
        ("django.db.utils.IntegrityError", DUPLICATE.format(name="shop_article_ean_key", key="ean)=(1")),
    ),
    (
        ("django.db.utils.OperationalError", UNREACHABLE.format(host="a", ip="::1", port=1, why="Connection refused")),
        (
            "django.db.utils.OperationalError",
            UNREACHABLE.format(host="a", ip="::1", port=1, why="Connection timed out"),
        ),
    ),
    (
        ("sqlite3.IntegrityError", "UNIQUE constraint failed: shop_article.number"),
        ("sqlite3.IntegrityError", "UNIQUE constraint failed: shop_article.de"),
    ),
    (
        ("sqlite3.IntegrityError", "NOT NULL constraint failed: shop_article.number"),
        ("sqlite3.IntegrityError", "UNIQUE constraint failed: shop_article.number"),
    ),
    (("sqlite3.OperationalError", "database is locked"), ("sqlite3.OperationalError", "disk I/O error")),
    (
        ("shop.models.Article.DoesNotExist", "Article matching query does not exist."),
        ("shop.models.Order.DoesNotExist", "Order matching query does not exist."),
    ),
    (
        ("django.core.exceptions.ValidationError", str(ValidationError("“a1” is not a valid UUID."))),
        ("django.core.exceptions.ValidationError", str(ValidationError("“a1” value must be a decimal number."))),
    ),
    (
        ("django.core.exceptions.ValidationError", str(ValidationError({"price": ["This field is required."]}))),
        ("django.core.exceptions.ValidationError", str(ValidationError({"name": ["This field is required."]}))),
    ),
    (
        ("json.decoder.JSONDecodeError", "Expecting value: line 1 column 1 (char 0)"),
        ("json.decoder.JSONDecodeError", "Extra data: line 1 column 1 (char 0)"),
    ),
    (
        ("smtplib.SMTPDataError", str(smtplib.SMTPDataError(552, b"5.2.2 Mailbox full"))),
        ("smtplib.SMTPDataError", str(smtplib.SMTPDataError(554, b"5.7.1 Message looks like spam"))),
    ),
    (("builtins.OSError", str(OSError(28, os.strerror(28)))), ("builtins.OSError", str(OSError(24, os.strerror(24))))),
    (("builtins.ConnectionResetError", "[Errno 104] x"), ("builtins.BrokenPipeError", "[Errno 32] x")),
    (("builtins.ValueError", "no price"), ("builtins.TypeError", "no price")),
]


@pytest.mark.parametrize(("kind", "one", "other"), ALIKE)
def test_errors_that_differ_only_in_their_data_are_of_one_kind(kind, one, other):
    pattern = message_pattern(kind, one, 255)
    assert pattern == message_pattern(kind, other, 255)
    # There is something left to read.
    assert len(pattern) > len(kind.rpartition(".")[2]) + 2


@pytest.mark.parametrize(("one", "other"), APART)
def test_errors_with_other_words_are_of_other_kinds(one, other):
    assert message_pattern(*one, 255) != message_pattern(*other, 255)


def test_what_the_libraries_raise_here_is_as_above(tmp_path):
    """The messages of the table are those of the installed versions, where they need no network."""
    with pytest.raises(json.JSONDecodeError) as no_json:
        json.loads("")
    assert _pattern(no_json) == message_pattern("json.decoder.JSONDecodeError", ALIKE[16][1], 255)
    with pytest.raises(FileNotFoundError) as no_file:
        (tmp_path / "prices.csv").read_text()
    assert _pattern(no_file) == "FileNotFoundError: [Errno …] No such file or directory: …"
    table = sqlite3.connect(":memory:")
    table.execute("CREATE TABLE shop_article (number UNIQUE)")
    table.execute("INSERT INTO shop_article VALUES (1)")
    with pytest.raises(sqlite3.IntegrityError) as twice:
        table.execute("INSERT INTO shop_article VALUES (1)")
    table.close()
    assert _pattern(twice) == "IntegrityError: UNIQUE constraint failed: shop_article.number"
    with pytest.raises(ssl.SSLError) as no_key:
        ssl.create_default_context().load_verify_locations(
            cadata="-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----"
        )
    assert "_ssl.c:" not in _pattern(no_key)


def _pattern(raised) -> str:
    error = raised.value
    return message_pattern(f"{type(error).__module__}.{type(error).__qualname__}", str(error), 255)
