"""What the tab in the sidebar asks of the server."""

from . import datasets, runs  # noqa: F401
