"""Allowed and forbidden targets of webhooks: addresses, names, ports and unusual spellings."""

import asyncio
import socket
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from credit_service.outlets import targets
from credit_service.outlets.targets import NotAllowed, Targets, is_public, parse

PUBLIC = ("93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c")


class Names:
    """A resolver that knows a few names."""

    def __init__(self, **known: tuple[str, ...]) -> None:
        self.known = known
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[Any]:
        self.asked.append(host)
        try:
            found: tuple[str, ...] = (str(ip_address(host.partition("%")[0])),)
        except ValueError:
            found = self.known.get(host.partition(".")[0], ())
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]


def rules(*networks: str, public: bool = True, **names: tuple[str, ...]) -> Targets:
    return Targets(map(ip_network, networks), public=public, resolve=Names(public=PUBLIC, **names))


@pytest.mark.parametrize("address", [*PUBLIC, "1.1.1.1", "192.0.1.1", "172.32.0.1", "2001:4860:4860::8888"])
def test_public_addresses_are_recognised(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",  # metadata at Alibaba
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",  # the host of Azure's machines
        "169.254.169.254",  # metadata nearly everywhere
        "169.254.170.2",  # credentials of a task at AWS
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",  # metadata at Oracle
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",  # IPv4-compatible
        "::ffff:93.184.215.14",  # judged as the address it stands for, and not here
        "64:ff9b::5db8:d70e",
        "64:ff9b:1::1",  # a translator of one's own
        "100::1",
        "2001::1",  # Teredo
        "2001:20::1",
        "2001:db8::1",
        "2002:7f00:1::",  # 6to4 of 127.0.0.1
        "2002:5db8:d70e::1",
        "3fff::1",
        "4000::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",  # metadata at AWS
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ],
)
async def test_special_addresses_are_refused(address: str) -> None:
    assert not is_public(ip_address(address))
    if address not in ("::ffff:93.184.215.14", "64:ff9b::5db8:d70e"):
        shown = f"[{address}]" if ":" in address else address
        for url in (f"https://{shown}/", f"https://{shown}:8443/", f"http://{shown}/"):
            with pytest.raises(NotAllowed, match=f"not go to the address {ip_address(address)} "):
                await rules().check(url)


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("::ffff:93.184.215.14", True),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::93.184.215.14", True),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b::169.254.169.254", False),
    ],
)
def test_mapped_address_is_checked_as_its_target(address: str, allowed: bool) -> None:
    if allowed:
        rules().judge(address, 443, secure=True)
    else:
        with pytest.raises(NotAllowed):
            rules().judge(address, 443, secure=True)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://public.example/", "needs a URL like"),
        ("https:///credits", "needs a URL like"),
        ("https://", "needs a URL like"),
        ("https://public.example:0/", "needs a URL like"),
        ("https://public.example:99999/", "not a URL"),
        ("https://[::1/", "not a URL"),
        ("https://user@public.example/", "no user"),
        ("https://user:password@public.example/", "no user"),
        ("https://:password@public.example/", "no user"),
        ("https://public.example/#part", "no fragment"),
        ("https://public.example/#", "no fragment"),
        ("https://127.1/", "four numbers"),
        ("https://2130706433/", "four numbers"),
        ("https://0x7f000001/", "four numbers"),
        ("https://0x7f.1/", "four numbers"),
        ("https://0177.0.0.1/", "four numbers"),
        ("https://127.0.0.1./", "four numbers"),
        ("https://127.0.0.0x1/", "four numbers"),
        ("https://example.0/", "four numbers"),
    ],
)
async def test_unusable_url_is_refused(url: str, why: str) -> None:
    with pytest.raises(NotAllowed, match=why):
        await rules().check(url)
    with pytest.raises(NotAllowed, match=why):
        parse(url)


async def test_every_address_of_a_name_is_checked() -> None:
    both = rules(split=("93.184.215.14", "10.0.0.1"), inside=("10.0.0.1",))
    await both.check("https://public.example/credits?a=b")
    for host in ("split", "inside"):
        with pytest.raises(NotAllowed, match=r"10\.0\.0\.1 \(WEBHOOK_ALLOWED_NETWORKS\)"):
            await both.check(f"https://{host}.example/")
        with pytest.raises(NotAllowed):
            await both.addresses(f"{host}.example", 443, secure=True)
    assert [address for *_, (address, _) in await both.addresses("public.example", 443, secure=True)] == [*PUBLIC]


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://public.example/", "needs https"),
        ("http://public.example:8080/", "needs https"),
        ("https://public.example:25/", "port 443, or to one from 1024"),
        ("https://public.example:80/", "port 443, or to one from 1024"),
        ("https://public.example:1023/", "port 443, or to one from 1024"),
        ("https://public.example:1024/", None),
        ("https://public.example:443/", None),
        ("https://public.example/", None),
    ],
)
async def test_public_address_needs_https_and_an_allowed_port(url: str, why: str | None) -> None:
    if why is None:
        await rules().check(url)
    else:
        with pytest.raises(NotAllowed, match=why):
            await rules().check(url)


async def test_allowed_network_has_no_further_rules() -> None:
    own = rules("10.1.0.0/16", "fd00::/8", inside=("10.1.2.3",), beside=("10.2.0.1",), split=("10.1.2.3", "10.2.0.1"))
    for url in ("http://inside.example/", "http://inside.example:25/", "http://[fd00::1]/", "https://10.1.0.9/"):
        await own.check(url)
    await own.check("https://public.example/")
    for url in ("http://beside.example/", "https://split.example/", "http://public.example/", "http://[fe80::1]/"):
        with pytest.raises(NotAllowed):
            await own.check(url)
    with pytest.raises(NotAllowed):
        rules("10.1.0.0/16", public=False).judge("93.184.215.14", 443, secure=True)
    rules("127.0.0.0/8").judge("::ffff:127.0.0.1", 80, secure=False)


async def test_unresolved_name_is_checked_later(monkeypatch: pytest.MonkeyPatch) -> None:
    await rules().check("https://unknown.example/")
    with pytest.raises(OSError, match="not known"):
        await rules().addresses("unknown.example", 443, secure=True)

    async def silent(host: str, port: int) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(targets, "SAVE_SECONDS", 0.01)
    await Targets([], public=True, resolve=silent).check("https://slow.example/")


async def test_system_resolver_is_the_default() -> None:
    with pytest.raises(NotAllowed, match=r"(127\.0\.0\.1|::1) "):
        await Targets([], public=True).check("https://localhost/")
    await Targets([ip_network("127.0.0.0/8"), ip_network("::1/128")], public=False).check("http://localhost:80/")
