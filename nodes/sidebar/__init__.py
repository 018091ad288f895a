"""What the sidebar's tab asks of the server."""

from . import datasets  # noqa: F401
