"""The subcommands of ``manage.py pcrud``: each is a module of its own with a class in ``SUBCOMMANDS``."""
