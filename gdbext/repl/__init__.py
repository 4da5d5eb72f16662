"""The standalone REPL: GDB with the extension, a guest or a recording, and one prompt over both."""
