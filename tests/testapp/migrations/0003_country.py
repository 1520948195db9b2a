from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("testapp", "0002_shelf")]

    operations = [
        migrations.CreateModel(
            name="Country",
            fields=[
                ("name", models.CharField(max_length=60, primary_key=True, serialize=False)),
            ],
        ),
    ]
