"""Keeps passwords, tokens and control characters out of logs, records and terminals."""

import re
from typing import Any, TypeVar

# Every repetition is bounded, so that the time to search a line grows only in proportion to its length.
_PART = r"[\w.-]{0,64}"
_SECRET_NAMES = rf"{_PART}(?:password|passwd|pwd|secret|token|api[_-]?key|signature|credential){_PART}|sig"
# A password that was not URL-encoded may contain "/", "?", "#" and quotes. Digits after a colon are a port.
_RAW_PASSWORD = r"[^:/?#\[\s'\"@]{0,256}:(?!\d+(?:[/?#]|$)|\d*['\",;)\]}])(?:[^\s'\"]|['\"](?![,:;)\]}\s])){0,4096}"
_USER = re.compile(rf"(?P<scheme>[A-Za-z][\w+.-]{{0,64}})://(?P<user>[^/?#\s'\"]{{0,4096}}|{_RAW_PASSWORD})@")
_QUERY = re.compile(rf"(?P<name>[?&;](?:{_SECRET_NAMES})=)(?P<value>[^&;#\s'\"]+)", re.IGNORECASE)
_STYLE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")  # colours, and moves of the cursor
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
Value = TypeVar("Value")


def redacted(value: Value) -> Value:
    """Remove secrets from addresses in a text, or in a structure of dictionaries and lists.

    User names and passwords before a host are removed; values of parameters such as ``password`` become ``***``.
    """
    cleaned: Any = value
    if isinstance(value, str):
        cleaned = _USER.sub(r"\g<scheme>://", value) if "://" in value else value
        cleaned = _QUERY.sub(r"\g<name>***", cleaned) if "=" in cleaned else cleaned
    elif isinstance(value, dict):
        cleaned = {redacted(key): redacted(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        cleaned = type(value)(redacted(item) for item in value)
    return cleaned


def holds_secret(text: str) -> bool:
    """Return whether an address in the text contains a password or a token."""
    users = [(found["scheme"], found["user"]) for found in _USER.finditer(text)]
    named = any(user.partition(":")[2] or (user and scheme.startswith("http")) for scheme, user in users)
    return named or ("://" in text and _QUERY.search(text) is not None)


def visible(text: str) -> str:
    """Remove colours and cursor movements from a text, and escape other control characters except tabs and line ends.

    Such a text cannot control the terminal.
    """
    return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", _STYLE.sub("", text))
