"""What a run hands over: a net that diffusers samples as the trainer did, a file for webui, a repository on the hub."""

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DPMSolverMultistepScheduler, StableDiffusionControlNetPipeline
from PIL import Image
from safetensors import safe_open

from controlkit.cli.main import main
from controlkit.config import build
from controlkit.data.rows import held_out, read_dataset
from controlkit.errors import RequestError
from controlkit.models.bases import find_base
from controlkit.models.controlnets import find_controlnet
from controlkit.training.config import TrainConfig
from tests.training.test_train import SETTINGS, train


def test_diffusers_samples_what_the_trainer_sampled(trained, dataset):
    """The same map, prompt and seed through diffusers' own loading and scheduler give the trainer's own pixels, but for
    a value in a thousand that was about to be rounded either way: kernels differ with where weights lie in memory."""
    rows = read_dataset(dataset, "canny")
    row = [*(each for each in rows if held_out(each.content, 0.02)), *rows][0]
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        find_base("random-sd15").folder,
        controlnet=ControlNetModel.from_pretrained(trained / "controlnet"),
        safety_checker=None,
    )
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, use_karras_sigmas=True)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        row.captions[0],
        image=Image.open(row.control).convert("RGB"),
        num_inference_steps=2,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images[0]
    sheet = np.asarray(Image.open(trained / "samples" / "step-000004.png"))
    assert np.array_equal(sheet[:64, :64], np.asarray(Image.open(row.control).convert("RGB")))
    difference = np.abs(sheet[:64, -64:] - (theirs * 255).round())
    assert difference.max() <= 1
    assert difference.mean() < 0.001


def test_a_file_for_webui_on_request(dataset, tmp_path):
    run = tmp_path / "run"
    train(dataset, run, "save_webui=true", "steps=1", "watch.every=0")
    net = ControlNetModel.from_pretrained(run / "controlnet")
    with safe_open(run / "control_canny.safetensors", "pt") as file:
        assert all(key.startswith("control_model.") for key in file.keys())  # noqa: SIM118
    found = find_controlnet(str(run / "control_canny.safetensors"))
    assert found.condition == "canny"
    back = found.load().state_dict()
    assert back.keys() == net.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in net.state_dict().items())


def test_a_run_that_goes_on_replaces_its_file_for_webui(dataset, tmp_path):
    run = tmp_path / "run"
    train(dataset, run, "save_webui=true", "max_minutes=0", "watch.every=0")
    before = (run / "control_canny.safetensors").read_bytes()
    train(dataset, run, "save_webui=true", "--resume", "watch.every=0")
    assert (run / "control_canny.safetensors").read_bytes() != before


class Hub:
    """Takes the place of the hub: remembers what is sent."""

    sent: ClassVar[dict] = {}

    def create_repo(self, name, **options):
        self.sent["repository"] = (name, options)
        return f"https://hub.example/{name}"

    def create_commit(self, name, operations, commit_message):
        self.sent["files"] = {each.path_in_repo: each.path_or_fileobj for each in operations}


def test_nothing_is_uploaded_unless_it_is_asked_for(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "sent", {})
    train(dataset, tmp_path / "quiet", "steps=1", "watch.every=0")
    assert Hub.sent == {}
    arguments = [f"data.path={dataset}", f"output={tmp_path / 'run'}", *SETTINGS, "steps=1", "decoder=true"]
    options = ["watch.every=0", "samples.steps=1", "samples.every=1", "push_to_hub=me/net"]
    assert main(["train", *arguments, *options]) == 0
    assert "uploaded to https://hub.example/me/net" in capsys.readouterr().err
    assert Hub.sent["repository"] == ("me/net", {"private": True, "exist_ok": True})
    files = Hub.sent["files"]
    assert {"config.json", "diffusion_pytorch_model.safetensors", "README.md", "curves.png"} <= set(files)
    assert {"samples/step-000001.png", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"} <= set(files)
    assert json.loads(Path(files["config.json"]).read_text())["_class_name"] == "ControlNetModel"


def test_an_upload_that_fails_leaves_the_run_whole(dataset, tmp_path, monkeypatch, capsys):
    def refused(self, *args, **options):
        raise OSError("401 Unauthorized")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "create_repo", refused)
    train(dataset, tmp_path / "run", "steps=1", "watch.every=0", "push_to_hub=me/net", code=1)
    said = capsys.readouterr().err
    assert "is whole, but was not uploaded to me/net (401 Unauthorized); try again: hf upload me/net" in said
    ControlNetModel.from_pretrained(tmp_path / "run/controlnet")


def test_a_repository_has_an_owner():
    with pytest.raises(RequestError, match="push_to_hub=net: expected OWNER/NAME"):
        build(TrainConfig, None, ["push_to_hub=net"])
