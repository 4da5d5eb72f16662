"""The ``ctxwatch`` command."""
