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


class Host(NamedTuple):
    """A server: its name, its address or the folder of its socket; None is the driver's choice."""

    host: str | None
    port: int | None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in (self.host or "") else self.host or "local"
        return host if self.port is None else f"{host}:{self.port}"


class Dsn(NamedTuple):
    """What a URL says. `url` is the part that the driver reads itself."""

    url: str
    hosts: tuple[Host, ...]
    database: str
    options: dict[str, str]

    def __repr__(self) -> str:
        return f"Dsn({self.name})"

    @property
    def name(self) -> str:
        """What messages call the database: its place, without user and password."""
        return f"PostgreSQL {','.join(map(str, self.hosts))}/{self.database}"

    @property
    def connect_seconds(self) -> int | None:
        """Seconds to wait for each host, where the URL says so."""
        found = self.options.get("connect_timeout")
        return None if found is None else int(found)

    def attempts(self) -> list[dict[str, Any]]:
        """The arguments by which the driver connects: one attempt for each host, in their order."""
        # Of several hosts only one takes postings, so standbys are passed over unless the URL says otherwise.
        find_primary = len(self.hosts) > 1 and "target_session_attrs" not in self.options
        wanted = {"target_session_attrs": "primary"} if find_primary else {}
        return [{**host._asdict(), **wanted} for host in self.hosts]


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
    kept = "&".join([f"{name}={quote(value)}" for name, value in options.items() if name not in _OURS])
    plain = f"postgresql://{found['user'] or ''}/{found['database']}"
    return Dsn(f"{plain}?{kept}" if kept else plain, hosts, unquote(found["database"]), options)


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


def _hosts(text: str, options: dict[str, str]) -> tuple[Host, ...]:
    found = [(host.strip("[]"), port) for host, port in _HOST_AND_PORT.findall(text)]
    hosts = [unquote(host) for host, _ in found] or options.get("host", "").split(",")
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
    return tuple([Host(host or None, int(port) if port else None) for host, port in zip(hosts, ports, strict=True)])
