"""pack: what is trained on the shards is what would be trained on the folder, to the bit."""

import json
import os
import tarfile
from pathlib import Path

import making
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import vitreous
from vitreous import cli
from vitreous.data import packing
from vitreous.data.decode import decode
from vitreous.data.doctor import check_data, scan
from vitreous.data.index import INDEX
from vitreous.data.packing import pack, parse_bytes
from vitreous.data.sources import Source, open_pictures, open_source
from vitreous.data.tables import Columns
from vitreous.errors import InputError
from vitreous.rundir import RunDir
from vitreous.training.journal import Journal
from vitreous.training.prepare import prepare_again


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders, split, of names that are no keys of WebDataset."""
    root = tmp_path_factory.mktemp("data") / "boxes"
    making.make_shapes(root / "train", each=8)
    making.make_shapes(root / "val", each=3, seed=1)
    making.make_shapes(root / "test", each=2, seed=2)
    (root / "train/red/00.jpg").rename(root / "train/red/a.b.ü.jpg")
    (root / "train/red/notes.txt").write_text("no picture")
    return root


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder as tars and as Parquet, of a few pictures each."""
    root = tmp_path_factory.mktemp("packed")
    for form in ("tar", "parquet"):
        pack(open_source(folder), root / form, form=form, size=1 << 30, pictures=9, threads=2)
    return {form: root / form for form in ("tar", "parquet")}


def same(a: Source, b: Source) -> bool:
    """Whether two sources hold the same pictures with the same targets, splits and groups, in the same order."""
    assert a.names == b.names
    assert a.splits.tolist() == b.splits.tolist()
    assert a.columns.keys() == b.columns.keys()
    for title, column in a.columns.items():
        assert column.dtype.kind == b.columns[title].dtype.kind
        np.testing.assert_array_equal(column, b.columns[title])
    assert (None if a.groups is None else a.groups.tolist()) == (None if b.groups is None else b.groups.tolist())
    return all(np.array_equal(a.read(i), b.read(i)) for i in range(len(a)))


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_the_shards_give_back_what_was_packed(folder, packed, form):
    source, again = open_source(folder), open_source(packed[form])
    assert same(source, again)
    names = sorted(path.name for path in packed[form].iterdir())
    counts = {"test": 1, "train": 3, "validation": 1}
    expected = [f"{split}-{i:06}.{form}" for split, count in counts.items() for i in range(count)]
    assert names == expected + ([INDEX] if form == "tar" else [])
    # Other names of the same: all but the order is there, and without the index too.
    some = open_source(str(packed[form] / f"train-*.{form}"))
    assert set(some.names) == {name for name in source.names if name.startswith("train/")}


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_digests_and_sizes_are_known_without_a_look_at_the_pictures(folder, packed, form):
    again = open_source(packed[form])
    assert scan(Source(**{**vars(again), "read": None}), 1) == scan(open_source(folder), 1)  # pyright: ignore
    assert scan(again, 1, max_pixels=100).faults  # what may be too large is looked at


@pytest.mark.usefixtures("unpainted")
def test_training_on_shards_gives_the_bits_of_training_on_the_folder(folder, packed, tmp_path, monkeypatch):
    monkeypatch.setenv("VITREOUS_CACHE", str(tmp_path / "cache"))
    options = {**making.TINY, "epochs": 1, "batch": 12, "optimizer": "adamw"}
    first = vitreous.train(folder, out=tmp_path / "folder", **options)
    second = vitreous.train(packed["tar"], out=tmp_path / "tar", cache="off", **options)
    assert (second / "split.csv").read_bytes() == (first / "split.csv").read_bytes()
    assert making.same_bits(making.weights(second), making.weights(first))
    assert making.same_bits(making.newest(second).tensors, making.newest(first).tensors)
    assert RunDir.open(second).config()["data"] == str(packed["tar"])
    # A run on the folder goes on with either kind of shards, and is measured and asked with them.
    jobs = [prepare_again(RunDir.open(first), Journal(quiet=True), packed.get(form)) for form in ("", "tar", "parquet")]
    for job in jobs[1:]:
        numbers = np.arange(5)
        assert job.split == jobs[0].split
        assert torch.equal(job.store.gather(numbers), jobs[0].store.gather(numbers))
    predictor = vitreous.load(second)
    a, b = (vitreous.evaluate(predictor, data, say=print) for data in (folder, packed["tar"]))
    assert (a.names, a.answers.tolist()) == (b.names, b.answers.tolist())
    asked = list(predictor.stream(open_pictures([str(packed["tar"] / "test-000000.tar")]), print))
    assert [answer.error for answer in asked] == [""] * 6
    assert [answer.picture for answer in asked][:2] == ["000000000.jpg", "000000001.jpg"]


def test_the_same_source_gives_the_same_bytes(folder, packed, tmp_path):
    pack(open_source(packed["tar"]), tmp_path / "again", size=1 << 30, pictures=9)
    for path in packed["tar"].iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_files_go_in_byte_for_byte_and_others_can_read_them(folder, packed):
    with tarfile.open(packed["tar"] / "train-000000.tar") as tar:
        members = tar.getmembers()
        assert all(m.isreg() and m.mtime == 0 and m.uid == 0 for m in members)
        pairs = [(a, b) for a, b in zip(members[::2], members[1::2], strict=True)]
        assert all(a.name.split(".")[0] == b.name.split(".")[0] and b.name.endswith(".json") for a, b in pairs)
        for picture, note in pairs:
            values = json.load(tar.extractfile(note))  # pyright: ignore
            content = tar.extractfile(picture).read()  # pyright: ignore
            assert content == (folder / values["vitreous"]["name"]).read_bytes()
            assert values["class"] in making.COLOURS
    table = pq.read_table(packed["parquet"] / "test-000000.parquet")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["class"] == {"names": ["blue", "green", "red"], "_type": "ClassLabel"}
    assert list(features) == table.column_names


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_numbers_groups_and_chosen_targets_are_kept(tmp_path, form):
    table = making.make_blobs(tmp_path / "blobs", 6)
    rows = [line.split(",") for line in table.read_text("utf-8").splitlines()[1:]]
    odd = ["", "a", "01", "2", "é", "x,y"]
    lines = [f'{path},{value},{i},{i % 2 == 0},"{odd[i]}",{i // 2}' for i, (path, value) in enumerate(rows)]
    table.write_text("\n".join(["path,place (mm),count,even,word,who", *lines]) + "\n", "utf-8")
    source = open_source(table, Columns(("count", "place (mm)", "even", "word"), group="who"))
    pack(source, tmp_path / "out", form=form, size=1 << 30, group="who")
    again = open_source(tmp_path / "out")
    assert same(source, again)
    assert same(open_source(table, Columns(("even",), group="who")), open_source(tmp_path / "out", Columns(("even",))))


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_arrays_become_files_that_keep_every_value(tmp_path, form):
    rng = np.random.default_rng(0)
    for name, pixels in {
        "grey": rng.integers(0, 256, (3, 6, 5), np.uint8),
        "rgb": rng.integers(0, 256, (3, 6, 5, 3), np.uint8),
        "bands": rng.integers(0, 256, (3, 6, 5, 4), np.uint8),
        "deep": rng.integers(0, 65536, (3, 6, 5), np.uint16),
        "real": rng.normal(size=(3, 6, 5)).astype(np.float32),
    }.items():
        np.savez(tmp_path / f"{name}.npz", x=pixels, y=[0, 1, 0])
        source = open_source(tmp_path / f"{name}.npz")
        pack(source, tmp_path / name, form=form, size=1 << 30)
        again = open_source(tmp_path / name)
        assert again.names == source.names
        for i in range(3):
            a, b = (decode(one.read(i), name) for one in (source, again))
            assert (a.dtype, a.tolist()) == (b.dtype, b.tolist())


def test_shards_are_filled_up_to_their_size(folder, tmp_path):
    source = open_source(folder)
    largest = 4000
    found = pack(source, tmp_path / "out", size=largest)
    sizes = [len(bytes(source.read(i))) for i in range(len(source))]
    assert max(sizes) < largest
    assert found.pictures == len(source) == sum(found.splits.values())
    assert found.shards == len(list((tmp_path / "out").glob("*.tar")))
    for path in (tmp_path / "out").glob("*.tar"):
        with tarfile.open(path) as tar:
            assert sum(m.size for m in tar if not m.name.endswith(".json")) <= largest
    pack(source.only([0, 1]), tmp_path / "small", size=1)  # each is larger than a shard may be
    assert len(list((tmp_path / "small").glob("*.tar"))) == 2


@pytest.mark.parametrize(
    ("text", "size"), [("1GB", 10**9), ("1.5 MB", 1_500_000), ("64MiB", 1 << 26), ("700", 700), ("2g", 2 * 10**9)]
)
def test_sizes_are_read(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "big", "-1GB", "0", "1 XB", "1e9"])
def test_other_sizes_are_refused(text):
    with pytest.raises(InputError, match="expected the size of a shard"):
        parse_bytes(text)


class TestFaults:
    def test_a_folder_that_is_not_empty_is_left_alone(self, folder, packed):
        with pytest.raises(InputError, match="expected a new or empty folder"):
            pack(open_source(folder), packed["tar"], size=1 << 30)

    def test_bad_pictures_are_all_named_and_nothing_stays(self, tmp_path):
        making.make_shapes(tmp_path / "d", each=2)
        for name in ("blue/01.jpg", "red/00.jpg"):
            (tmp_path / "d" / name).write_bytes(b"nonsense")
        source = open_source(tmp_path / "d")
        with pytest.raises(InputError, match=r"2 of 6 pictures cannot be read:\n  blue/01.*\n  red/00[^$]*--skip-bad"):
            pack(source, tmp_path / "out", size=1, threads=2)
        assert [path.name for path in tmp_path.iterdir()] == ["d"]
        said: list[str] = []
        found = pack(source, tmp_path / "out", size=1, skip_bad=True, say=said.append)
        assert found.pictures == 4
        assert "red/00.jpg" in said[0]
        kept = tuple(name for name in source.names if name not in ("blue/01.jpg", "red/00.jpg"))
        assert open_source(tmp_path / "out").names == kept

    def test_a_full_disk_leaves_nothing_and_says_how_much_it_takes(self, folder, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(packing, "write_index", full)
        told = rf"^{tmp_path}/out cannot be .* left behind\. It takes at least 0\.\d MB, and [\d,.]+ are free"
        with pytest.raises(OSError, match=told):
            pack(open_source(folder), tmp_path / "out", size=1 << 30)
        assert not list(tmp_path.iterdir())

    def test_what_a_killed_pack_left_goes_a_day_later_and_what_another_writes_stays(self, folder, packed, tmp_path):
        for name in ("forsaken", "fresh"):
            half = tmp_path / f".out-{name}.partial" / "train-000009.tar"
            half.parent.mkdir()
            half.write_bytes(b"half")
            if name == "forsaken":
                for path in (half, half.parent):
                    os.utime(path, (0, 0))
        (tmp_path / "out").mkdir()
        pack(open_source(folder), tmp_path / "out", size=1 << 30, pictures=9)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".out-fresh.partial", "out"]
        assert making.tree(tmp_path / "out") == {str(tmp_path / "out" / p.name) for p in packed["tar"].iterdir()}

    @pytest.mark.parametrize("at", ["picture", "note"])
    def test_what_changed_after_it_was_packed_is_named_when_it_is_read(self, folder, packed, tmp_path, at):
        path = tmp_path / "train-000000.tar"
        content = bytearray((packed["tar"] / path.name).read_bytes())
        if at == "picture":
            content[600] ^= 1
        else:
            start = content.index(b'"facts": [')
            content[start + 10 : start + 12] = b"99"
        path.write_bytes(content)
        source = open_source(path)
        with pytest.raises(InputError, match=r"is not what was packed|damaged"):
            source.read(0)

    def test_a_note_that_nobody_wrote_is_refused(self, packed, tmp_path):
        content = (packed["tar"] / "test-000000.tar").read_bytes()
        (tmp_path / "a.tar").write_bytes(content.replace(b'"number"', b'"numbed"'))
        with pytest.raises(InputError, match="its note is not one that `vitreous pack` wrote"):
            open_source(tmp_path / "a.tar")

    def test_a_shard_that_is_cut_off_is_found_by_the_index(self, packed, tmp_path):
        for path in packed["tar"].iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes()[: 3000 if path.name == "train-000001.tar" else None])
        with pytest.raises(InputError, match=r"train-000001\.tar is cut off: it has 3,000 bytes"):
            open_source(tmp_path)

    def test_a_shard_that_is_gone_is_named(self, packed, tmp_path):
        for path in packed["tar"].iterdir():
            if path.name != "train-000001.tar":
                (tmp_path / path.name).write_bytes(path.read_bytes())
        with pytest.raises(InputError, match=r"1 of 5 shards are not there:\n.*train-000001\.tar"):
            open_source(tmp_path)


def test_the_verb_packs_and_tells(folder, tmp_path, capsys):
    assert cli.main(["pack", str(folder), str(tmp_path / "out"), "--pictures", "20", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pictures"] == 39
    assert told["splits"] == {"train": 24, "validation": 9, "test": 6}
    assert (told["path"], told["shards"]) == (str(tmp_path / "out"), 4)
    assert check_data(tmp_path / "out").pictures == 39
    assert cli.main(["pack", str(folder), str(tmp_path / "out")]) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")  # it closes no file
def test_webdataset_reads_what_is_packed(folder, packed):
    """With the library itself, where it is there."""
    webdataset = pytest.importorskip("webdataset")
    urls = sorted(map(str, packed["tar"].glob("train-*.tar")))
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(found) == 24
    for sample in found:
        note = json.loads(sample["json"])
        [picture] = [sample[suffix] for suffix in ("jpg", "png") if suffix in sample]
        assert picture == (folder / note["vitreous"]["name"]).read_bytes()


def test_hugging_face_reads_what_is_packed_and_is_read(folder, packed, tmp_path, monkeypatch):
    """With the library itself, where it is there; what it reads is read back through it."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    splits = datasets.load_dataset(str(packed["parquet"]), cache_dir=str(tmp_path / "hf"))
    assert {name: len(part) for name, part in splits.items()} == {"train": 24, "validation": 9, "test": 6}
    assert splits["train"].features["class"].names == ["blue", "green", "red"]
    first = splits["train"][0]
    with Image.open(folder / json.loads(first["vitreous"])["name"]) as image:
        assert np.array_equal(np.asarray(image), np.asarray(first["image"]))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: splits)
    source, again = open_source(folder), open_source("hf://owner/boxes", Columns(("class",)))
    assert again.kind == "hub"
    assert sorted(again.splits.tolist()) == sorted(source.splits.tolist())
    by_content = {bytes(source.read(i)): source.columns["class"][i] for i in range(len(source))}
    assert [by_content[bytes(again.read(i))] for i in range(len(again))] == again.columns["class"].tolist()
