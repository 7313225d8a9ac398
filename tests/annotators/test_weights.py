"""Where weights are looked for, and in which order."""

import hashlib

import pytest

from annotators import ANNOTATORS, MissingWeights
from annotators.weights import Weights, is_hub_id, locate, sha256
from tests.annotators.hub import FakeHub

WANTED = Weights("them/nets", "sub/net.bin", 12, "MIT", beside=("config.json",), instead=("net.safetensors",))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    made = FakeHub(monkeypatch, tmp_path / "hub")
    made.repositories["them/nets"] = {"sub/net.bin": b"weights", "config.json": b"{}"}
    return made


def find(named=None, offline=False):
    return locate(WANTED, named, offline=offline, fetch="depth", who="depth")


def test_a_hub_file_is_downloaded_once_and_found_offline(hub):
    first = find()
    assert [path.read_bytes() for path in first] == [b"weights", b"{}"]
    hub.online = False
    assert find(offline=True) == find() == first
    assert hub.asked == ["sub/net.bin", "config.json"]


def test_offline_never_asks_the_hub(hub):
    with pytest.raises(MissingWeights, match=r"sub/net\.bin of them/nets \(12 MB, MIT\) .* \(the network is off\)"):
        find(offline=True)
    assert not hub.asked


def test_what_the_hub_answers_is_said(hub):
    hub.online = False
    with pytest.raises(MissingWeights, match="no network in this test"):
        find()
    hub.online = True
    hub.repositories["them/nets"] = {}
    with pytest.raises(MissingWeights, match=r"404: them/nets has no sub/net\.bin"):
        find()


def test_half_a_download_counts_as_none(hub):
    """Its settings never came."""
    hub.download("them/nets", "sub/net.bin")
    with pytest.raises(MissingWeights, match="the network is off"):
        find(offline=True)


def test_the_other_name_of_the_same_weights_is_taken(hub):
    hub.repositories["other/nets"] = {"net.safetensors": b"safe", "config.json": b"{}"}
    assert find("other/nets")[0].read_bytes() == b"safe"
    with pytest.raises(MissingWeights, match=r"sub/net\.bin of them/nets"):
        find(offline=True)


def test_a_named_folder_is_taken_with_or_without_the_subfolder(tmp_path):
    for place in ("a/sub", "b"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "net.bin").write_bytes(b"weights")
        folder = tmp_path / place.split("/")[0]
        (folder / "config.json").write_text("{}")
        assert find(str(folder)) == (tmp_path / place / "net.bin", folder / "config.json")


def test_a_named_file_stands_for_the_weights_whatever_its_name(tmp_path):
    (tmp_path / "mine").write_bytes(b"weights")
    with pytest.raises(MissingWeights, match=r"has no config\.json"):
        find(str(tmp_path / "mine"))
    (tmp_path / "config.json").write_text("{}")
    assert find(str(tmp_path / "mine")) == (tmp_path / "mine", tmp_path / "config.json")


def test_a_folder_of_the_name_comes_before_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "them" / "nets").mkdir(parents=True)
    with pytest.raises(MissingWeights, match=r"them/nets has no sub/net\.bin or net\.safetensors"):
        find("them/nets")
    assert not hub.asked


def test_what_is_a_hub_id():
    assert [name for name in ("a/b", "a-b/c.d_e", "a", "a/b/c", "/a", "a/", "softedge=hed") if is_hub_id(name)] == [
        "a/b",
        "a-b/c.d_e",
    ]


def test_a_hash_follows_its_file(tmp_path):
    path = tmp_path / "x"
    for content in (b"one", b"three"):
        path.write_bytes(content)
        assert sha256(path) == hashlib.sha256(content).hexdigest()


def test_ready_asks_nobody(hub):
    """`controlkit annotators` must not download."""
    annotator = ANNOTATORS.create("softedge")
    hub.repositories["lllyasviel/Annotators"] = {"ControlNetHED.pth": b"x"}
    with pytest.raises(MissingWeights):
        annotator.ready()
    assert not hub.asked
    hub.download("lllyasviel/Annotators", "ControlNetHED.pth")
    annotator.ready()


def test_a_file_that_only_a_parameter_asks_for_is_advised_with_all(hub):
    with pytest.raises(MissingWeights, match="`controlkit fetch lineart --all`"):
        ANNOTATORS.create("lineart", coarse=True, offline=True).weight_files()
