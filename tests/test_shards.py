"""Shards: tars and Parquet, here or behind HTTP or fsspec, read through an index, each picture by one range."""

import io
import json
import os
import pickle
import socket
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import making
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_bytes import index_bytes, open_bytes

from vitreous.data import http, hub, index, remote, tar
from vitreous.data.packing import pack
from vitreous.data.places import is_there, title_of
from vitreous.data.remote import RangeFile, expand, read_range, shown
from vitreous.data.rowgroups import RowGroups
from vitreous.data.sources import Source, open_pictures, open_source
from vitreous.data.tables import Columns
from vitreous.errors import InputError

fsspec = pytest.importorskip("fsspec")


def tarred(members: dict[str, Any], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of members by name; what is no bytes becomes JSON."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, content in members.items():
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def samples(numbers: range, field: str = "json") -> dict[str, Any]:
    """Samples of WebDataset: a picture that is no more than its number, and its class."""
    found: dict[str, Any] = {}
    for i in numbers:
        label = ["cat", "dog", "owl"][i % 3]
        found[f"{i:05}.jpg"] = b"picture %d" % i
        found[f"{i:05}.{field}"] = {"label": label, "age": i / 2} if field == "json" else label.encode()
    return found


def write(path: Path, members: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tarred(members))
    return path


def read_all(source: Source) -> list[bytes]:
    return [bytes(source.read(i)) for i in range(len(source))]


class Server(ThreadingHTTPServer):
    """Serves `files` by ranges; `faults` are answered first, one a request; `asked` counts the bytes asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.faults: list[int | str] = []
        self.ranges = True
        self.asked: list[tuple[str, int]] = []
        self.seen: list[dict[str, str]] = []
        self.connections = 0

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        content = self.server.files.get(self.path.lstrip("/").split("?")[0])
        fault = self.server.faults.pop(0) if self.server.faults else None
        self.server.seen.append(dict(self.headers))
        if "/moved/" in self.path:
            self.send_response(302)
            self.send_header("Location", self.path.replace("/moved/", "/", 1))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if content is None or isinstance(fault, int):
            self.send_error(404 if content is None else fault)  # pyright: ignore
            return
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        if fault == "shifted":
            first, last = "1", str(int(last) + 1)
        part = content[int(first) : int(last) + 1]
        self.server.asked.append((self.path.lstrip("/"), len(part)))
        if not self.server.ranges:
            part = content
        elif not part:
            self.send_error(416)
            return
        self.send_response(206 if self.server.ranges else 200)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("ETag", f'"{len(content)}"')
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[: len(part) // 2] if fault == "cut" else part)
        self.close_connection = fault in ("cut", "last")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setattr(remote, "PAUSES", (0, 0))
    monkeypatch.setenv("VITREOUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    started = Server()
    thread = threading.Thread(target=started.serve_forever, args=(0.01,))
    thread.start()
    yield started
    started.shutdown()
    thread.join()
    http._kept.__dict__.clear()
    started.server_close()


class TestSamples:
    def test_fields_are_targets_as_the_columns_of_a_table_are(self, tmp_path):
        source = open_source(write(tmp_path / "s.tar", samples(range(6))))
        assert source.kind == "shards"
        assert source.names[:2] == ("00000.jpg", "00001.jpg")
        assert {name: list(values) for name, values in source.columns.items()} == {"label": ["cat", "dog", "owl"] * 2}
        assert read_all(source)[5] == b"picture 5"
        assert open_source(tmp_path / "s.tar", Columns(("age",))).columns["age"].tolist() == [0, 0.5, 1, 1.5, 2, 2.5]

    @pytest.mark.parametrize(("field", "title"), [("cls", "class"), ("txt", "txt")])
    def test_a_class_may_stand_in_a_file_of_its_own(self, tmp_path, field, title):
        source = open_source(write(tmp_path / "s.tar", samples(range(3), field)))
        assert source.columns[title].tolist() == ["cat", "dog", "owl"]

    def test_a_cls_comes_before_what_else_is_known(self, tmp_path):
        found = {"a.jpg": b"A", "a.cls": b"7", "a.json": {"label": "x", "url": "u"}, "a.txt": b"words"}
        source = open_source(write(tmp_path / "s.tar", found))
        assert {name: values.tolist() for name, values in source.columns.items()} == {"class": ["7"]}

    def test_the_key_ends_at_the_first_dot_of_the_last_part(self, tmp_path):
        found = {"v1.2/a.seg.png": b"S", "v1.2/a.jpg": b"A", "v1.2/a.cls": b"1", "v1.2/b.left.webp": b"B",
                 "v1.2/b.cls": b"2", "v1.2/c.npy": b"C", "v1.2/c.png": b"P", "v1.2/c.cls": b"2"}  # fmt: skip
        source = open_source(write(tmp_path / "s.tar", found))
        assert read_all(source) == [b"A", b"B", b"P"]

    def test_a_sample_with_two_pictures_is_named(self, tmp_path):
        path = write(tmp_path / "s.tar", {"a.jpg": b"A", "a.png": b"B", "a.cls": b"1"})
        with pytest.raises(InputError, match=r"a\.jpg, a\.png: expected one picture for each key"):
            open_source(path)

    def test_json_that_is_no_object_is_named(self, tmp_path):
        with pytest.raises(InputError, match=r"00000\.json: expected a JSON object"):
            open_source(write(tmp_path / "s.tar", {"00000.jpg": b"A", "00000.json": [1]}))

    def test_what_a_sample_lacks_is_missing_and_kinds_are_brought_together(self, tmp_path):
        values = [{"y": 1, "w": 1, "l": [1]}, {"y": 2.5, "w": "a"}, {"w": None}]
        found = {f"{i}.{e}": c for i, v in enumerate(values) for e, c in (("png", b"P"), ("json", v))}
        columns = open_source(write(tmp_path / "s.tar", found), Columns(("y", "w"))).columns
        np.testing.assert_array_equal(columns["y"], [1, 2.5, np.nan])
        assert columns["w"].tolist() == ["1", "a", ""]

    def test_titles_that_are_no_text_are_still_titles(self, tmp_path):
        found = {"a.png": b"A", "a.json": b'{"\\ud800": 1, "": 2, "\\u0000": 3, "y": "\\udc00"}'}
        assert open_source(write(tmp_path / "s.tar", found)).columns["y"].tolist() == ["?"]

    def test_samples_without_a_picture_are_left_out(self, tmp_path):
        source = open_source(
            write(tmp_path / "s.tar", {**samples(range(2)), "99.json": {"label": "cat"}, "r.pdf": b""})
        )
        assert len(source) == 2
        assert source.ignored == ("99.json", "r.pdf")

    def test_groups_and_splits_are_fields_too(self, tmp_path):
        found = samples(range(3))
        for i, split in enumerate(["train", "val", "test"]):
            found[f"{i:05}.json"] |= {"split": split, "who": i // 2}
        source = open_source(write(tmp_path / "s.tar", found), Columns(group="who"))
        assert source.groups is not None
        assert source.groups.tolist() == ["0", "0", "1"]
        assert source.splits.tolist() == ["train", "validation", "test"]
        with pytest.raises(InputError, match=r"no group column 'x'\. Its columns are: label, age, split, who"):
            open_source(tmp_path / "s.tar", Columns(group="x"))


class TestMany:
    def grown(self, root: Path) -> Path:
        write(root / "a-train-0.tar", samples(range(4)))
        write(root / "a-train-1.tar", samples(range(4, 6)))
        write(root / "a-val-0.tar", samples(range(2)))
        return root

    @pytest.mark.parametrize("pattern", ["", "*.tar", "a-{train-0,train-1,val-0}.tar"])
    def test_a_folder_a_glob_and_braces_name_the_same(self, tmp_path, pattern):
        source = open_source(str(self.grown(tmp_path / "s") / pattern))
        assert len(source) == 8
        assert source.names[4] == "a-train-1.tar/00004.jpg"
        assert source.splits.tolist() == ["train"] * 6 + ["validation"] * 2
        assert read_all(source)[4:7] == [b"picture 4", b"picture 5", b"picture 0"]

    def test_the_name_of_one_split_alone_says_nothing(self, tmp_path):
        source = open_source(str(self.grown(tmp_path) / "a-train-{0..1}.tar"))
        assert source.splits.tolist() == [""] * 6

    def test_folders_say_the_split_too(self, tmp_path):
        write(tmp_path / "train/0.tar", samples(range(2)))
        write(tmp_path / "test/0.tar", samples(range(2)))
        source = open_source(tmp_path)
        assert source.names == tuple(f"{part}/0.tar/0000{i}.jpg" for part in ("test", "train") for i in range(2))
        assert source.splits.tolist() == ["test", "test", "train", "train"]

    def test_class_folders_may_lie_in_many_tars(self, tmp_path):
        write(tmp_path / "x-0.tar", {"dog/b.png": b"1", "cat/a.png": b"2", "LICENSE": b""})
        write(tmp_path / "x-1.tar", {"cat/a.png": b"3"})
        source = open_source(tmp_path)
        assert source.kind == "tar"
        assert source.names == ("x-0.tar/cat/a.png", "x-0.tar/dog/b.png", "x-1.tar/cat/a.png")
        assert source.columns["class"].tolist() == ["cat", "dog", "cat"]
        assert read_all(source) == [b"2", b"1", b"3"]

    def test_shards_that_are_not_there_are_named(self, tmp_path):
        with pytest.raises(InputError, match=r"1 of 4 shards are not there:\n.*a-train-2\.tar"):
            open_source(str(self.grown(tmp_path) / "a-{train-{0..2},val-0}.tar".replace("{0..2}", "0,train-1,train-2")))
        with pytest.raises(InputError, match="no file of such a name"):
            open_source(str(tmp_path / "b-*.tar"))

    def test_a_folder_with_pictures_is_no_folder_of_shards(self, tmp_path):
        for name in ("train/cat/a.png", "train/dog/a.png", "all.tar"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        assert open_source(tmp_path).kind == "folder"

    def test_they_are_read_by_threads_and_other_processes(self, tmp_path):
        source = open_source(self.grown(tmp_path))
        read = pickle.loads(pickle.dumps(source.read))
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(read, range(len(source)))) == read_all(source)

    def test_pictures_of_shards_are_asked_about_with_or_without_fields(self, tmp_path):
        root = self.grown(tmp_path / "s")
        flat = write(tmp_path / "flat.tar", {"a.png": b"A", "notes.txt": b"", ".hidden.png": b""})
        source = open_pictures([flat, np.zeros((4, 4)), root])
        assert source.names[:3] == ("a.png", "array 1", "a-train-0.tar/00000.jpg")
        assert bytes(source.read(9)) == b"picture 1"
        assert isinstance(source.read(1), np.ndarray)

    def test_data_is_there_while_any_of_its_pattern_is(self, tmp_path):
        root = self.grown(tmp_path)
        assert is_there(str(root / "a-*.tar"))
        assert is_there(str(root / "a-{train-0,gone}.tar"))
        assert not is_there(str(root / "b-*.tar"))
        assert is_there("https://host/a.tar")

    @pytest.mark.parametrize(
        ("data", "title"),
        [("/x/photos.tar", "photos"), ("s/train-{000..099}.tar", "train"), ("s3://b/set/*.tar", "data"),
         ("hf://owner/pets:small", "pets"), ("https://h/set/?key=1", "set")],
    )  # fmt: skip
    def test_runs_are_named_after_them(self, data, title):
        assert title_of(data) == title


class TestPatterns:
    def test_braces_count_with_their_zeros(self):
        assert expand("s3://b/{008..010}.tar") == ["s3://b/008.tar", "s3://b/009.tar", "s3://b/010.tar"]
        assert expand("s3://b/{8..10}{a,b}") == [f"s3://b/{i}{c}" for i in (8, 9, 10) for c in "ab"]

    @pytest.mark.parametrize("pattern", ["s3://b/{0..9999999}", "s3://b/{9..1}", "s3://b/{0..999}{0..999}{0..999}"])
    def test_too_many_are_refused_before_they_are_spelt(self, pattern):
        with pytest.raises(InputError):
            expand(pattern)

    def test_keys_in_a_url_are_not_shown(self):
        assert shown("https://me:secret@host/a.tar?sig=secret") == "https://host/a.tar"
        chain = "simplecache::zip://a.tar::https://me:secret@host/a.zip?sig=secret"
        assert shown(chain) == "simplecache::zip://a.tar::https://host/a.zip"


class TestTar:
    @pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_headers_of_all_forms_give_names_and_places(self, form):
        names = ["a/b.png", "d/" * 40 + "x" * 60 + ".png", "ü.png"]
        names += [] if form == tarfile.USTAR_FORMAT else ["long/" * 60 + "é.png"]
        content = tarred({name: name.encode() for name in names}, form)
        found = list(tar.members(lambda start, count: content[start : start + count], len(content)))
        assert [member.name for member in found] == names
        assert [content[m.offset : m.offset + m.size].decode() for m in found] == names

    def test_links_devices_and_holes_are_no_files(self):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"Z"):
                info = tarfile.TarInfo(f"x{kind.decode()}.png")
                info.type, info.linkname = kind, "/etc/passwd"
                archive.addfile(info)
            archive.addfile(tarfile.TarInfo("last.png"))
        content = file.getvalue()
        kinds = [m.kind for m in tar.members(lambda start, count: content[start : start + count], len(content))]
        assert kinds == ["link", "link", "device", "pipe", "folder", "odd", "file"]

    def test_a_size_beyond_eight_gigabytes_is_read(self):
        info = tarfile.TarInfo("big.png")
        info.size = 9 << 30
        header = info.tobuf(tarfile.GNU_FORMAT)
        with pytest.raises(InputError, match=r"cut off: big\.png reaches to byte 9,663,676,928"):
            list(tar.members(lambda start, count: header[start : start + count], len(header)))

    def test_every_cut_is_found(self):
        content = tarred({"a.png": b"A" * 700, "é" * 80 + ".png": b"B"})
        end = content.rindex(b"B") + 512  # where the mark of the end begins, or a little after
        for size in [*range(0, end, 64), end - 1]:
            cut = content[:size]
            with pytest.raises(InputError):
                list(tar.members(lambda start, count, cut=cut: cut[start : start + count], size))

    def test_every_flipped_bit_of_a_header_is_found_or_changes_nothing_that_counts(self):
        content = tarred({"a.png": b"AAAA"}, tarfile.USTAR_FORMAT)
        expected = list(tar.members(lambda start, count: content[start : start + count], len(content)))
        for bit in range(8 * 512):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            try:
                found = list(tar.members(lambda start, count, f=flipped: bytes(f[start : start + count]), len(flipped)))
            except InputError:
                continue
            assert found == expected, bit

    @pytest.mark.parametrize(
        "body", [b"99 path=x\n", b"0 path=x\n", b"11 path=xx\r", b"path=x\n", b"7 path\n", b"18 size=999999999\n\n"]
    )
    def test_a_damaged_pax_header_is_refused(self, body):
        info = tarfile.TarInfo("pax")
        info.type, info.size = b"x", len(body)
        content = info.tobuf(tarfile.USTAR_FORMAT) + body.ljust(512, b"\0") + tarred({"a.png": b"A"})
        with pytest.raises(InputError, match=r"damaged|cut off"):
            list(tar.members(lambda start, count: content[start : start + count], len(content)))

    def test_any_bytes_give_shards_or_an_input_error(self):
        rng = np.random.default_rng(0)
        whole = tarred(samples(range(3)) | {"x" * 120 + ".jpg": b""})
        for _ in range(300):
            mutated = bytearray(whole)
            for at in rng.integers(0, len(whole), rng.integers(1, 6)):
                mutated[at] = rng.integers(0, 256)
            for data in (bytes(mutated), bytes(mutated[: rng.integers(0, len(whole))])):
                with suppress(InputError):
                    open_bytes(data)


class TestIndexes:
    def test_the_headers_of_a_large_shard_are_read_once(self, tmp_path, monkeypatch):
        monkeypatch.setenv("VITREOUS_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(index, "CACHED", 2)
        path = write(tmp_path / "s.tar", samples(range(4)))
        first = open_source(path)
        monkeypatch.setattr(tar, "members", None)
        assert open_source(path).names == first.names
        [kept] = (tmp_path / "cache/shards").glob("*.index")
        kept.write_bytes(kept.read_bytes()[:100])  # damaged: made anew
        monkeypatch.undo()
        assert read_all(open_source(path)) == read_all(first)

    def test_a_shard_that_changed_is_read_anew(self, tmp_path, monkeypatch):
        monkeypatch.setenv("VITREOUS_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(index, "CACHED", 2)
        open_source(write(tmp_path / "s.tar", samples(range(4))))
        path = write(tmp_path / "s.tar", samples(range(6)))
        assert len(open_source(path)) == 6

    def test_the_cache_is_pruned_once_for_all_shards(self, tmp_path, monkeypatch):
        monkeypatch.setenv("VITREOUS_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(index, "CACHED", 2)
        monkeypatch.setattr(index, "KEPT", 1)
        pruned, prune = [], index._prune
        monkeypatch.setattr(index, "_prune", lambda: pruned.append(1) or prune())
        for i in range(3):
            write(tmp_path / f"s/{i}.tar", samples(range(4 * i, 4 * i + 4)))
        open_source(tmp_path / "s")
        assert pruned == [1]
        assert len(list((tmp_path / "cache/shards").glob("*.index"))) == 1

    def test_an_index_names_no_file_outside_of_its_folder(self, tmp_path):
        shard = index_bytes(tarred(samples(range(2))), "x")
        for name in ("../x.tar", "/x.tar", "http://host/x.tar", "a\\b.tar", ".."):
            index.write_index(tmp_path / index.INDEX, [shard], [name])
            with pytest.raises(InputError, match="is damaged, or of another version"):
                open_source(tmp_path)


class TestRemote:
    def test_http_is_read_by_ranges_and_no_more_than_the_headers_before_a_picture_is_asked_for(self, server):
        big = {f"{i}.{e}": c for i in range(4) for e, c in (("jpg", bytes(1_000_000) + b"%d" % i), ("cls", b"%d" % i))}
        server.files["a.tar"] = tarred(big)
        source = open_source(server.url("a.tar"))
        assert sum(count for _, count in server.asked) < 6 * index.REMOTE_READ
        server.asked.clear()
        assert bytes(source.read(2)).endswith(b"2")
        assert server.asked == [("a.tar", 1_000_001)]
        assert source.columns["class"].tolist() == list("0123")
        server.asked.clear()
        assert open_source(server.url("a.tar")).names == source.names  # from the cache
        assert server.asked == [("a.tar", 1)]

    def test_braces_of_urls_name_shards_whose_query_stays(self, server):
        server.files |= {f"{i}.tar": tarred(samples(range(i, i + 2))) for i in range(2)}
        source = open_source(server.url("{0..1}.tar?key=secret"))
        assert read_all(source) == [b"picture 0", b"picture 1", b"picture 1", b"picture 2"]
        assert source.names[0] == "0.tar/00000.jpg"

    def test_faults_that_pass_are_passed_over(self, server):
        server.files["a.tar"] = tarred(samples(range(2)))
        source = open_source(server.url("a.tar"))
        server.faults[:] = [503, "cut"]
        assert source.read(0) == b"picture 0"
        server.faults[:] = [503, 500, 429]
        with pytest.raises(
            InputError,
            match=r"^00001\.jpg: http.*a\.tar cannot be read: the server says 429 \(.*\)\. Try again",
        ):
            source.read(1)

    def test_connections_are_kept_and_made_anew_where_the_server_closed_them(self, server):
        server.files["a.tar"] = tarred(samples(range(4)))
        source = open_source(server.url("a.tar"))
        before = server.connections
        assert [source.read(i) for i in (3, 0, 2)] == [b"picture 3", b"picture 0", b"picture 2"]
        assert server.connections <= before + 1
        server.faults[:] = ["last"]
        assert [source.read(i) for i in (1, 1)] == [b"picture 1"] * 2
        assert server.connections > before

    def test_redirections_are_followed_and_names_and_passwords_shown_to_the_server_they_are_for(self, server):
        server.files["a.tar"] = tarred(samples(range(2)))
        assert open_source(server.url("moved/a.tar")).read(1) == b"picture 1"
        server.seen.clear()
        open_source(server.url("moved/a.tar?1").replace("//", "//me:p%40ss@"))
        assert server.seen[0]["Authorization"] == "Basic bWU6cEBzcw=="
        assert "Authorization" not in server.seen[1]

    def test_another_part_than_was_asked_for_is_refused(self, server):
        server.files["a.tar"] = tarred(samples(range(2)))
        source = open_source(server.url("a.tar"))
        server.faults[:] = ["shifted"]
        with pytest.raises(InputError, match=r"another part of the file than bytes from 512: .*'bytes 1-"):
            source.read(0)

    def test_behind_a_proxy_redirections_are_looked_at_too(self, server, monkeypatch):
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("http_proxy", server.url(""))
        http._opener.cache_clear()
        server.files["http://host/a"] = b"content"
        assert http.get_part("http://me:p@host/moved/a", 1, 3).content == b"ont"
        assert ["Authorization" in seen for seen in server.seen] == [True, False]
        with pytest.raises(http.StatusError, match="too many redirections"):
            http.get_part("http://host" + "/moved" * 9 + "/a", 0, 1)
        with pytest.raises(http.StatusError, match="404"):
            http.get_part("http://host/b", 0, 1)
        http._opener.cache_clear()

    def test_a_fault_names_the_shard_and_what_to_do(self, server):
        server.files["a.tar"] = tarred(samples(range(2)))
        with pytest.raises(InputError, match=r"/b\.tar cannot be read: the server says 404"):
            open_source(server.url("b.tar"))
        source = open_source(server.url("a.tar"))
        server.files["a.tar"] = server.files["a.tar"][:515]
        with pytest.raises(InputError, match=r"00000\.jpg in .*a\.tar is cut off: 3 of 9 bytes"):
            source.read(0)
        server.ranges = False
        with pytest.raises(InputError, match="does not give parts of a file"):
            source.read(0)
        with pytest.raises(InputError, match="does not give parts of a file"):
            open_source(server.url("a.tar?other"))

    @pytest.mark.parametrize("suffix", ["tar", "parquet"])
    def test_a_server_that_does_not_answer_is_told_once_for_all_its_shards(self, server, monkeypatch, suffix):
        waits: list[float] = []
        monkeypatch.setattr(remote.time, "sleep", waits.append)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]  # where nobody listens when it is closed
        told = rf"^http://127\.0\.0\.1:{port} cannot be read: .*refused\. Check .*\. None of the 200 shards was read\.$"
        with pytest.raises(InputError, match=told):
            open_source(f"http://127.0.0.1:{port}/train-{{000..199}}.{suffix}")
        assert len(waits) == len(remote.PAUSES)

    def test_one_that_answers_no_more_after_some_is_asked_no_further(self, server):
        server.files |= {f"{number:03}.tar": tarred(samples(range(1))) for number in range(200)}
        server.faults = [404, *[503] * 1000]  # the first is for the index
        with pytest.raises(InputError, match=r"\d{3}\.tar cannot be read: the server says 503.* None of the 200"):
            open_source(server.url("{000..199}.tar"))
        assert len(server.seen) < 200

    @pytest.mark.parametrize("url", ["foo://a/{0..9}.tar", "foo://a/{0..9}.parquet", "foo://a", "zip://b::foo://a.tar"])
    def test_a_kind_of_url_that_there_is_not_names_those_that_there_are(self, url):
        told = (
            r"^(foo|zip):// cannot be read: Protocol not known: foo\. Expected .*https://, .*vitreous\[shards\].* s3://"
        )
        with pytest.raises(InputError, match=told) as raised:
            open_source(url)
        assert "\n" not in str(raised.value)

    def test_a_folder_behind_http_needs_an_index(self, server):
        with pytest.raises(InputError, match=r"not list what a folder holds.*train-\{000000[^$]*index cannot be.* 404"):
            open_source(server.url("folder"))

    def test_behind_an_index_nothing_else_is_read(self, server, tmp_path):
        folder = open_source(making.make_shapes(tmp_path / "d", each=2))
        pack(folder, tmp_path / "out", size=1 << 30, pictures=3)
        server.files = {f"set/{path.name}": path.read_bytes() for path in (tmp_path / "out").iterdir()}
        for data in ("set", "set/train-{000000..000001}.tar"):
            server.asked.clear()
            source = open_source(server.url(data))
            assert {name for name, _ in server.asked} == {f"set/{index.INDEX}"}
            assert [source.read(i) for i in range(6)] == [folder.read(i) for i in range(6)]
            assert source.names == folder.names
        server.files["set/train-000000.tar"] = server.files["set/train-000001.tar"]
        with pytest.raises(InputError, match="is not what was packed"):
            source.read(0)

    def test_a_large_index_is_read_by_ranges(self, server, tmp_path, monkeypatch):
        names, numbers = [os.urandom(16).hex() for _ in range(9000)], np.arange(9000)
        index.write_index(tmp_path / "x", [index.Shard("a", names, numbers, numbers, [None] * 9000)], ["a"])
        server.files["x"] = (tmp_path / "x").read_bytes()
        monkeypatch.setattr(index, "WHOLE", 1 << 16)
        assert index.read_index(server.url("x")).shard(0, "a").names == names
        assert max(count for _, count in server.asked) < len(server.files["x"])

    def test_any_url_that_fsspec_knows(self, server, monkeypatch):
        memory = fsspec.filesystem("memory")
        for i, split in enumerate(["train", "test"]):
            memory.pipe(f"/set/{split}-0.tar", tarred(samples(range(i, i + 2))))
        try:
            source = open_source("memory://set")
            assert source.names[:2] == ("test-0.tar/00001.jpg", "test-0.tar/00002.jpg")
            assert source.splits.tolist() == ["test"] * 2 + ["train"] * 2
            assert read_all(source) == [b"picture 1", b"picture 2", b"picture 0", b"picture 1"]
            assert read_all(open_source("memory://set/*-0.tar")) == read_all(source)
            with pytest.raises(InputError, match=r"memory://set/x\.tar cannot be read"):
                open_source("memory://set/x.tar")
        finally:
            memory.rm("/set", recursive=True)
        with pytest.raises(InputError, match=r"holds no \.tar and no \.parquet|cannot be read"):
            open_source("memory://set")
        monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
        with pytest.raises(InputError, match=r"pip install 'vitreous\[shards\]'"):
            open_source("memory://set")

    def test_a_file_of_ranges_is_a_file(self, server):
        server.files["x"] = bytes(range(200))
        file = io.BufferedReader(RangeFile(200, partial(read_range, server.url("x"))), 16)
        assert file.read(3) == b"\0\1\2"
        assert file.seek(-3, os.SEEK_END) == 197
        assert file.read() == bytes([197, 198, 199])


class TestParquet:
    def write(self, path: Path, first: int, count: int = 4, wrapped: bool = True, kind: str = "int64") -> Path:
        contents = [b"picture %d" % i for i in range(first, first + count)]
        image = [{"bytes": c, "path": f"{first + i}.png"} for i, c in enumerate(contents)] if wrapped else contents
        features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
        labels = pa.array([i % 2 for i in range(first, first + count)]).cast(kind)
        table = pa.table({"image": image, "label": labels})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=3)
        return path

    def test_the_layout_of_hugging_face(self, tmp_path):
        self.write(tmp_path / "data/train-00000-of-00002.parquet", 0)
        self.write(tmp_path / "data/train-00001-of-00002.parquet", 4, kind="int32")
        self.write(tmp_path / "data/test-00000-of-00001.parquet", 8)
        (tmp_path / "README.md").write_text("a card")
        source = open_source(tmp_path)
        assert source.names == tuple(f"{i}.png" for i in (8, 9, 10, 11, *range(8)))
        assert source.splits.tolist() == ["test"] * 4 + ["train"] * 8
        assert source.columns["label"].tolist() == ["cat", "dog"] * 6
        assert read_all(source) == [b"picture %d" % i for i in (8, 9, 10, 11, *range(8))]

    def test_pictures_are_read_a_row_group_at_a_time_and_the_last_ones_kept(self, tmp_path, monkeypatch):
        self.write(tmp_path / "a.parquet", 0, 9, wrapped=False)
        source = open_source(tmp_path / "a.parquet")
        assert source.names[8] == "image[8]"
        parts: list[int] = []
        part = RowGroups.part
        monkeypatch.setattr(RowGroups, "part", lambda self, which: parts.append(which) or part(self, which))
        monkeypatch.setattr("vitreous.data.rowgroups.CACHE_BYTES", 1)
        assert [source.read(i) for i in (0, 1, 4, 2, 8, 3)] == [b"picture %d" % i for i in (0, 1, 4, 2, 8, 3)]
        assert parts == [0, 1, 2, 1]
        read = pickle.loads(pickle.dumps(source.read))
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(read, range(9))) == [b"picture %d" % i for i in range(9)]

    def test_threads_wait_for_no_other_row_group_and_read_each_once(self, tmp_path, monkeypatch):
        source = open_source(self.write(tmp_path / "a.parquet", 0, 6, wrapped=False))
        both, parts, part = threading.Barrier(2), [], RowGroups.part

        def slow(self: RowGroups, which: int) -> pa.ChunkedArray:
            parts.append(which)
            both.wait(making.PATIENCE)  # until the other row group is being read too
            return part(self, which)

        monkeypatch.setattr(RowGroups, "part", slow)
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(source.read, range(6))) == [b"picture %d" % i for i in range(6)]
        assert sorted(parts) == [0, 1]

    def test_far_away_they_are_read_by_ranges(self, tmp_path, server):
        for name, first in (("train-0", 0), ("val-0", 4)):
            server.files[f"{name}.parquet"] = self.write(tmp_path / "x.parquet", first).read_bytes()
        source = open_source(server.url("{train,val}-0.parquet"))
        assert source.splits.tolist() == ["train"] * 4 + ["validation"] * 4
        assert read_all(source) == [b"picture %d" % i for i in range(8)]
        pq.write_table(pa.table({"path": ["a.png"], "label": ["x"]}), tmp_path / "p.parquet")
        server.files["p.parquet"] = (tmp_path / "p.parquet").read_bytes()
        with pytest.raises(InputError, match="holds paths; expected pictures themselves"):
            open_source(server.url("p.parquet"))

    def test_a_picture_that_is_missing_is_named_by_its_row(self, tmp_path):
        table = pa.table({"image": [b"A"] * 4 + [None], "y": [1, 2, 3, 4, 5]})
        pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
        with pytest.raises(InputError, match=r"without a picture[^$]*row 5"):
            open_source(tmp_path / "t.parquet")
        pq.write_table(table, tmp_path / "t.parquet", row_group_size=2, write_statistics=False)
        source = open_source(tmp_path / "t.parquet")
        with pytest.raises(InputError, match=r"row 1 of row group 3 holds no picture"):
            source.read(4)

    def test_its_pictures_are_asked_about(self, tmp_path):
        self.write(tmp_path / "a.parquet", 0)
        self.write(tmp_path / "s/train-0.parquet", 4)
        source = open_pictures([tmp_path / "a.parquet", tmp_path / "s"])
        assert source.names == tuple(f"{i}.png" for i in range(8))
        assert read_all(source) == [b"picture %d" % i for i in range(8)]

    def test_files_whose_columns_differ_are_refused(self, tmp_path):
        self.write(tmp_path / "a.parquet", 0)
        pq.write_table(pa.table({"image": [b"A"], "label": ["text"]}), tmp_path / "b.parquet")
        with pytest.raises(InputError, match="differ in their columns"):
            open_source(tmp_path)


class TestHub:
    @pytest.mark.skipif(os.name == "nt", reason="pipes and devices are no files there")
    def test_a_row_gives_its_bytes_or_a_file_that_was_downloaded_and_no_other(self, tmp_path):
        downloads = tmp_path.resolve() / "downloads"
        downloads.mkdir()
        (downloads / "a.png").write_bytes(b"A")
        (downloads / "link.png").symlink_to("/dev/zero")
        (tmp_path / "secret").write_bytes(b"S")
        os.mkfifo(downloads / "pipe.png")
        paths = [
            downloads / "a.png",
            tmp_path / "secret",
            downloads / "../secret",
            downloads / "link.png",
            "/dev/zero",
            "\0",
        ]
        rows = [{"image": {"bytes": None, "path": str(path)}} for path in [*paths, downloads / "pipe.png"]]
        rows += [{"image": {"bytes": b"B", "path": "/dev/zero"}}]
        names = tuple(f"train[{i}]" for i in range(8))
        read = hub._Rows((rows,), np.array([0, 8]), "image", names, (str(downloads),))
        assert (read(0), read(7)) == (b"A", b"B")
        for i in range(1, 6):
            with pytest.raises(InputError, match=rf"^train\[{i}\] names /.*downloaded with it"):
                read(i)
        with pytest.raises(InputError, match="no regular file"):
            read(6)

    def test_without_its_library_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "datasets", None)
        with pytest.raises(InputError, match=r"pip install 'vitreous\[hub\]'"):
            open_source("hf://owner/name")

    @pytest.mark.parametrize("data", ["hf://", "hf://a/b/c", "hf://a/b:c:d", "hf://a/../b"])
    def test_an_odd_name_is_refused(self, data):
        with pytest.raises(InputError, match="expected hf://owner/name"):
            open_source(data)
