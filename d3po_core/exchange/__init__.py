"""Others' formats of preferences, read and written: one module a format."""
