"""The user's settings (``repl.toml`` in the user's configuration directory) and where history is kept."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gdbext.errors import UsageError

KEYS: Final = ("emacs", "vi")


@dataclass(frozen=True, slots=True)
class Config:
    """``keys``: emacs or vi; ``gdbinit``: whether the REPL's GDB reads the user's init files; ``suggest``: whether
    what was typed before is suggested while typing."""

    keys: str = "emacs"
    gdbinit: bool = False
    suggest: bool = True


def config_path() -> Path:
    """Where the settings are read from."""
    import platformdirs

    return platformdirs.user_config_path("ctxwatch") / "repl.toml"


def history_path() -> Path:
    """Where the history is kept."""
    import platformdirs

    return platformdirs.user_state_path("ctxwatch") / "history"


def load(path: Path | None = None) -> Config:
    """The settings, the defaults where there is no file. Raises UsageError naming file, key and what is allowed."""
    path = path or config_path()
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return Config()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read {path}", str(error)) from error
    defaults = Config()
    for key, value in table.items():
        if key not in Config.__dataclass_fields__:
            raise UsageError(
                f"{path}: unknown key {key}", todo=f"known keys are {', '.join(Config.__dataclass_fields__)}"
            )
        if type(value) is not type(getattr(defaults, key)):
            wanted = "true or false" if isinstance(getattr(defaults, key), bool) else "a string"
            raise UsageError(f"{path}: {key} is {value!r}", todo=f"give it {wanted}")
    if table.get("keys", "emacs") not in KEYS:
        raise UsageError(f"{path}: keys is {table['keys']!r}", todo=f"allowed: {', '.join(KEYS)}")
    return Config(**table)
