"""One module per command under ``ctx``; each holds one ``COMMAND``."""
