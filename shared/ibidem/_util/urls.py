"""Redaction of server URLs: passwords are hidden, wherever in the URL they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote, unquote_plus

HIDDEN = "***"
# Parameters of libpq and SQLite whose values may be shown. All others are hidden: a list of secret ones would
# be outdated by the next version of a driver (password, sslpassword, passfile, scram_client_key, ...).
SHOWN = frozenset(
    "host hostaddr port dbname user service connect_timeout client_encoding application_name "
    "fallback_application_name keepalives keepalives_idle keepalives_interval keepalives_count "
    "tcp_user_timeout replication gssencmode sslmode sslnegotiation sslcompression sslrootcert sslcrl sslsni "
    "requirepeer require_auth channel_binding krbsrvname ssl_min_protocol_version ssl_max_protocol_version "
    "target_session_attrs load_balance_hosts timeout mode cache uri immutable nolock vfs".split()
)
_PLAIN = re.compile(r"[\w./+~,:-]*")  # a value without a second parameter
_MIN_LENGTH = 4  # shorter hidden values are not searched for in messages: "1" would be everywhere

_Parts = tuple[str, str | None, str | None, str, str]


def _split(url: str) -> _Parts:
    """Split into scheme, user, password, location and query; the URL may be malformed."""
    scheme, found, rest = url.partition("://")
    if not found:
        return "", None, None, "", url
    base, _, query = rest.partition("?")
    if base.startswith("/"):  # a file, whose path may have any character
        return scheme, None, None, base, query
    if "@" in query:  # a password with a question mark, or a parameter with an @
        return scheme, None, rest, "", ""
    account, found, location = base.rpartition("@")
    user, colon, password = account.partition(":")
    return scheme, user if found else None, password if colon else None, location, query


def redact_url(url: str, *, user: bool = True) -> str:
    """Hide what may be secret in a URL: the password, unknown parameters, ambiguous parts.

    Args:
        url: Perhaps malformed.
        user: Whether the user name may be shown.
    """
    scheme, name, password, location, query = _split(url)
    if not scheme:
        return HIDDEN if re.search("[@=]", url) else url
    if name is None and password is not None:
        return f"{scheme}://{HIDDEN}"
    account = "" if name is None else f"{name if user else HIDDEN}@"
    if password is not None:
        account = f"{account[:-1]}:{HIDDEN}@"
    shown = "&".join(_redact_parameter(part) for part in query.split("&")) if query else ""
    return f"{scheme}://{account}{_redact_location(location)}" + (f"?{shown}" if query else "")


def _redact_location(location: str) -> str:
    """Redact host, port and path. A port that is not a number may begin a password without its @."""
    if location.startswith("/"):
        return location
    host, _, path = location.partition("/")
    bracketed, _, port = host.rpartition("]")  # an IPv6 address has colons of its own
    name, colon, port = port.partition(":")
    if colon and not port.isdecimal():
        return f"{bracketed}]{name}:{HIDDEN}" if bracketed else f"{name}:{HIDDEN}"
    return host + ("/" if "/" in location else "") + (HIDDEN if re.search("[=;#]", path) else path)


def _redact_parameter(part: str) -> str:
    name, _, value = part.partition("=")
    if name.casefold() in SHOWN and _PLAIN.fullmatch(value):
        return part
    return f"{name}={HIDDEN}" if "=" in part else HIDDEN


def _secrets(url: str) -> Iterator[str]:
    """List what `redact_url` hides, quoted and unquoted."""
    scheme, _, password, location, query = _split(url)
    if scheme:
        if password:
            yield from (password, unquote(password))
            # Drivers may take it apart elsewhere: `u:@secret@host` has a host `secret@host` to some.
            yield from (piece for piece in re.split("[?&=:/@]", password) if len(piece) >= _MIN_LENGTH)
        if _redact_location(location) != location:
            yield from re.split("[:/]", location)[1:]
        for part in query.split("&"):
            _, _, value = part.partition("=")
            if _redact_parameter(part) != part and len(value) >= _MIN_LENGTH:
                yield from (value, unquote_plus(value))


def redact_secrets(message: str, url: str) -> str:
    """Hide in a message of foreign code what `redact_url` hides in this URL."""
    for secret in sorted(set(_secrets(url)) - {""}, key=len, reverse=True):
        message = message.replace(secret, HIDDEN)
    return message
