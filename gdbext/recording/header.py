"""What a recording says of itself before its first event: the header, kept as JSON in the schema's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final

from gdbext.errors import RecordingError
from gdbext.events.row import SCHEMA_VERSION
from gdbext.rules.fixups import Fixups
from gdbext.rules.policy import Calls, Implication, Layout, Policy, Tracked

KEY: Final = "ctxwatch"
"""Metadata key of the header."""
FORMAT: Final = 2
"""Version of everything about a recording but its rows, whose version is SCHEMA_VERSION."""


@dataclass(frozen=True, slots=True)
class Header:
    """guest, source: as in the report.  qemu: version, accel, plugin_api.  identity: what else tells the guest apart
    (kernel, its digest, command line).  profile: its name, "" for none.  policy: what the rules ran with.  codes: the
    codes that were reported, None for all.  started: seconds since 1970, UTC.
    """

    guest: str
    source: str
    qemu: Mapping[str, Any] | None = None
    identity: Mapping[str, str] = field(default_factory=dict)
    profile: str = ""
    policy: Policy = field(default_factory=Policy)
    codes: frozenset[str] | None = None
    started: float = 0.0

    def metadata(self) -> dict[str, str]:
        """The schema's metadata."""
        document = {
            "format": FORMAT,
            "rows": SCHEMA_VERSION,
            "guest": self.guest,
            "source": self.source,
            "qemu": dict(self.qemu) if self.qemu is not None else None,
            "identity": dict(self.identity),
            "profile": self.profile,
            "policy": _policy_document(self.policy),
            "codes": sorted(self.codes) if self.codes is not None else None,
            "started": self.started,
        }
        return {KEY: json.dumps(document)}


def parse(metadata: Mapping[bytes, bytes] | None) -> Header:
    """The header in a schema's metadata; raises RecordingError where it is absent, another version or damaged."""
    raw = (metadata or {}).get(KEY.encode())
    if raw is None:
        raise RecordingError("it is Arrow or Parquet data, but no recording of ctxwatch")
    try:
        document = json.loads(raw)
        for name, ours in (("format", FORMAT), ("rows", SCHEMA_VERSION)):
            version = int(document[name])
            if version != ours:
                than = "newer" if version > ours else "older"
                raise RecordingError(
                    f"its {name} version is {version}, {than} than {ours}, which this ctxwatch reads",
                    todo="replay it with the ctxwatch that made it",
                )
        return Header(
            guest=str(document["guest"]),
            source=str(document["source"]),
            qemu=document["qemu"],
            identity={str(key): str(value) for key, value in document["identity"].items()},
            profile=str(document["profile"]),
            policy=_policy(document["policy"]),
            codes=frozenset(document["codes"]) if document["codes"] is not None else None,
            started=float(document["started"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordingError("its header is damaged", f"{type(error).__name__}: {error}") from error


_CALLS: Final = tuple(field.name for field in fields(Policy) if field.default == Calls())
"""What a policy says of system calls."""


def _policy_document(policy: Policy) -> dict[str, Any]:
    document = asdict(replace(policy, fixups=None))
    document["syscall_returns"] = sorted(policy.syscall_returns)
    document["fixups"] = sorted(policy.fixups.pairs) if policy.fixups is not None else None
    return document


def _policy(document: dict[str, Any]) -> Policy:
    given = dict(document)
    layout, writers, fixups = given["layout"], given["writers"], given["fixups"]
    given |= {
        "syscall_returns": frozenset(given["syscall_returns"]),
        "fixups": Fixups(frozenset((int(at), int(to)) for at, to in fixups)) if fixups is not None else None,
        **{name: _calls(given.get(name, {})) for name in _CALLS},
        "tracked": tuple(_tracked(table) for table in given["tracked"]),
        "layout": Layout(**layout) if layout is not None else None,
        "writers": tuple((int(start), int(end)) for start, end in writers) if writers is not None else None,
    }
    return Policy(**given)


def _calls(table: dict[str, list[int]]) -> Calls:
    return Calls(*(tuple(int(number) for number in table.get(name, ())) for name in ("native", "ia32")))


def _tracked(table: dict[str, Any]) -> Tracked:
    return Tracked(**(table | {"implications": tuple(Implication(**rule) for rule in table["implications"])}))
