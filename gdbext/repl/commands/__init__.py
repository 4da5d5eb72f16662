"""One module per command of the REPL; each holds one ``COMMAND``."""
