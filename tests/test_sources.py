"""What the user typed, to pictures with their targets."""

import io
import json
import os
import pickle
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vitreous.data.sources import open_pictures, open_source
from vitreous.data.tables import Columns
from vitreous.errors import InputError


def grow(root: Path, *names: str) -> Path:
    """Files that hold their own name: what a picture decodes to is not asked here."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name, encoding="utf-8")
    return root


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def pack(path: Path, *members: str | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            content = info.name.encode() if info.isreg() else b""
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def contents(source) -> list[str]:
    return [bytes(source.read(i)).decode() for i in range(len(source))]


class TestFolders:
    def test_class_folders_give_classes(self, tmp_path):
        source = open_source(grow(tmp_path, "dog/b.JPG", "cat/a.png", "cat/deep/er/c.webp"))
        assert source.kind == "folder"
        assert source.location == str(tmp_path)
        assert source.names == ("cat/a.png", "cat/deep/er/c.webp", "dog/b.JPG")
        assert source.columns["class"].tolist() == ["cat", "cat", "dog"]
        assert source.splits.tolist() == ["", "", ""]
        assert source.groups is None
        assert contents(source) == list(source.names)

    @pytest.mark.parametrize("validation", ["val", "valid", "validation", "dev", "Val"])
    def test_split_folders_give_splits(self, tmp_path, validation):
        names = ("Train/cat/1.png", "Train/dog/1.png", f"{validation}/cat/2.png", "TEST/dog/x/3.png")
        source = open_source(grow(tmp_path, *names))
        found = dict(
            zip(source.names, zip(source.splits.tolist(), source.columns["class"].tolist(), strict=True), strict=True)
        )
        assert found == dict(
            zip(names, [("train", "cat"), ("train", "dog"), ("validation", "cat"), ("test", "dog")], strict=True)
        )

    def test_hidden_files_are_passed_over_and_others_counted(self, tmp_path):
        names = ("cat/a.png", "cat/.DS_Store", "cat/._a.png", "__MACOSX/cat/a.png", ".git/x.png", "cat/Thumbs.db",
                 "cat/notes.txt", "LICENSE", "dog/a.png", "stray.png")  # fmt: skip
        source = open_source(grow(tmp_path, *names))
        assert source.names == ("cat/a.png", "dog/a.png")
        assert sorted(source.ignored) == ["LICENSE", "cat/notes.txt", "stray.png"]

    def test_pictures_directly_in_a_split_are_counted_out(self, tmp_path):
        source = open_source(grow(tmp_path, "train/cat/a.png", "train/dog/a.png", "train/b.png", "test/c.png"))
        assert source.names == ("train/cat/a.png", "train/dog/a.png")
        assert source.ignored == ("test/c.png", "train/b.png")

    def test_a_class_may_be_called_train(self, tmp_path):
        source = open_source(grow(tmp_path, "train/a.png", "car/a.png"))
        assert source.columns["class"].tolist() == ["car", "train"]

    def test_a_folder_beside_the_splits_is_counted_out(self, tmp_path):
        source = open_source(grow(tmp_path, "train/cat/a.png", "test/cat/b.png", "unlabelled/x/c.png"))
        assert source.ignored == ("unlabelled/x/c.png",)

    def test_accents_written_in_two_ways_are_one_class(self, tmp_path):
        source = open_source(grow(tmp_path, "train/caf\u00e9/a.png", "train/tea/a.png", "test/cafe\u0301/b.png"))
        assert set(source.columns["class"]) == {"caf\u00e9", "tea"}
        assert contents(source) == list(source.names)

    @pytest.mark.parametrize(
        ("names", "words"),
        [
            (["a.png", "b.png"], r"holds 2 pictures, but no class folders[^$]*table"),
            (["a.png", "labels.csv"], r"perhaps you meant .*labels\.csv"),
            (["train/a.png", "test/b.png"], "test, train hold pictures, but no class folders"),
            (["cat/a.txt", "cat/b.raw"], r"no pictures \(2 other files, such as cat/a.txt\)"),
            ([], "holds no pictures"),
            (["train/cat/a.png", "test/hat/b.png"], r"no pictures in train:\n  hat \(in test\)"),
            (["train/cat/a.png", "car/b.png"], "If it is a split, move the others away; if it is a class"),
        ],
    )
    def test_a_folder_that_is_no_training_folder_is_refused(self, tmp_path, names, words):
        with pytest.raises(InputError, match=words):
            open_source(grow(tmp_path, *names))

    def test_links_are_followed_but_not_in_circles(self, tmp_path):
        real = grow(tmp_path / "elsewhere", "x.png")
        root = grow(tmp_path / "photos", "cat/a.png")
        try:
            (root / "dog").symlink_to(real, target_is_directory=True)
            (root / "cat/loop").symlink_to(root, target_is_directory=True)
        except OSError:
            pytest.skip("links need a privilege here")
        assert open_source(root).names == ("cat/a.png", "dog/x.png")

    def test_a_picture_that_is_gone_is_named_when_read(self, tmp_path):
        source = open_source(grow(tmp_path, "cat/a.png", "dog/b.png"))
        (tmp_path / "dog/b.png").unlink()
        with pytest.raises(InputError, match=r"dog/b\.png cannot be read: No such file"):
            source.read(1)


class TestTables:
    def test_a_csv_gives_paths_targets_splits_and_groups(self, tmp_path):
        grow(tmp_path, "p/1.png", "p/2.png", "p/3.png")
        table = write(
            tmp_path / "t.csv",
            'id,File,age,patient,split\n7,p/1.png,1.5,A,train\n8,"p/2.png",2,B,Val\n9,.\\p\\3.png,3,A,\n',
        )
        source = open_source(table, Columns(group="patient"))
        assert source.kind == "table"
        assert source.names == ("p/1.png", "p/2.png", "p/3.png")
        assert {name: column.tolist() for name, column in source.columns.items()} == {"age": [1.5, 2.0, 3.0]}
        assert source.splits.tolist() == ["train", "validation", ""]
        assert source.groups is not None
        assert source.groups.tolist() == ["A", "B", "A"]
        assert contents(source) == list(source.names)

    @pytest.mark.parametrize(
        ("text", "encoding", "name"),
        [
            ("path,label\na.png,cat\nb.png,dog\n", "utf-8-sig", "t.csv"),
            ("path;label\r\na.png;cat\r\nb.png;dog\r\n", "utf-8", "t.csv"),
            ("path\tlabel\na.png\tcat\nb.png\tdog\n", "utf-8", "t.tsv"),
            (' path , label \n a.png , cat \n"b.png",dog\n', "utf-8", "t.CSV"),
            (",label,where\n0,cat,a.png\n1,dog,b.png\n", "utf-8", "t.csv"),
            ("label,image,other\ncat,a.png,1.5\ndog,b.png,2.5\n", "utf-8", "t.csv"),
        ],
    )
    def test_dialects_of_csv_are_understood(self, tmp_path, text, encoding, name):
        grow(tmp_path, "a.png", "b.png")
        source = open_source(write(tmp_path / name, text, encoding))
        assert source.names == ("a.png", "b.png")
        assert {name: column.tolist() for name, column in source.columns.items()} == {"label": ["cat", "dog"]}

    def test_decimal_commas_beside_semicolons_are_numbers(self, tmp_path):
        grow(tmp_path, "a.png", "b.png")
        source = open_source(write(tmp_path / "t.csv", "path;mm\na.png;1,5\nb.png;2\n"))
        assert source.columns["mm"].tolist() == [1.5, 2.0]

    def test_target_and_path_columns_can_be_chosen(self, tmp_path):
        grow(tmp_path, "a.png", "b.png")
        table = write(tmp_path / "t.csv", "path,front,label,age\nx,a.png,cat,1\ny,b.png,dog,2\n")
        source = open_source(table, Columns.of("age", "front"))
        assert source.names == ("a.png", "b.png")
        assert source.columns["age"].tolist() == [1, 2]
        assert list(source.columns) == ["age"]

    def test_a_fold_of_numbers_is_neither_split_nor_target(self, tmp_path):
        grow(tmp_path, "a.png", "b.png")
        source = open_source(write(tmp_path / "t.csv", "path,age,fold\na.png,1,0\nb.png,2,1\n"))
        assert source.splits.tolist() == ["", ""]
        assert list(source.columns) == ["age"]

    def test_missing_targets_stay_to_be_named_later(self, tmp_path):
        grow(tmp_path, "a.png", "b.png")
        source = open_source(write(tmp_path / "t.csv", "path,age,place\na.png,,here\nb.png,2,\n"))
        assert np.isnan(source.columns["age"][0])
        assert source.columns["place"].tolist() == ["here", ""]

    def test_absolute_paths_in_the_folder_get_relative_names(self, tmp_path):
        root, other = grow(tmp_path / "in", "a.png"), grow(tmp_path / "out", "b.png")
        table = write(root / "t.csv", f"path,y\n{root / 'a.png'},1\n{other / 'b.png'},2\n")
        source = open_source(table)
        assert source.names == ("a.png", (other / "b.png").as_posix())
        assert contents(source) == ["a.png", "b.png"]

    @pytest.mark.parametrize(
        ("text", "options", "words"),
        [
            ("path,y\na.png,1\nno.png,2\n,3\n", {}, r"without a picture in column 'path'[^$]*row 3"),
            ("path,y\na.png,1\nno.png,2\nnot.png,3\n", {}, r"2 of 3 pictures are not there[^$]*row 2: no.png\n  row 3"),
            ("path,y\na.png,1\nb.png,2\na.png,3\n", {}, r"a.png: rows 1, 3 \('y' is 1 and 3\)"),
            ("path,y\na.png,1\n", {"target": ("age",)}, "no target column 'age'. Its columns are: path, y"),
            ("path,y\na.png,1\n", {"path": "p"}, "no path column 'p'"),
            ("path,y\na.png,1\n", {"group": "g"}, "no group column 'g'"),
            ("path,y,g\na.png,1,\nb.png,2,x\n", {"group": "g"}, r"without a group in column 'g'[^$]*row 1"),
            ("path,label,class\na.png,1,cat\n", {}, "several columns may be the target.*label, class"),
            ("path,y,y\na.png,1,2\n", {}, "several columns have the same name: y"),
            ("path,split\na.png,train\nb.png,held\n", {}, "must say train, validation or test, but it holds held"),
            ("name,y\nx,1\n", {}, "no column of picture files.*Its columns are: name, y"),
            ("a.png,1\nb.png,2\n", {}, "has no header"),
            ("path,y\na.png,1,2\n", {}, "cannot be read as a table"),
            ("", {}, "cannot be read as a table"),
        ],
    )
    def test_faults_of_a_table_are_named(self, tmp_path, text, options, words):
        grow(tmp_path, "a.png", "b.png")
        with pytest.raises(InputError, match=words):
            open_source(write(tmp_path / "t.csv", text), Columns(**options))

    def test_a_csv_that_is_not_utf8_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="not UTF-8"):
            open_source(write(tmp_path / "t.csv", "path,label\ncaf\u00e9.png,caf\u00e9\n", "latin-1"))

    def test_the_same_row_twice_is_no_contradiction(self, tmp_path):
        grow(tmp_path, "a.png")
        assert len(open_source(write(tmp_path / "t.csv", "path,y\na.png,1\na.png,1\n"))) == 2

    def test_a_parquet_of_paths(self, tmp_path):
        grow(tmp_path, "a.png", "b.png")
        labels = pa.array(["cat", "dog"]).dictionary_encode()
        pq.write_table(pa.table({"path": ["a.png", "b.png"], "label": labels}), tmp_path / "t.parquet")
        source = open_source(tmp_path / "t.parquet")
        assert source.columns["label"].tolist() == ["cat", "dog"]
        assert contents(source) == ["a.png", "b.png"]

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_a_parquet_of_pictures_themselves(self, tmp_path, wrapped):
        images = [{"bytes": b"A", "path": None}, {"bytes": b"B", "path": "b.png"}] if wrapped else [b"A", b"B"]
        features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
        table = pa.table({"image": images, "label": [1, 0]}).replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
        pq.write_table(table, tmp_path / "t.parquet")
        source = open_source(tmp_path / "t.parquet")
        assert source.names == ("image[0]", "image[1]")
        assert source.columns["label"].tolist() == ["dog", "cat"]
        assert contents(source) == ["A", "B"]

    def test_a_parquet_with_an_empty_picture_is_refused(self, tmp_path):
        pq.write_table(pa.table({"image": [b"A", None, b""], "y": [1, 2, 3]}), tmp_path / "t.parquet")
        with pytest.raises(InputError, match=r"without a picture[^$]*row 2\n  row 3"):
            open_source(tmp_path / "t.parquet")

    def test_a_file_that_is_no_parquet_is_refused_with_what_to_do(self, tmp_path):
        told = r"t\.parquet: a whole Parquet file was expected, but .* \[Parquet magic bytes.*\]\. Copy it again"
        with pytest.raises(InputError, match=told):
            open_source(write(tmp_path / "t.parquet", "nonsense"))


class TestArrays:
    def save(self, path: Path, **arrays) -> Path:
        np.savez(path, **arrays)
        return path

    def test_splits_come_from_the_keys(self, tmp_path):
        x = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2)
        path = self.save(
            tmp_path / "a.npz", x_train=x[:3], y_train=[0, 1, 2], x_val=x[3:4], y_val=[1], x_test=x[4:], y_test=[0, 1]
        )
        source = open_source(path)
        assert source.kind == "arrays"
        assert source.names == ("x_train[0]", "x_train[1]", "x_train[2]", "x_val[0]", "x_test[0]", "x_test[1]")
        assert source.splits.tolist() == ["train"] * 3 + ["validation"] + ["test"] * 2
        assert source.columns["y"].tolist() == [0, 1, 2, 1, 0, 1]
        for i in range(6):
            np.testing.assert_array_equal(source.read(i), x[i])

    @pytest.mark.parametrize(
        ("pictures", "labels"), [("images", "labels"), ("X", "y"), ("train_images", "train_labels"), ("data", "target")]
    )
    def test_other_names_are_known(self, tmp_path, pictures, labels):
        path = self.save(tmp_path / "a.npz", **{pictures: np.zeros((2, 4, 4, 3)), labels: np.array([[3], [4]])})
        [column] = open_source(path).columns.values()
        assert column.tolist() == [3, 4]

    def test_wide_labels_are_several_columns_and_groups_are_kept(self, tmp_path):
        path = self.save(tmp_path / "a.npz", images=np.zeros((2, 4, 4)), labels=[[0, 1], [1, 1]], who=["a", "b"])
        source = open_source(path, Columns(group="who"))
        assert {name: column.tolist() for name, column in source.columns.items()} == {
            "labels_0": [0, 1],
            "labels_1": [1, 1],
        }
        assert source.groups is not None
        assert source.groups.tolist() == ["a", "b"]

    def test_targets_can_be_chosen(self, tmp_path):
        path = self.save(tmp_path / "a.npz", images=np.zeros((2, 4, 4)), labels=[0, 1], age=[4.5, 5.5])
        assert list(open_source(path, Columns(("age",))).columns) == ["age"]

    @pytest.mark.parametrize(
        ("arrays", "options", "words"),
        [
            ({"a": np.zeros((2, 4, 4)), "b": np.zeros(2)}, {}, r"holds a, b\. Expected x_train"),
            ({"x": np.zeros((2, 16)), "y": np.zeros(2)}, {}, r"x has shape \(2, 16\)"),
            ({"x": np.zeros((2, 4, 4)), "y": np.zeros(3)}, {}, r"y has shape \(3,\) .*beside 2 pictures"),
            ({"x_train": np.zeros((2, 4, 4)), "y_train": np.zeros(2), "x_test": np.zeros((1, 4, 4))}, {}, "only some"),
            ({"x": np.zeros((2, 4, 4)), "y": np.zeros(2)}, {"target": ("age",)}, "no target 'age' beside x"),
            ({"x": np.zeros((2, 4, 4)), "y": np.zeros(2)}, {"group": "who"}, "no group 'who' beside x"),
            ({"x": np.zeros((2, 4, 4)), "y": np.array([{}, {}])}, {}, "of plain arrays"),
        ],
    )
    def test_faults_of_arrays_are_named(self, tmp_path, arrays, options, words):
        with pytest.raises(InputError, match=words):
            open_source(self.save(tmp_path / "a.npz", **arrays), Columns(**options))


class TestTars:
    def test_a_tar_is_like_the_folder_it_holds(self, tmp_path):
        path = pack(tmp_path / "p.tar", "./dog/b.png", "./cat/a.png", "./cat/._a.png", "./README")
        source = open_source(path)
        assert source.kind == "tar"
        assert source.names == ("cat/a.png", "dog/b.png")
        assert source.columns["class"].tolist() == ["cat", "dog"]
        assert source.ignored == ("README",)
        assert [text.removeprefix("./") for text in contents(source)] == list(source.names)

    @pytest.mark.parametrize(
        "members", [["p/train/cat/a.png", "p/test/cat/b.png"], ["data/train/cat/a.png", "data/val/cat/b.png"]]
    )
    def test_a_folder_around_the_splits_is_looked_through(self, tmp_path, members):
        source = open_source(pack(tmp_path / "p.tar", *members))
        assert set(source.columns["class"]) == {"cat"}
        assert source.splits.tolist()[-1] in ("train", "validation")

    def test_it_is_read_by_many_threads_and_other_processes(self, tmp_path):
        source = open_source(pack(tmp_path / "p.tar", *(f"c{i % 3}/{i:03}.png" for i in range(200))))
        read = pickle.loads(pickle.dumps(source.read))
        with ThreadPoolExecutor(8) as pool:
            assert [content.decode() for content in pool.map(read, range(200))] == list(source.names)

    def test_of_members_with_one_name_the_last_counts(self, tmp_path):
        path = pack(tmp_path / "p.tar", "cat/a.png", "./cat/a.png", "dog/a.png")
        assert contents(open_source(path)) == ["./cat/a.png", "dog/a.png"]

    def test_links_and_devices_are_never_followed(self, tmp_path):
        link, device = tarfile.TarInfo("cat/b.png"), tarfile.TarInfo("cat/c.png")
        link.type, link.linkname, device.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.CHRTYPE
        source = open_source(pack(tmp_path / "p.tar", "cat/a.png", link, device))
        assert source.names == ("cat/a.png",)
        assert source.ignored == ("cat/b.png", "cat/c.png")

    @pytest.mark.parametrize("name", ["../a.png", "cat/../../a.png", "/cat/a.png", "C:/cat/a.png"])
    def test_members_that_point_outside_are_refused(self, tmp_path, name):
        with pytest.raises(InputError, match="outside of the folder"):
            open_source(pack(tmp_path / "p.tar", "cat/b.png", name))

    def test_a_tar_that_is_cut_off_is_refused(self, tmp_path):
        path = pack(tmp_path / "p.tar", "cat/a.png", "cat/b.png")
        source = open_source(path)
        path.write_bytes(path.read_bytes()[:1540])
        with pytest.raises(InputError, match="cannot be read as an uncompressed tar"):
            open_source(path)
        with pytest.raises(InputError, match=r"cat/b\.png in .* is cut off: 4 of 9 bytes"):
            source.read(1)

    @pytest.mark.parametrize("name", ["p.tar.gz", "p.tgz", "p.zip"])
    def test_packed_files_are_to_be_unpacked(self, tmp_path, name):
        with pytest.raises(InputError, match="unpack it"):
            open_source(write(tmp_path / name, "anything"))

    def test_a_compressed_tar_under_a_plain_name_is_refused(self, tmp_path):
        with tarfile.open(tmp_path / "p.tar", "w:gz"):
            pass
        with pytest.raises(InputError, match="uncompressed tar"):
            open_source(tmp_path / "p.tar")


class TestOthers:
    def test_digits_come_without_files(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        source = open_source("digits")
        first = source.read(0)
        assert isinstance(first, np.ndarray)
        assert (first.shape, first.dtype, first.max()) == ((8, 8), np.uint8, 239)  # 15 of 16, of 255
        assert (len(source), source.location, source.names[12]) == (1797, "digits", "digits[12]")
        assert sorted(set(source.columns["class"])) == list("0123456789")

    def test_a_folder_called_digits_comes_first(self, tmp_path, monkeypatch):
        grow(tmp_path, "digits/cat/a.png")
        monkeypatch.chdir(tmp_path)
        assert open_source("digits").kind == "folder"

    def test_without_scikit_learn_the_digits_say_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        with pytest.raises(InputError, match=r"pip install 'vitreous\[demo\]'"):
            open_source("digits")

    def test_a_path_that_is_not_there_has_near_names(self, tmp_path):
        grow(tmp_path, "Photos/cat/a.png")
        with pytest.raises(InputError, match=r"does not exist\. Near it: Photos\."):
            open_source(tmp_path / "photo")
        with pytest.raises(InputError, match="neither does the folder"):
            open_source(tmp_path / "no" / "photo")

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"group": "who"}, "Groups are for tables"),
            ({"path": "p"}, "path column is for tables"),
            ({"target": ("age",)}, "no target age: what it has is class"),
        ],
    )
    def test_options_of_tables_are_refused_for_folders(self, tmp_path, options, words):
        with pytest.raises(InputError, match=words):
            open_source(grow(tmp_path, "cat/a.png"), Columns(**options))

    def test_a_file_of_another_kind_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="is not a folder, a table"):
            open_source(write(tmp_path / "a.png", ""))


class TestPictures:
    def test_files_folders_and_arrays_are_listed_in_order(self, tmp_path):
        grow(tmp_path, "f/b.png", "f/a/c.jpg", "f/.hidden.png", "f/notes.txt", "odd.picture")
        array = np.zeros((3, 4))
        source = open_pictures([tmp_path / "odd.picture", array, str(tmp_path / "f")])
        names = [name.removeprefix(tmp_path.as_posix() + "/") for name in source.names]
        assert names == ["odd.picture", "array 1", "f/a/c.jpg", "f/b.png"]
        assert source.read(1) is array
        assert source.read(3) == b"f/b.png"
        assert source.kind == "pictures"
        assert source.columns == {}
        assert [os.path.basename(name) for name in source.ignored] == ["notes.txt"]

    def test_all_paths_that_are_not_there_are_named(self, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match=r"No such pictures:\n.*a\.png does not exist.\n.*empty holds no pictures"):
            open_pictures([tmp_path / "a.png", tmp_path / "empty"])

    def test_names_stay_as_they_were_typed(self, tmp_path, monkeypatch):
        monkeypatch.chdir(grow(tmp_path, "a.png"))
        source = open_pictures(["a.png"])
        monkeypatch.chdir("/")
        assert source.names == ("a.png",)
        assert source.read(0) == b"a.png"
