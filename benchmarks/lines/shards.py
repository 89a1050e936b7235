"""Shards: whatever a tar's bytes are, it is read or refused by name; what a network loses is asked for again.

Changed tars: bytes flipped, headers changed and their checksums mended, tars cut and put together. Each must give
pictures and targets or an `InputError`, in less than 2 s. Then a packed folder is read over HTTP from a server that
answers every third request with a fault or half of what was asked: every picture must have its bytes, in any order.
"""

import io
import json
import sys
import tarfile
import threading
import time
from argparse import Namespace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitreous.data import remote
from vitreous.data.packing import pack
from vitreous.data.sources import open_source
from vitreous.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from shard_bytes import open_bytes  # pyright: ignore

COUNT = 100_000
SLOWEST = 2.0  # seconds of the processor
PICTURES, MOST_READS = 60, 3_000


def run(options: Namespace) -> bool:
    """Prints a row for each of the two; returns whether both held."""
    rng = np.random.default_rng(options.seed)
    read = refused = 0
    slowest, faults = 0.0, []
    corpus = seeds()
    for i in range(options.count):
        data = changed(corpus, rng)
        began = time.process_time()  # of the processor: a busy machine is no hang
        try:
            open_bytes(data)
            read += 1
        except InputError:
            refused += 1
        except Exception as fault:
            faults.append(f"input {i}: {type(fault).__name__}: {fault}")
        slowest = max(slowest, time.process_time() - began)
    held = not faults and slowest <= SLOWEST
    print(
        f"changed tars   {options.count:,}: {read:,} read, {refused:,} refused, {len(faults):,} other; "
        f"{slowest:.3f} s at most"
    )
    print(*faults[:20], sep="\n", end="\n" if faults else "")
    reads, wrong = over_http(options, rng)
    print(f"faulty HTTP    {reads:,} reads, {wrong:,} that were not the picture")
    return held and not wrong


def seeds() -> list[bytes]:
    """Small tars of every form."""
    found = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        for names in (
            ["a.jpg", "a.json", "b.jpg", "b.cls"],
            ["cat/a.png", "dog/b.png"],
            ["x" * 90 + "/" + "y" * 40 + ".png"],
        ):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w", format=form) as tar:
                for name in names:
                    content = json.dumps({"label": "x", "n": [1.5]}).encode() if name.endswith("json") else b"content"
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                info = tarfile.TarInfo("link.png")
                info.type, info.linkname = tarfile.SYMTYPE, "l" * (150 if form != tarfile.USTAR_FORMAT else 9)
                tar.addfile(info)
            found.append(file.getvalue()[: -(-file.tell() // 512) * 512].rstrip(b"\0").ljust(512, b"\0") + bytes(1536))
    return found


def changed(corpus: list[bytes], rng: np.random.Generator) -> bytes:
    """A tar of the corpus, changed in one to four ways."""
    data = bytearray(corpus[rng.integers(len(corpus))])
    for _ in range(rng.integers(1, 5)):
        way, at = rng.integers(5), int(rng.integers(max(1, len(data))))
        if way == 0 and data:
            data[at] = rng.integers(256)
        elif way == 1:
            del data[at:]
        elif way == 2:
            data[at:at] = corpus[rng.integers(len(corpus))][: int(rng.integers(2048))]
        elif way == 3:
            header = at // 512 * 512
            field = header + [0, 124, 136, 156, 257, 345][rng.integers(6)]
            if len(data) >= header + 512:
                word = [b"\xff" * 12, b"77777777777\0", b"-1\0", b"x", b"L", b"S", b"g", b"\x80" + bytes(11), b"../\0"][
                    rng.integers(9)
                ]
                data[field : field + len(word)] = word
                mend(data, header)
        else:
            header = at // 512 * 512
            if len(data) >= header + 512:
                data[header + int(rng.integers(512))] ^= 1 << int(rng.integers(8))
                mend(data, header)
    return bytes(data)


def mend(data: bytearray, header: int) -> None:
    """Makes a header's checksum right."""
    data[header + 148 : header + 156] = b" " * 8
    data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])


def over_http(options: Namespace, rng: np.random.Generator) -> tuple[int, int]:
    """Reads of packed pictures in any order, and how many gave other bytes, or none."""
    folder = options.folder / "pictures"
    for i in range(PICTURES):
        (folder / f"class{i % 3}").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, int(rng.integers(8, 64)), 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"class{i % 3}" / f"{i}.png")
    source = open_source(folder)
    pack(source, options.folder / "shards", size=1 << 30, pictures=17)
    files = {f"/{path.name}": path.read_bytes() for path in (options.folder / "shards").iterdir()}
    remote.PAUSES = (0.0, 0.0, 0.0)

    class Handler(BaseHTTPRequestHandler):
        asked = 0

        def do_GET(self) -> None:
            Handler.asked += 1
            fault = Handler.asked % 3 == 0
            content = files.get(self.path)
            if content is None or (fault and Handler.asked % 2):
                self.send_error(404 if content is None else 503)
                return
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            part = content[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part[: len(part) // 2] if fault else part)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        far = open_source(f"http://127.0.0.1:{server.server_address[1]}")
        assert far.names == source.names
        numbers = rng.integers(0, PICTURES, min(MOST_READS, max(1, options.count // 10)))
        return len(numbers), sum(not _is_same(far.read(int(i)), source.read(int(i))) for i in numbers)
    finally:
        server.shutdown()
        server.server_close()


def _is_same(a: Any, b: Any) -> bool:
    return bytes(a) == bytes(b)
