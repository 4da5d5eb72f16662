"""Sourced by a GDB: prints the commands as docs/gdb.md lists them."""

from gdbext.gdb import declare

print("| command | what it does |\n|---|---|")
for command in declare.discover():
    usage = " ".join(command.usage().split()).replace("|", "\\|")
    print(f"| `{usage}` | {command.summary} |")
