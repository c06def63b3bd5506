"""Passwords and tokens in addresses: they may be used, but are never printed, recorded or kept."""

import re
from typing import Any, TypeVar

_SECRET_NAMES = r"[\w.-]*(?:password|passwd|pwd|secret|token|api[_-]?key|signature|credential)[\w.-]*|sig"
_USER = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*)://(?P<user>[^/?#\s'\"]*)@")
_QUERY = re.compile(rf"(?P<name>[?&;](?:{_SECRET_NAMES})=)(?P<value>[^&;#\s'\"]+)", re.IGNORECASE)
Value = TypeVar("Value")


def redacted(value: Value) -> Value:
    """Return a text, or a structure of dictionaries and lists, without what addresses in it hold of secrets.

    User names and passwords before a host are left out; values of parameters such as ``password`` become ``***``.
    """
    cleaned: Any = value
    if isinstance(value, str):
        cleaned = _QUERY.sub(r"\g<name>***", _USER.sub(r"\g<scheme>://", value))
    elif isinstance(value, dict):
        cleaned = {redacted(key): redacted(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        cleaned = type(value)(redacted(item) for item in value)
    return cleaned


def holds_secret(text: str) -> bool:
    """Whether an address in the text holds a password or a token."""
    users = [(found["scheme"], found["user"]) for found in _USER.finditer(text)]
    named = any(user.partition(":")[2] or (user and scheme.startswith("http")) for scheme, user in users)
    return named or ("://" in text and _QUERY.search(text) is not None)
