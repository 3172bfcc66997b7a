"""URLs of servers as they may be shown: without passwords, wherever in the URL they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote, unquote_plus

HIDDEN = "***"
# Parameters whose values may be shown, of libpq and SQLite. All others are hidden: of a list of secret ones
# the next version of a driver would have one more (password, sslpassword, passfile, scram_client_key, ...).
SHOWN = frozenset(
    "host hostaddr port dbname user service connect_timeout client_encoding application_name "
    "fallback_application_name keepalives keepalives_idle keepalives_interval keepalives_count "
    "tcp_user_timeout replication gssencmode sslmode sslnegotiation sslcompression sslrootcert sslcrl sslsni "
    "requirepeer require_auth channel_binding krbsrvname ssl_min_protocol_version ssl_max_protocol_version "
    "target_session_attrs load_balance_hosts timeout mode cache uri immutable nolock vfs".split()
)
_PLAIN = re.compile(r"[\w./+~,:-]*")  # a value that holds no second parameter
_LEAST = 4  # characters of a hidden parameter that are looked for in messages: "1" would be everywhere

_Parts = tuple[str, str | None, str | None, str, str]


def _split(url: str) -> _Parts:
    """Scheme, user, password, what follows them up to the query, and the query; it need be no sound URL."""
    scheme, found, rest = url.partition("://")
    if not found:
        return "", None, None, "", url
    base, _, query = rest.partition("?")
    if base.startswith("/"):  # a file, whose path may have any character
        return scheme, None, None, base, query
    if "@" in query:  # a password with a question mark, or a parameter with an @
        return scheme, None, rest, "", ""
    account, found, place = base.rpartition("@")
    user, colon, password = account.partition(":")
    return scheme, user if found else None, password if colon else None, place, query


def shown_url(url: str, *, user: bool = True) -> str:
    """The URL without what may be secret: the password, an unknown parameter, what cannot be told apart.

    Args:
        url: As somebody gave it, perhaps malformed.
        user: Whether the name before the password may be shown.
    """
    scheme, name, password, place, query = _split(url)
    if not scheme:
        return HIDDEN if re.search("[@=]", url) else url
    if name is None and password is not None:
        return f"{scheme}://{HIDDEN}"
    account = "" if name is None else f"{name if user else HIDDEN}@"
    if password is not None:
        account = f"{account[:-1]}:{HIDDEN}@"
    shown = "&".join(_shown_parameter(part) for part in query.split("&")) if query else ""
    return f"{scheme}://{account}{_shown_place(place)}" + (f"?{shown}" if query else "")


def _shown_place(place: str) -> str:
    """Host, port and path. What is no number in the place of the port may begin a password without its @."""
    if place.startswith("/"):
        return place
    host, _, path = place.partition("/")
    bracketed, _, port = host.rpartition("]")  # an IPv6 address has colons of its own
    name, colon, port = port.partition(":")
    if colon and not port.isdecimal():
        return f"{bracketed}]{name}:{HIDDEN}" if bracketed else f"{name}:{HIDDEN}"
    return host + ("/" if "/" in place else "") + (HIDDEN if re.search("[=;#]", path) else path)


def _shown_parameter(part: str) -> str:
    name, _, value = part.partition("=")
    if name.casefold() in SHOWN and _PLAIN.fullmatch(value):
        return part
    return f"{name}={HIDDEN}" if "=" in part else HIDDEN


def _secrets(url: str) -> Iterator[str]:
    """What `shown_url` hides, as it is written and as it is meant."""
    scheme, _, password, place, query = _split(url)
    if scheme:
        if password:
            yield from (password, unquote(password))
            # Drivers may take it apart elsewhere: `u:@secret@host` has a host `secret@host` to some.
            yield from (piece for piece in re.split("[?&=:/@]", password) if len(piece) >= _LEAST)
        if _shown_place(place) != place:
            yield from re.split("[:/]", place)[1:]
        for part in query.split("&"):
            _, _, value = part.partition("=")
            if _shown_parameter(part) != part and len(value) >= _LEAST:
                yield from (value, unquote_plus(value))


def without_secrets(message: str, url: str) -> str:
    """What somebody else's code says of this URL, without what `shown_url` hides."""
    for secret in sorted(set(_secrets(url)) - {""}, key=len, reverse=True):
        message = message.replace(secret, HIDDEN)
    return message
