"""The URL of a PostgreSQL database, as its users write it: several hosts, and the options that the driver supports.

Every other option is refused by name, so that none is ignored. Messages never show a value: it may be a password.
Pure functions; the connections are made elsewhere.
"""

import re
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, quote, unquote

_HOST: Final = r"(?:[\w.\-%]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?"
# Special characters must be written as %40, or a part of the password would be taken for something that is shown.
_URL: Final = re.compile(
    r"(?:postgres|postgresql|postgresql\+asyncpg)://"
    r"(?P<user>(?P<name>[^:@/?#\s]+)(?P<password>:[^:@/?#\s]*)?@)?"
    rf"(?P<hosts>(?:{_HOST}(?:,{_HOST})*)?)/(?P<database>[^:@/?#\s]+)(?:\?(?P<options>[^@#\s]*))?"
)
_HOST_AND_PORT: Final = re.compile(r"(\[[^\]]+\]|[^:,]+)(?::(\d+))?")
_PORTS: Final = re.compile(r"\d{1,5}(?:,\d{1,5})*")
_WORD: Final = re.compile("[a-z_]{1,40}")
_TLS_VERSIONS: Final = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
_CHOICES: Final = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "ssl_min_protocol_version": _TLS_VERSIONS,
    "ssl_max_protocol_version": _TLS_VERSIONS,
    "target_session_attrs": ("any", "primary", "read-write"),  # a ledger that cannot be written serves nothing
    "gsslib": ("gssapi", "sspi"),
}
_TEXTS: Final = (
    *("host", "port", "user", "password", "passfile", "service", "application_name", "options", "connect_timeout"),
    *("sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "krbsrvname"),
)
_OURS: Final = ("host", "port", "connect_timeout")
"""Options that become arguments, because the driver does not take them from a URL as libpq does."""


class Dsn(NamedTuple):
    """What a URL says.

    `name`: what messages call the database, without user and password. `url`: the part that the driver reads itself.
    `attempts`: its other arguments, for each host in order. `connect_seconds`: to wait for each host.
    """

    name: str
    url: str
    attempts: list[dict[str, Any]]
    connect_seconds: int | None
    options: dict[str, str]

    def __repr__(self) -> str:
        return f"Dsn({self.name})"


def parse(url: str) -> Dsn:
    """Read a URL. Raises ValueError with what is wrong, in words that follow the name of the setting."""
    found = _URL.fullmatch(url)
    if found is None:
        example = "postgresql://user:password@host:5432/credits"
        raise ValueError(f"must be a URL like {example} (special characters of the password written as %40)")
    options = _options(found["options"] or "")
    for name, said in (("user", found["name"]), ("password", found["password"]), ("host", found["hosts"])):
        if said and name in options:
            raise ValueError(f"says the {name} twice")
    hosts = _hosts(found["hosts"], options)
    # Of several hosts only one takes postings, so standbys are passed over unless the URL says otherwise.
    find_primary = len(hosts) > 1 and "target_session_attrs" not in options
    wanted = {"target_session_attrs": "primary"} if find_primary else {}
    place = unquote(found["hosts"]) or options.get("host", "local")
    port = f":{options['port']}" if "port" in options else ""
    kept = "&".join([f"{name}={quote(value)}" for name, value in options.items() if name not in _OURS])
    return Dsn(
        name=f"PostgreSQL {place}{port}/{unquote(found['database'])}",
        url=f"postgresql://{found['user'] or ''}/{found['database']}{'?' if kept else ''}{kept}",
        attempts=[{"host": host, "port": port, **wanted} for host, port in hosts],
        connect_seconds=int(options["connect_timeout"]) if "connect_timeout" in options else None,
        options=options,
    )


def masked(url: str) -> str:
    """A URL that may be shown: its password, and the value of each option that holds one, are replaced."""
    without = re.sub(r"(//[^:/?#@]*):[^@]*@", r"\1:***@", url)
    return re.sub(r"([?&][^=&]*pass[^=&]*)=[^&]*", r"\1=masked", without, flags=re.IGNORECASE)


def _options(text: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text))
    except ValueError:
        raise ValueError("has an option that is not written as name=value") from None
    options: dict[str, str] = {}
    for name, value in pairs:
        if name not in _CHOICES and name not in _TEXTS:
            shown = name if _WORD.fullmatch(name) else "whose name is no word"
            advice = "settings of the server are written like options=-c%20search_path=credits"
            raise ValueError(f"has the option {shown}, which is not supported ({advice})")
        if name in options:
            raise ValueError(f"says the option {name} twice")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise ValueError(f"has the option {name}, which must be one of {', '.join(_CHOICES[name])}")
        options[name] = value
    if not re.fullmatch("[1-9][0-9]{0,3}", options.get("connect_timeout", "1")):
        raise ValueError("has the option connect_timeout, which must be whole seconds from 1 to 9999")
    if not _PORTS.fullmatch(options.get("port", "1")):
        raise ValueError("has the option port, which must be the number of a port")
    return options


def _hosts(text: str, options: dict[str, str]) -> list[tuple[str | None, int | None]]:
    """Name (or address, or folder of a socket) and port of each host; None is the driver's choice."""
    found = _HOST_AND_PORT.findall(text)
    hosts = [unquote(host.strip("[]")) for host, _ in found] or options.get("host", "").split(",")
    ports = [port for _, port in found] or [""]
    if "port" in options:
        if any(ports):
            raise ValueError("says the port twice")
        ports = options["port"].split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):
        raise ValueError("must have one port for all hosts, or one for each")
    if any(int(port or 1) > 65_535 for port in ports):
        raise ValueError("has a port above 65535")
    return [(host or None, int(port) if port else None) for host, port in zip(hosts, ports, strict=True)]
