"""What a server is held to: where it listens, who may ask, and how much it takes at once."""

import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from vitreous.data.decode import MAX_PIXELS
from vitreous.errors import InputError

VARIABLE = "VITREOUS_API_KEY"
SHORTEST_KEY = 16  # characters


@dataclass(frozen=True)
class Settings:
    """Where a server listens, who may ask, and its limits. Raises `InputError` for what does not fit."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: one that is free
    names: tuple[str, ...] = ()  # of hosts by which a server on loopback is reached, beside its own
    key: bytes = b""  # what a request must show; empty: nothing
    insecure: bool = False  # listen beyond loopback without a key
    log: bool = False  # a line a request
    deadline: float = 10.0  # seconds from a request's last byte until its pictures must be begun with
    queue: int = 256  # pictures that wait or are worked on; a request beyond that is refused
    picture_bytes: int = 32 << 20
    request_bytes: int = 64 << 20
    pictures: int = 64  # in a request
    pixels: int = MAX_PIXELS  # of all pictures of a request, where it has several
    held_bytes: int = 512 << 20  # of all requests that are being read or answered
    patience: float = 10.0  # seconds for the head of a request, and without a byte of its body
    slowest: int = 16 << 10  # bytes a second that a body must bring in the mean, after that
    connections: int = 500
    explanations: int = 4  # that wait, beside the one that is worked on
    explain_deadline: float = 60.0  # seconds until an explanation must be begun with
    grace: int = 30  # seconds that accepted requests have once the server is told to end

    def __post_init__(self):
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port {self.port}: expected 1 to 65535, or 0 for one that is free")
        if not self.deadline > 0:
            raise InputError(f"--deadline {self.deadline:g}: expected seconds, more than 0")
        if self.picture_bytes < 1:
            raise InputError("--max-mb: expected 1 or more")
        if self.queue < self.pictures:
            raise InputError(f"--queue {self.queue}: expected {self.pictures} or more, the pictures of one request")


def read_key(file: Path | None) -> bytes:
    """The key of a file, or of the environment where there is no file; empty where there is neither.

    Raises `InputError` for a file that cannot be read, and for a key that is easily guessed or no header can hold.
    """
    where = str(file) if file else VARIABLE
    try:
        key = (file.read_text("utf-8") if file else os.environ.get(VARIABLE, "")).strip()
    except (OSError, UnicodeDecodeError) as fault:
        raise InputError(f"--api-key-file {file} cannot be read ({fault})") from None
    if not key and file is None:
        return b""
    if len(key) < SHORTEST_KEY or not all("!" <= letter <= "~" for letter in key):
        raise InputError(
            f"{where} holds no key: expected {SHORTEST_KEY} letters or more, without spaces, as of "
            '`python -c "import secrets; print(secrets.token_urlsafe())"`'
        )
    return key.encode()


def bind(settings: Settings) -> socket.socket:
    """The socket that will listen. Raises `InputError` where it may not be had, or asks for a key first."""
    host, port = settings.host, settings.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as fault:
        raise InputError(f"--host {host}: expected a name or an address of this machine ({fault})") from None
    if not (is_loopback(host) or settings.key or settings.insecure):
        raise InputError(
            f"--host {host}: whoever reaches this machine could ask the model; expected a key (--api-key-file FILE, or "
            f"{VARIABLE}), or --insecure where that is meant"
        )
    family, *_, address = found[0]
    # Named as TCP's: asyncio sends what is written to such sockets at once, and to others only when it is acknowledged.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if os.name == "posix":
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
    except OSError as fault:
        listening.close()
        raise InputError(
            f"--host {host} --port {port} cannot be had ({fault.strerror}); --port 0 takes a free one"
        ) from None
    return listening


def is_loopback(host: str) -> bool:
    """Whether a name or an address is reached from this machine alone."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def address_of(listening: socket.socket, host: str) -> str:
    """The address to open in a browser."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{listening.getsockname()[1]}"
