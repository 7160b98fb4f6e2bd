"""Read an image from the web for somebody else: never from this machine's own network, unless that is allowed.

A name may mean another address each time it is asked, so the connection goes to the address that was checked.
"""

import asyncio
import ipaddress
import socket

import httpx

from .service import Refused


async def fetch(url: str, *, most_bytes: int, anywhere: bool = False) -> bytes:
    """The content of an http(s) address, at most ``most_bytes``. ``anywhere``: private addresses, too.

    Follows no redirects. The caller limits the time. Raises Refused.
    """
    try:
        target = httpx.URL(url)
        if target.scheme not in ("http", "https") or not target.host:
            raise _refused("it does not start with http:// or https:// and a host")
        found = await asyncio.get_running_loop().getaddrinfo(target.host, None, type=socket.SOCK_STREAM)
        addresses = [entry[4][0] for entry in found]
        if not anywhere and not all(map(is_public, addresses)):
            raise _refused("it leads into the server's own network, which is closed", 403)
        # A proxy of the environment would resolve the name once more; a compressed answer could be huge.
        headers = {"Host": target.netloc.decode(), "Accept": "image/*", "Accept-Encoding": "identity"}
        options = {"headers": headers, "extensions": {"sni_hostname": target.host}}
        async with (
            httpx.AsyncClient(trust_env=False) as client,
            client.stream("GET", target.copy_with(host=addresses[0]), **options) as response,
        ):
            if response.status_code != 200:
                raise _refused(f"the answer there is {response.status_code}")
            data = bytearray()
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > most_bytes:
                    raise _refused(f"there are over {most_bytes / 1e6:g} MB", 413)
            return bytes(data)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
        raise _refused(str(error)[:80] or type(error).__name__) from error


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet. IPv6 that leads to an IPv4 address counts as not public."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if parsed.version == 6 and parsed not in ipaddress.ip_network("2000::/3"):
        return False
    tunnels = parsed.version == 6 and (parsed.sixtofour or parsed.teredo)
    return parsed.is_global and not parsed.is_multicast and not tunnels


def _refused(reason: str, status: int = 422) -> Refused:
    return Refused(f'"url" cannot be read: {reason}.', status)
