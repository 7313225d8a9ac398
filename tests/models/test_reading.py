"""A model file is read as data: recognised by its bytes, never executed, refused in one line if it is none."""

import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from controlkit.errors import RequestError
from controlkit.models.formats.reading import read_tensors

EXTENSIONS = (".safetensors", ".ckpt", ".pth", ".pt", ".bin")


def tensors():
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}


def write(path, container, data):
    if container == "safetensors":
        save_file(data, path, metadata={"format": "pt"})
    else:
        torch.save(data, path, _use_new_zipfile_serialization=container == "torch zip")
    return path


@pytest.mark.parametrize("container", ["safetensors", "torch zip", "torch pickle"])
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_the_container_is_told_by_its_bytes(tmp_path, container, extension):
    file = read_tensors(write(tmp_path / f"x{extension}", container, tensors()))
    assert file.container == container
    assert file.shapes == {"a.weight": (2, 3), "b": (2,)}
    assert file.dtypes == {"a.weight": "float32", "b": "float16"}
    assert all(torch.equal(file[name], value) for name, value in tensors().items())


def test_a_header_of_any_length_is_safetensors(tmp_path):
    """Its first bytes are a length, here 0x80 and 0x4b50, which begin a pickle and a zip elsewhere."""
    for length in (0x80, 0x4B50):
        header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
        (tmp_path / "x.ckpt").write_bytes(length.to_bytes(8, "little") + header + bytes(4))
        assert read_tensors(tmp_path / "x.ckpt").shapes == {"a": (1,)}


class Payload:
    """What pickle would call on loading: it leaves a file behind."""

    def __init__(self, call, argument):
        self.call, self.argument = call, argument

    def __reduce__(self):
        return self.call, (self.argument,)


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("container", ["torch zip", "torch pickle"])
@pytest.mark.parametrize("call", [os.system, eval, exec])
def test_a_malicious_pickle_executes_nothing(tmp_path, extension, container, call):
    trace = tmp_path / "trace"
    argument = f"touch {trace}" if call is os.system else f"open({str(trace)!r}, 'w').close()"
    path = write(tmp_path / f"x{extension}", container, {**tensors(), "evil": Payload(call, argument)})
    pickle.loads(pickle.dumps(Payload(call, argument)))
    assert trace.exists(), "the payload does nothing even when it is let loose"
    trace.unlink()
    if call is os.system:
        with pytest.raises(RequestError, match="nothing of it was executed"):
            read_tensors(path)
    else:
        assert set(read_tensors(path)) == set(tensors())
    assert not trace.exists()


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_bare_malicious_pickle_executes_nothing(tmp_path, extension):
    trace = tmp_path / "trace"
    (tmp_path / f"x{extension}").write_bytes(pickle.dumps(Payload(os.system, f"touch {trace}")))
    with pytest.raises(RequestError, match="nothing of it was executed"):
        read_tensors(tmp_path / f"x{extension}")
    assert not trace.exists()


class TrainerCallback:
    """Stands for a class of a training tool that is not installed here."""


@pytest.mark.parametrize("container", ["torch zip", "torch pickle"])
def test_tensors_come_out_beside_classes_that_are_not_installed(tmp_path, container, monkeypatch):
    checkpoint = {
        "global_step": 7,
        "callbacks": {TrainerCallback: {"best": TrainerCallback()}},
        "optimizer_states": [{"state": torch.zeros(3)}],
        "state_dict": {"state_dict": tensors()},
    }
    path = write(tmp_path / "x.ckpt", container, checkpoint)
    monkeypatch.delattr(f"{__name__}.TrainerCallback")
    file = read_tensors(path)
    assert set(file) == set(tensors())
    assert file.facts["global_step"] == 7


def test_the_parameter_dict_of_old_embeddings_is_looked_into(tmp_path):
    vectors = torch.nn.Parameter(torch.rand(2, 8))
    data = {"string_to_param": torch.nn.ParameterDict({"star": vectors}), "name": "thing"}
    file = read_tensors(write(tmp_path / "x.pt", "torch zip", data))
    assert any(torch.equal(value, vectors.data) for value in file.values())
    assert file.facts["name"] == "thing"


@pytest.mark.parametrize("container", ["safetensors", "torch zip", "torch pickle"])
def test_a_file_cut_short_is_refused_in_one_line(tmp_path, container):
    whole = write(tmp_path / "whole", container, {**tensors(), "large": torch.zeros(5000)}).read_bytes()
    for share in (0.02, 0.5, 0.99):
        path = tmp_path / "x.ckpt"
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(RequestError, match=r"get it") as reason:
            read_tensors(path)["large"]
        assert "\n" not in str(reason.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        (b"\x89PNG\r\n\x1a\n0000000000", "is no model file"),
        (b"\x10\0\0\0\0\0\0\0{not json at all}", "header that is not safetensors'"),
        (b"\xff\xff\xff\xff\xff\0\0\0{", "inside its header"),
        (b"\x80\x02K\x01.", "holds what is not read from a pickle"),
    ],
)
def test_what_is_no_model_is_named(tmp_path, content, words):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=words) as reason:
        read_tensors(path)
    assert "\n" not in str(reason.value)


def test_foreign_zips_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(RequestError, match="not one of torch"):
        read_tensors(tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    with pytest.raises(RequestError, match="compressed zip"):
        read_tensors(tmp_path / "b.ckpt")
    with pytest.raises(RequestError, match="cannot be read"):
        read_tensors(tmp_path / "nowhere.ckpt")


def test_inspecting_does_not_read_the_weights(tmp_path):
    """A sparse file of 64 GB: whoever read it whole would not come back."""
    header = b'{"w":{"dtype":"F16","shape":[32000000000],"data_offsets":[0,64000000000]}}'
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 64_000_000_000)
    assert read_tensors(path).shapes == {"w": (32_000_000_000,)}
