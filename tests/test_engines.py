"""Engines: OpenVINO and ONNX Runtime compute what PyTorch computes, and files that hold their graphs."""

import copy
import dataclasses
import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_models import tiny_config, tiny_model

from vitreous.calibration import Calibration
from vitreous.data.preprocess import InputSpec, Size
from vitreous.data.tables import Columns
from vitreous.data.targets import Task
from vitreous.errors import InputError
from vitreous.infer.card import Card, Seen
from vitreous.infer.engines import ONNXEngine, OpenVINOEngine, TorchEngine, candidates, import_openvino, installed
from vitreous.infer.files import FORMATS, Format, open_export
from vitreous.infer.graph import export_graphs
from vitreous.infer.quantize import quantized
from vitreous.model.vit import VisionTransformer

CPU = torch.device("cpu")
CLASSES = Task("classification", tuple("abcde"), column="class")
LABELS = Task("multilabel", tuple("abcde"))
NUMBERS = Task("regression", tuple("abcde"), ("mm",) * 5, (10.0, -3.0, 0.5, 200.0, 0.0), (2.0, 0.1, 7.0, 50.0, 1.0))

# A tokenizer a row, and between them every position, pool, depth, number of sizes, and task.
CASES: dict[str, dict[str, Any]] = {
    "patch": {
        "fields": {"width": 64, "depth": 1, "position": "learned", "pool": "class", "class_position": True},
        "depth": "uint8",
        "sizes": ((12, 40), (24, 24)),
        "task": CLASSES,
    },
    "t2t": {"fields": {"position": "relative", "position_at": "every"}, "depth": "uint16", "task": LABELS},
    "performer": {
        "fields": {"depth": 1, "position": "rope2d", "pool": "attention"},
        "depth": "float32",
        "task": NUMBERS,
    },
    "stem": {
        "fields": {
            "depth": 1,
            "position": "none",
            "conditional": True,
            "pool": "class",
            "registers": 2,
            "channels": 1,
        },
        "depth": "uint8",
        "task": CLASSES,
    },
    "convolution": {"fields": {"position": "learned2d", "merge": 2}, "depth": "uint16", "task": NUMBERS},
}


@dataclass(frozen=True)
class Case:
    """A model, its files, and the graphs that are in them."""

    model: VisionTransformer
    card: Card
    files: dict[str, Path]
    graphs: dict[str, dict[Size, Any]]

    def copies(self, format: Format) -> dict[Size, Any]:
        """The graphs of a format, which writing them changes."""
        return {size: format.copy(graph) for size, graph in self.graphs[format.engine].items()}

    def pixels(self, size: Size, count: int) -> np.ndarray:
        return draw(self.card.spec, size, count)


def draw(spec: InputSpec, size: Size, count: int) -> np.ndarray:
    """Noise as the model takes it (count, H, W, C)."""
    return (np.random.default_rng(count).random((count, *size, spec.channels)) * spec.scale).astype(spec.depth)


def make_case(
    folder: Path, kind: str, fields: dict[str, Any], depth: str, task: Task, sizes: tuple[Size, ...] = ()
) -> Case:
    model = tiny_model(tiny_config(kind, **fields))
    channels = model.config.channels
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.3, 0.2, 0.25)[:channels]
    spec = InputSpec(channels, depth, sizes or (model.config.image_size,), mean, std)
    card = Card(spec, task, Calibration(temperature=1.7), "fp32", True, Columns(), {"weights": kind}, Seen("00", "11"))
    programs = export_graphs(model, spec, task, card.calibration)
    files = {format.engine: folder / f"fp32{format.suffix}" for format in FORMATS}
    graphs = {format.engine: {size: format.convert(one) for size, one in programs.items()} for format in FORMATS}
    case = Case(model, card, files, graphs)
    for format in FORMATS:
        format.write(files[format.engine], case.copies(format), card)
    return case


@pytest.fixture(scope="module")
def case(request, tmp_path_factory) -> Case:
    """Made once a row of CASES: pytest runs the tests of a row together."""
    if request.param == "patch":
        return request.getfixturevalue("patch")
    return make_case(tmp_path_factory.mktemp(request.param), request.param, **CASES[request.param])


@pytest.fixture(scope="module")
def patch(tmp_path_factory) -> Case:
    """A model of two sizes, wide enough that its matrices are most of its file."""
    return make_case(tmp_path_factory.mktemp("patch"), "patch", **CASES["patch"])


def size_of(model: VisionTransformer) -> int:
    return sum(weight.numel() * 4 for weight in model.parameters())


@pytest.mark.parametrize("case", CASES, indirect=True)
class TestParity:
    """Every tokenizer, position, pool, depth and task, of one size and of several."""

    @pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
    def test_outputs_are_those_of_pytorch_at_any_number_of_pictures(self, case, name):
        card, engine = open_export(case.files[name], 1)
        assert (engine.name, engine.precision, card) == (name, "fp32", case.card)
        reference = TorchEngine(case.model, card.spec, CPU)
        for count in (1, 3, 17, 40):
            for size in card.spec.sizes:
                pixels = case.pixels(size, count)
                expected, outputs = reference.run(pixels), engine.run(pixels)
                assert (outputs.dtype, outputs.shape) == (np.float32, (count, 5))
                assert np.ptp(expected, 0).min() > 1e-3 or count == 1  # noise after noise is told apart
                np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
    def test_answers_in_the_file_are_those_of_the_calibration(self, case, name):
        card, engine = open_export(case.files[name], 1)
        for size in card.spec.sizes:
            outputs, answers = engine.both(case.pixels(size, 7))
            expected = case.card.calibration.answers(case.card.task, outputs)
            np.testing.assert_allclose(answers, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("case", ["t2t"], indirect=True)
def test_files_take_pixels_of_16_bits_as_they_are_stored(case):
    model = onnx.load(case.files["onnxruntime"])
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT16
    with zipfile.ZipFile(case.files["openvino"]) as file:
        [name] = [name for name in file.namelist() if name.endswith(".xml")]
        graph = import_openvino().Core().read_model(model=file.read(name), weights=file.read("weights.bin"))
    assert graph.inputs[0].get_element_type() == import_openvino().Type.u16


class TestTorch:
    def test_bf16_is_near_fp32_and_is_not_it(self, patch):
        pixels = patch.pixels((12, 40), 5)
        exact = TorchEngine(patch.model, patch.card.spec, CPU).run(pixels)
        coarse = TorchEngine(patch.model, patch.card.spec, CPU, "bf16").run(pixels)
        assert coarse.dtype == np.float32
        assert 1e-4 < np.abs(coarse - exact).max() < 0.1 * np.abs(exact).max()

    @pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # as inductor is imported
    def test_compiled_gives_the_same_for_numbers_of_pictures_that_it_is_filled_up_to(self, patch):
        model, spec = tiny_model(tiny_config("patch", depth=1)), patch.card.spec
        engine = TorchEngine(model, spec, CPU, compiled=True)
        assert (engine.name, engine.precision) == ("compiled", "fp32")
        pixels = patch.pixels((12, 40), 4)
        exact = TorchEngine(model, spec, CPU).run(pixels)
        for count in (4, 3):
            np.testing.assert_allclose(engine.run(pixels[:count]), exact[:count], rtol=0, atol=1e-5)

    @pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
    def test_it_is_compiled_for_every_number_of_every_size_and_is_never_left_uncompiled(self, patch, monkeypatch):
        made: list[tuple[int, ...]] = []

        def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
            made.append(tuple(inputs[0].shape))
            return graph.forward

        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
        model, spec = tiny_model(tiny_config("patch", depth=1)), patch.card.spec
        engine = TorchEngine(model, spec, CPU, compiled=True)
        shapes = [(count, size) for size in spec.sizes for count in engine.batches]
        for count, size in shapes:
            engine.run(patch.pixels(size, count))
        assert len(made) == len(shapes) == 12


class TestONNXFile:
    def test_it_is_one_valid_model_that_holds_the_card_and_the_names(self, patch):
        path = patch.files["onnxruntime"]
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(model, full_check=True)
        weights = [*model.graph.initializer, *(w for graph in branches(model.graph) for w in graph.initializer)]
        assert weights
        assert not any(weight.HasField("data_location") and weight.data_location for weight in weights)
        assert [entry.name for entry in path.parent.iterdir() if entry.suffix == ".data"] == []
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert Card.from_json(metadata["vitreous"], path) == patch.card
        assert json.loads(metadata["names"]) == list("abcde")
        shapes = [
            (v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]) for v in model.graph.input
        ]
        assert shapes == [("pixels", ["batch", "height", "width", 3])]
        assert [value.name for value in model.graph.output] == ["outputs", "answers"]

    def test_two_sizes_share_one_set_of_weights(self, patch):
        assert len(patch.card.spec.sizes) == 2
        assert size_of(patch.model) < patch.files["onnxruntime"].stat().st_size < 1.4 * size_of(patch.model)

    def test_pictures_of_another_size_are_refused_and_not_taken_for_others(self, patch):
        """Not even those that hold as many pixels, alone or together."""
        _, engine = open_export(patch.files["onnxruntime"], 1)
        for size in ((40, 12), (20, 24), (24, 48), (1, 1)):
            with pytest.raises(Exception, match="expected_pixels_of_12x40_or_24x24"):
                engine.run(patch.pixels(size, 2))

    def test_bf16_halves_it_and_computes_with_rounded_weights(self, patch, tmp_path):
        [format] = [format for format in FORMATS if format.engine == "onnxruntime"]
        format.write(tmp_path / "half.onnx", patch.copies(format), changed(patch.card, "bf16"))
        onnx.checker.check_model(onnx.load(tmp_path / "half.onnx"), full_check=True)
        saved = patch.files["onnxruntime"].stat().st_size - (tmp_path / "half.onnx").stat().st_size
        matrices = sum(weight.numel() * 4 for weight in patch.model.parameters() if weight.dim() > 1)
        assert 0.9 * matrices / 2 < saved < 1.1 * matrices / 2
        _, engine = open_export(tmp_path / "half.onnx", 1)
        assert engine.precision == "bf16"
        exact = TorchEngine(patch.model, patch.card.spec, CPU).run(patch.pixels((24, 24), 5))
        off = np.abs(engine.run(patch.pixels((24, 24), 5)) - exact).max()
        assert 1e-4 < off < 0.1 * np.abs(exact).max()


class TestOpenVINOFile:
    def test_two_sizes_share_one_set_of_weights(self, patch):
        with zipfile.ZipFile(patch.files["openvino"]) as file:
            sizes = {entry.filename: entry.file_size for entry in file.infolist()}
        assert list(sizes) == ["graph-12x40.xml", "graph-24x24.xml", "weights.bin", "vitreous.json"]
        assert size_of(patch.model) <= sizes["weights.bin"] < 1.2 * size_of(patch.model)

    def test_graphs_name_and_size_what_they_take_and_give(self, patch):
        with zipfile.ZipFile(patch.files["openvino"]) as file:
            for height, width in patch.card.spec.sizes:
                text = file.read(f"graph-{height}x{width}.xml")
                graph = import_openvino().Core().read_model(model=text, weights=file.read("weights.bin"))
                ports = {port.any_name: str(port.get_partial_shape()) for port in (*graph.inputs, *graph.outputs)}
                assert ports == {"pixels": f"[?,{height},{width},3]", "outputs": "[?,5]", "answers": "[?,5]"}


class TestInt8:
    @pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
    def test_it_is_smaller_and_near(self, patch, tmp_path, format):
        spec = InputSpec(3, "uint8", ((12, 40),), patch.card.spec.mean, patch.card.spec.std)
        pixels = draw(spec, (12, 40), 64)
        path = tmp_path / f"int8{format.suffix}"
        graph = quantized(patch.copies(format)[12, 40], pixels, smooth=False)
        format.write(path, {(12, 40): graph}, changed(patch.card, "int8", spec))
        _, engine = open_export(path, 1)
        exact = TorchEngine(patch.model, spec, CPU).run(pixels[:20])
        found = engine.run(pixels[:20])
        assert engine.precision == "int8"
        assert path.stat().st_size < 0.75 * patch.files[format.engine].stat().st_size
        assert np.abs(found - exact).max() > 1e-3
        assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.98


class TestDamagedFiles:
    """One `InputError`, which names the file and says what was expected."""

    def refused(self, path: Path) -> str:
        with pytest.raises(InputError) as caught:
            open_export(path, 1)
        assert str(path) in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize("ending", ["onnx", "zip"])
    def test_missing_empty_and_foreign_files(self, tmp_path, ending):
        path = tmp_path / f"model.{ending}"
        assert "does not exist: expected a run directory, or a file that `vitreous export` made" in self.refused(path)
        for content in (b"", b"PK\x03\x04 no zip, no model" * 50):
            path.write_bytes(content)
            self.refused(path)

    @pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
    def test_cut_files(self, patch, tmp_path, name):
        whole = patch.files[name].read_bytes()
        path = tmp_path / patch.files[name].name
        for share in (0.1, 0.5, 0.999):
            path.write_bytes(whole[: int(share * len(whole))])
            self.refused(path)

    def test_an_onnx_model_of_another_maker_and_one_whose_card_was_changed(self, patch, tmp_path):
        model = onnx.load(patch.files["onnxruntime"])
        cards = {entry.key: entry for entry in model.metadata_props}
        path, text = tmp_path / "model.onnx", cards["vitreous"].value
        changes = [
            (text[:-20], "the card in it is damaged"),
            ("[]", "the card in it is damaged"),
            (text.replace('"calibration"', '"calibrated"'), "the card in it is damaged"),
            (text.replace('"train": "00"', '"train": ["00"]'), "train: expected text, got ['00']"),
            (text.replace('"format": 1', '"format": 7'), "an export of format 7: this version of vitreous reads 1"),
            (text.replace('"a", "b"', '"a"'), "its card is of another model"),
            (text.replace('"depth": "uint8"', '"depth": "uint16"'), "its card is of another model"),
            (text.replace('"fp32"', '"fp4"'), "precision is 'fp4': expected fp32, bf16, int8"),
        ]
        for changed_text, fault in changes:
            cards["vitreous"].value = changed_text
            path.write_bytes(model.SerializeToString())
            assert fault in self.refused(path)
        whole = patch.files["onnxruntime"].read_bytes()
        path.write_bytes(whole.replace(b'"kind": "class', b'"kind": "\xff\xffass'))
        assert "no ONNX file" in self.refused(path)
        del model.metadata_props[:]
        path.write_bytes(model.SerializeToString())
        assert "has no card: expected a file that `vitreous export` made" in self.refused(path)

    def test_a_graph_that_takes_or_gives_something_else_than_its_card_says(self, patch, tmp_path):
        path = tmp_path / "model.onnx"
        for change in ("input", "output"):
            model = onnx.load(patch.files["onnxruntime"])
            if change == "input":
                model.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1]))
            else:
                first, second = [copy.deepcopy(port) for port in model.graph.output]
                del model.graph.output[:]
                model.graph.output.extend([second, first])
            path.write_bytes(model.SerializeToString())
            assert "its card is of another model" in self.refused(path)

    def rewrite(self, whole: Path, path: Path, packing: int = zipfile.ZIP_STORED, **members: bytes | None) -> None:
        """A .zip again, with some members changed or gone."""
        with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", packing) as new:
            for name in old.namelist():
                content = members.get(name.split(".")[0].replace("-", "_"), old.read(name))
                if content is not None:
                    new.writestr(name, content)

    def test_a_zip_with_missing_foreign_or_packed_members(self, patch, tmp_path):
        whole, path = patch.files["openvino"], tmp_path / "model.zip"
        self.rewrite(whole, path)
        open_export(path, 1)  # as it was
        self.rewrite(whole, path, weights=None)
        assert "holds no weights.bin: expected" in self.refused(path)
        self.rewrite(whole, path, graph_24x24=None)
        assert "holds no graph-24x24.xml" in self.refused(path)
        self.rewrite(whole, path, graph_24x24=b"<net/>")
        assert "OpenVINO cannot read it" in self.refused(path)
        self.rewrite(whole, path, weights=b"")
        assert "OpenVINO cannot read it" in self.refused(path)
        self.rewrite(whole, path, weights=b"too few")
        assert "OpenVINO cannot read it" in self.refused(path)
        self.rewrite(whole, path, vitreous=b"\xff")
        assert "the card in it is damaged" in self.refused(path)
        self.rewrite(whole, path, zipfile.ZIP_DEFLATED)
        assert "vitreous.json in it is packed or too large" in self.refused(path)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("holiday.jpg", b"beach")
        assert "holds no vitreous.json" in self.refused(path)

    def test_a_zip_whose_bytes_were_changed_or_whose_sizes_lie(self, patch, tmp_path):
        whole, path = patch.files["openvino"].read_bytes(), tmp_path / "model.zip"
        with zipfile.ZipFile(patch.files["openvino"]) as file:
            facts = file.getinfo("weights.bin")
            at = facts.header_offset + 200
            directory = whole.rindex(b"weights.bin") - 46
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert "weights.bin in it is damaged" in self.refused(path)
        assert whole[directory : directory + 4] == b"PK\x01\x02"
        path.write_bytes(whole[: directory + 6] + b"\xff" + whole[directory + 7 :])
        assert "zip file version 25.5" in self.refused(path)
        for size in (0xFFFFFF00, facts.file_size + 500, facts.file_size - 4):
            lie = size.to_bytes(4, "little")
            path.write_bytes(whole[: directory + 24] + lie + whole[directory + 28 :])
            fault = self.refused(path)
            assert "weights.bin in it is packed or too large" in fault or "more than is believed" in fault


class TestCandidates:
    def test_what_is_asked_for_is_all_that_is_tried(self):
        assert candidates(CPU, "openvino", "int8") == [("openvino", "int8")]
        assert candidates(CPU, "torch", "fp32") == [("torch", "fp32")]
        assert {name for name, _ in candidates(CPU, "onnxruntime")} == {"onnxruntime"}
        assert {kind for _, kind in candidates(CPU, precision="fp32")} == {"fp32"}
        assert candidates(CPU, precision="bf16")[0] == ("openvino", "bf16")

    def test_pytorch_in_fp32_is_always_among_those_that_are_left_to_choose_from(self):
        assert candidates(CPU)[-1] == ("torch", "fp32")
        assert candidates(CPU, precision="fp32")[-1] == ("torch", "fp32")
        assert candidates(torch.device("cuda"))[-1] == ("torch", "fp32")

    def test_compiling_takes_long_and_is_not_tried_on_a_cpu_unless_asked_for(self):
        assert "compiled" not in {name for name, _ in (*candidates(CPU), *candidates(CPU, precision="fp32"))}
        assert ("compiled", "fp32") in candidates(CPU, "compiled")

    def test_what_cannot_be_had_says_what_can(self):
        with pytest.raises(InputError, match="--engine tensorrt: expected auto, torch, compiled, openvino, onnx"):
            candidates(CPU, "tensorrt")
        with pytest.raises(InputError, match="--precision fp8: expected auto, fp32, bf16, int8"):
            candidates(CPU, precision="fp8")
        with pytest.raises(InputError, match=r"int8 takes openvino or onnxruntime on a CPU: pip install"):
            candidates(CPU, "torch", "int8")
        with pytest.raises(InputError, match="not to be had on cuda"):
            candidates(torch.device("cuda"), "openvino")

    def test_an_engine_that_is_not_installed_says_how_to_get_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "openvino", None)
        assert (installed("openvino"), installed("onnxruntime"), installed("torch")) == (False, True, True)
        with pytest.raises(InputError, match=r"openvino is not installed here: pip install 'vitreous\[fast\]'"):
            candidates(CPU, "openvino")
        assert candidates(CPU)[0] == ("onnxruntime", "fp32")
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        assert {name for name, _ in candidates(CPU)} == {"torch"}
        with pytest.raises(InputError, match="int8 takes openvino or onnxruntime on a CPU: pip install"):
            candidates(CPU, precision="int8")


def test_nothing_that_tells_the_makers_of_openvino_is_ever_imported():
    probe = (
        "import sys; from vitreous.infer.engines import import_openvino, import_quietly; import_openvino(); "
        "import_quietly('nncf'); assert 'openvino' in sys.modules and 'nncf' in sys.modules; "
        "print(sys.modules['openvino_telemetry'], [n for n in sys.modules if n.startswith('openvino_telemetry.')])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "None []\n"), done.stderr


def test_engines_are_of_their_kinds(patch):
    kinds = {name: type(open_export(path, 1)[1]) for name, path in patch.files.items()}
    assert kinds == {"openvino": OpenVINOEngine, "onnxruntime": ONNXEngine}


def changed(card: Card, precision: str, spec: InputSpec | None = None) -> Card:
    return dataclasses.replace(card, precision=precision, spec=spec or card.spec)


def branches(graph: Any) -> list[Any]:
    """All graphs in the nodes of a graph."""
    own = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return [*own, *(inner for one in own for inner in branches(one))]
