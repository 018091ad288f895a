"""What the tab in the sidebar asks of the server."""

from . import runs  # noqa: F401
