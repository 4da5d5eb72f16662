"""What GDB sources: ``source gdbext/ctxwatch.py`` adds the commands under ``ctx`` and changes nothing else.

GDB embeds a Python of its own, which knows no virtual environment; so the packages ctxwatch needs are looked for
here: in what GDB's Python has already, in the virtual environment named by ``CTXWATCH_VENV``, and in the ``.venv`` of
the checkout that this file belongs to. They are put behind everything else on the path: what another extension has
loaded stays as it is.
"""

import importlib.util
import os
import sys


def _load() -> None:
    import gdb

    def have(name: str) -> bool:
        return name in sys.modules or importlib.util.find_spec(name) is not None

    def fail(what: str) -> None:
        gdb.write(f"ctxwatch: {what}\n", gdb.STDERR)

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if sys.version_info < (3, 11):  # noqa: UP036 (the package cannot choose GDB's Python)
        return fail(f"GDB embeds Python {version} and ctxwatch needs 3.11 or later; use a GDB built with it")
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    if not have("gdbext"):
        sys.path.append(root)
    needed = ("numpy", "capstone")
    named = os.environ.get("CTXWATCH_VENV")
    places = [named] if named else [os.path.join(root, ".venv")]
    for place in places:
        if all(map(have, needed)):
            break
        site = os.path.join(place, "lib", f"python{version}", "site-packages")
        if os.path.isdir(site) and site not in sys.path:
            sys.path.append(site)
            importlib.invalidate_caches()
    missing = [name for name in needed if not have(name)]
    if missing:
        bootstrap = os.path.join(root, "scripts", "bootstrap")
        how = f"run {bootstrap}" if os.path.exists(bootstrap) else "python -m venv and pip install ctxwatch"
        return fail(
            f"the Python {version} in this GDB has no {' and no '.join(missing)} (looked in {', '.join(places)}); "
            f"{how}, or set CTXWATCH_VENV to a virtual environment of Python {version}"
        )
    # NumPy's linear algebra starts threads when it is loaded, and GDB's signals must not land in one of them.
    limit = "OPENBLAS_NUM_THREADS"
    unset = limit not in os.environ
    if unset:
        os.environ[limit] = "1"
    try:
        from gdbext.gdb.register import register
    except ImportError as error:
        return fail(f"{error}; the packages in {', '.join(places)} do not fit the Python {version} in this GDB")
    finally:
        if unset:
            del os.environ[limit]
    return register()


_load()
del _load
