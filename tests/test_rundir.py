"""The run directory: every file whole or not at all."""

import errno
import json
import os
import stat
import struct
import sys
from contextlib import nullcontext, suppress

import numpy as np
import pytest
import torch
from forks import finished, script

from vitreous.errors import InputError
from vitreous.rundir import FORMAT, Checkpoint, RunDir, SplitRow, discard, write_atomically, write_whole


def checkpoint(step: int) -> Checkpoint:
    """Of every type and of odd shapes."""
    draw = torch.Generator().manual_seed(step)
    tensors = {
        "model.weight": torch.randn(5, 7, generator=draw),
        "model.transposed": torch.randn(4, 3, generator=draw).T,
        "model.half": torch.randn(9, generator=draw).bfloat16(),
        "optimizer.step": torch.tensor(float(step)),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False, True]),
        "double": torch.randn(2, dtype=torch.float64, generator=draw),
        "count": torch.tensor([2**40 + step]),
    }
    return Checkpoint(step, tensors, {"epoch": 3, "loss": 0.1 + step, "notes": ["ü", None], "rate": 1e-300})


def made(path) -> RunDir:
    run = RunDir.create(path / "run")
    run.write_json("config.json", {"format": FORMAT, "vitreous": "0.1.0", "name": "ü"})
    return run


def newest(run: RunDir) -> tuple[Checkpoint | None, list[str]]:
    said: list[str] = []
    return run.newest(said.append), said


def same(one: Checkpoint | None, other: Checkpoint) -> bool:
    return (
        one is not None
        and (one.step, one.values, set(one.tensors)) == (other.step, other.values, set(other.tensors))
        and all(
            torch.equal(one.tensors[name], t) and one.tensors[name].dtype == t.dtype
            for name, t in other.tensors.items()
        )
    )


class TestFolder:
    def test_a_run_is_made_in_a_new_or_an_empty_folder(self, tmp_path):
        (tmp_path / "empty").mkdir()
        for name in ("empty", "deep/er/new"):
            assert (RunDir.create(tmp_path / name).path / "last").is_dir()

    @pytest.mark.parametrize("kind", ["file", "folder"])
    def test_what_is_in_the_way_is_never_written_over(self, tmp_path, kind):
        target = tmp_path / "run"
        if kind == "file":
            target.write_text("mine")
        else:
            made(tmp_path)
        with pytest.raises(InputError, match=r"exists: expected a new or empty folder for --out"):
            RunDir.create(target)

    @pytest.mark.parametrize(("there", "words"), [(False, "does not exist"), (True, "holds no config.json")])
    def test_what_is_no_run_directory_is_refused(self, tmp_path, there, words):
        if there:
            (tmp_path / "run").mkdir()
        with pytest.raises(InputError, match=f"is no run directory: it {words}"):
            RunDir.open(tmp_path / "run")

    @pytest.mark.parametrize("version", [FORMAT + 1, 0, None, "1"])
    def test_another_format_is_refused_with_the_version_that_made_it(self, tmp_path, version):
        run = made(tmp_path)
        run.write_json("config.json", {"format": version, "vitreous": "9.8.7"})
        with pytest.raises(InputError, match=rf"of format {version}: .* reads format {FORMAT}.*9\.8\.7"):
            RunDir.open(run.path)

    def test_one_that_is_being_trained_is_not_trained_by_another_too(self, tmp_path):
        run = made(tmp_path)
        fault = "is being trained by another process"
        with run.held(), pytest.raises(InputError, match=fault), RunDir(run.path).held():
            pass
        with RunDir(run.path).held():
            pass

    def test_one_without_a_step_is_discarded_but_for_what_is_not_its_own(self, tmp_path):
        run = made(tmp_path)
        discard(run.path)
        assert list(tmp_path.iterdir()) == []
        made(tmp_path)
        (run.path / ".git").mkdir()
        discard(run.path)
        assert [path.name for path in run.path.iterdir()] == [".git"]


@pytest.mark.skipif(os.name == "nt", reason="folders are not synced there")
@pytest.mark.parametrize(
    ("kind", "number", "well"),
    [
        ("folder", errno.EINVAL, True),
        ("folder", errno.ENOTSUP, True),
        ("folder", errno.EIO, False),
        ("file", errno.EINVAL, False),
    ],
)
def test_a_drive_need_not_sync_folders_but_files(tmp_path, monkeypatch, kind, number, well):
    sync = os.fsync

    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == (kind == "folder"):
            raise OSError(number, os.strerror(number))
        sync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(sys, "platform", "linux")
    with nullcontext() if well else pytest.raises(OSError, match="a cannot be written"):
        write_atomically(tmp_path / "a", b"1")
    assert not list(tmp_path.glob(".*"))


class TestJson:
    def test_comes_back(self, tmp_path):
        run = made(tmp_path)
        values = {"a": [1, 2.5, None, "ü\n\"'"], "b": {"c": True}, "third": 1 / 3}
        run.write_json("plan.json", values)
        assert RunDir.open(run.path).read_json("plan.json") == values

    def test_a_number_that_changed_is_found_unless_the_checksum_was_taken_out(self, tmp_path):
        run = made(tmp_path)
        run.write_json("plan.json", {"mean": [0.485, 1e-9, None], "names": {"ü": "a", 3: "b"}, "off": float("nan")})
        path = run.path / "plan.json"
        path.write_text(path.read_text("utf-8").replace("0.485", "0.487"), "utf-8")
        with pytest.raises(InputError, match=r"plan\.json is damaged, or was changed .*on purpose, remove the line"):
            run.read_json("plan.json")
        lines = path.read_text("utf-8").splitlines()
        path.write_text("\n".join(line for line in lines if '"checksum"' not in line), "utf-8")
        assert run.read_json("plan.json")["mean"] == [0.487, 1e-9, None]

    def test_whichever_bit_of_a_file_falls_over_it_is_refused_or_means_the_same(self, tmp_path):
        run, values = made(tmp_path), {"mean": 0.485, "std": [0.225], "name": "é"}
        run.write_json("plan.json", values)
        content = (run.path / "plan.json").read_bytes()
        for bit in range(0, 8 * len(content), 7):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            (run.path / "plan.json").write_bytes(flipped)
            with suppress(InputError):
                found = run.read_json("plan.json")
                assert {name: found[name] for name in values} == values  # beside it a checksum of another name

    @pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\xff\xfe{}", b"[1]", b"null"])
    def test_damage_is_named(self, tmp_path, content):
        run = made(tmp_path)
        (run.path / "plan.json").write_bytes(content)
        with pytest.raises(InputError, match=r"plan\.json is damaged"):
            run.read_json("plan.json")

    def test_a_missing_file_says_how_to_go_on(self, tmp_path):
        with pytest.raises(InputError, match=r"has no plan\.json: .*train --resume"):
            made(tmp_path).read_json("plan.json")


class TestSplit:
    @pytest.mark.parametrize(
        "name",
        [
            "a.png",
            "cat/a b.png",
            'a,"b",c.png',
            "'a'.png",
            "line\nbreak.png",
            "cr\rlf\r\n.png",
            "ü/猫/🐈.png",
            " a ",
            "a\tb",
            "",
            "#a",
            "\udcff.png",
        ],
    )
    def test_odd_names_come_back(self, tmp_path, name):
        run = made(tmp_path)
        rows = [SplitRow("first.png", "00", "train"), SplitRow(name, "ab12", "validation"), SplitRow("c", "", "test")]
        run.write_split(rows)
        assert run.read_split() == rows

    @pytest.mark.parametrize("content", [None, b"name,hash\na,b\n", b"path,digest,split\na,\xff,train\n"])
    def test_a_missing_or_foreign_file_is_named(self, tmp_path, content):
        run = made(tmp_path)
        if content is not None:
            (run.path / "split.csv").write_bytes(content)
        with pytest.raises(InputError, match=r"split\.csv cannot be read"):
            run.read_split()


class TestWeights:
    def test_a_bit_that_fell_over_is_found(self, tmp_path):
        run = made(tmp_path)
        run.write_weights(checkpoint(4).tensors)
        path = run.path / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-3] ^= 4
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"is damaged \(its checksum differs\).*--resume"):
            run.read_weights()

    def test_come_back_bit_for_bit(self, tmp_path):
        run, tensors = made(tmp_path), checkpoint(4).tensors
        run.write_weights(tensors)
        read = run.read_weights()
        assert set(read) == set(tensors)
        assert all(
            torch.equal(read[name], tensors[name]) and read[name].dtype == t.dtype for name, t in tensors.items()
        )

    def test_an_unfinished_run_says_how_to_go_on(self, tmp_path):
        with pytest.raises(InputError, match=r"not finished; .*--resume"):
            made(tmp_path).read_weights()

    @pytest.mark.parametrize("keep", [0, 5, 100, -1])
    def test_a_truncated_file_is_named(self, tmp_path, keep):
        run = made(tmp_path)
        run.write_weights(checkpoint(4).tensors)
        file = run.path / "model.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
            run.read_weights()


class TestAtomicWrites:
    def test_a_failed_write_leaves_the_old_file_and_nothing_else(self, tmp_path):
        target = tmp_path / "config.json"
        write_atomically(target, b"old")

        def fail(temporary):
            temporary.write_bytes(b"half")
            raise RuntimeError("power")

        with pytest.raises(RuntimeError, match="power"):
            write_whole(target, fail)
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
        assert target.read_bytes() == b"old"

    def test_what_the_system_says_of_a_failed_write_is_kept(self, tmp_path):
        def fail(temporary):
            raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.raises(OSError, match=r"^.*config\.json cannot be written: No space left on device$") as told:
            write_whole(tmp_path / "config.json", fail)
        assert told.value.errno == errno.ENOSPC

    def test_a_write_replaces_the_file_whole(self, tmp_path):
        target = tmp_path / "config.json"
        write_atomically(target, b"a longer text")
        with open(target, "rb") as reader:
            write_atomically(target, b"new")
            assert reader.read() == b"a longer text"  # who reads the old file is not disturbed
        assert target.read_bytes() == b"new"
        assert len(list(tmp_path.iterdir())) == 1

    @pytest.mark.skipif(sys.platform == "win32", reason="the limit on file sizes is POSIX")
    def test_a_full_disk_is_an_os_error_and_leaves_what_was_there(self, tmp_path):
        run = made(tmp_path)
        run.save(checkpoint(1))
        run.write_json("plan.json", {"old": 1})
        before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
        text = """
import resource, signal, sys
sys.dont_write_bytecode = True  # a module of which a half is kept would be taken for whole
import torch
from vitreous.rundir import Checkpoint, RunDir
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
run, tensors = RunDir.open(sys.argv[1]), {"a": torch.zeros(100_000)}
for write in (
    lambda: run.save(Checkpoint(2, tensors, {})),
    lambda: run.write_weights(tensors),
    lambda: run.write_json("plan.json", {"new": "x" * 100_000}),
):
    try:
        write()
        print("written")
    except OSError as fault:
        print(isinstance(fault, ValueError), end=" ")
"""
        ran = finished(script, text, str(run.path))
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "False False False ", "")
        assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


class TestCheckpoints:
    def test_the_newest_comes_back_bit_for_bit(self, tmp_path):
        run = made(tmp_path)
        for step in (9, 10, 100):  # which would sort otherwise as words
            run.save(checkpoint(step))
        found, said = newest(run)
        assert same(found, checkpoint(100))
        assert said == []

    def test_none_is_none(self, tmp_path):
        assert newest(made(tmp_path)) == (None, [])

    def test_two_are_kept_and_orphans_go(self, tmp_path):
        run = made(tmp_path)
        (run.path / "last" / ".step-000000001.safetensors-abcd.tmp").write_bytes(b"half")
        for step in (1, 2, 3):
            run.save(checkpoint(step))
        names = sorted(os.listdir(run.path / "last"))
        assert names == ["step-000000002.safetensors", "step-000000003.safetensors"]

    def test_an_orphan_is_never_taken_for_a_checkpoint(self, tmp_path):
        run = made(tmp_path)
        run.save(checkpoint(1))
        whole = (run.path / "last" / "step-000000001.safetensors").read_bytes()
        (run.path / "last" / ".step-000000002.safetensors-abcd.tmp").write_bytes(whole)
        assert same(newest(run)[0], checkpoint(1))

    def test_a_step_saved_twice_is_the_later_one(self, tmp_path):
        run = made(tmp_path)
        run.save(checkpoint(5))
        run.save(Checkpoint(5, {"a": torch.ones(2)}, {}))
        assert same(newest(run)[0], Checkpoint(5, {"a": torch.ones(2)}, {}))

    def test_a_bit_flipped_anywhere_is_found_and_the_one_before_used(self, tmp_path):
        run = made(tmp_path)
        run.save(checkpoint(1))
        run.save(checkpoint(2))
        file = run.path / "last" / "step-000000002.safetensors"
        whole = file.read_bytes()
        (header,) = struct.unpack_from("<Q", whole)
        rng = np.random.default_rng(0)
        places = {
            *range(8),
            *rng.integers(8, 8 + header, 120).tolist(),
            *rng.integers(8 + header, len(whole), 80).tolist(),
        }
        missed = []
        for place in sorted(places):
            bit = int(rng.integers(8))
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            file.write_bytes(damaged)
            found, said = newest(run)
            if not (same(found, checkpoint(1)) and len(said) == 1 and f"{file} is damaged" in said[0]):
                missed.append((place, bit, said))
        assert missed == []
        file.write_bytes(whole)
        assert same(newest(run)[0], checkpoint(2))

    @pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 200, 700, -1])
    def test_a_truncated_one_is_found_and_the_one_before_used(self, tmp_path, keep):
        run = made(tmp_path)
        run.save(checkpoint(1))
        run.save(checkpoint(2))
        file = run.path / "last" / "step-000000002.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        found, said = newest(run)
        assert same(found, checkpoint(1))
        assert f"{file} is damaged" in said[0]

    def test_where_all_are_damaged_all_are_named_and_nothing_begins_anew(self, tmp_path):
        run = made(tmp_path)
        run.save(checkpoint(1))
        run.save(checkpoint(2))
        for file in (run.path / "last").iterdir():
            file.write_bytes(b"x" * 100)
        said = []
        with pytest.raises(InputError, match="no checkpoint is whole"):
            run.newest(said.append)
        assert [("step-000000002" in said[0]), ("step-000000001" in said[1])] == [True, True]

    def test_a_save_over_a_damaged_one_leaves_a_good_one(self, tmp_path):
        run = made(tmp_path)
        run.save(checkpoint(1))
        run.save(checkpoint(2))
        (run.path / "last" / "step-000000002.safetensors").write_bytes(b"")
        run.save(checkpoint(2))
        assert same(newest(run)[0], checkpoint(2))

    def test_no_pickle_is_in_a_run(self, tmp_path):
        run = made(tmp_path)
        run.save(checkpoint(1))
        run.write_weights(checkpoint(1).tensors)
        for path in run.path.rglob("*.safetensors"):
            content = path.read_bytes()
            (header,) = struct.unpack_from("<Q", content)
            assert "__metadata__" in json.loads(content[8 : 8 + header]) or path.name == "model.safetensors"
            assert not content.startswith((b"\x80", b"PK"))
