"""Single files stand wherever folders do: told by their tensors, configs read from shapes, converted bit for bit."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from controlkit.cli.main import main
from controlkit.errors import RequestError
from controlkit.files import sha256
from controlkit.generation.settings import read_settings
from controlkit.models.bases import find_base
from controlkit.models.controlnets import find_controlnet, make_controlnet, save_controlnet
from controlkit.models.formats import configs, text, unet, vae
from controlkit.models.formats.contents import TEXT_PREFIXES, base_contents
from controlkit.models.formats.convert import find_model, to_diffusers, to_webui
from controlkit.models.formats.detect import CONTROLNETS, kind_of
from controlkit.models.formats.reading import TensorFile, folder_tensors, read_tensors
from controlkit.models.formats.single_file import empty_model, fitted
from controlkit.models.random_base import RANDOM_BASES
from tests.models.test_names import SD1, SD2, SDXL, prefixed, same

PARTS = ("unet", "vae", "text_encoder")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Each random base as a single file, with its tokenizer beside it as users would put it there."""
    folder = tmp_path_factory.mktemp("files")
    for name in RANDOM_BASES:
        to_webui(find_base(name), folder / name / "model.safetensors")
        shutil.copytree(find_base(name).folder / "tokenizer", folder / name / "tokenizer")
    return {name: folder / name / "model.safetensors" for name in RANDOM_BASES}


def state(model):
    return {name.removeprefix("text_model."): value for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", RANDOM_BASES)
def test_a_base_goes_into_a_file_and_back_bit_for_bit(name, files, tmp_path):
    """Loaded from the file, and from the folder made of it, by us and by diffusers: the same weights and configs."""
    folder, file = find_base(name), find_base(str(files[name]))
    to_diffusers(file, tmp_path / "back")
    back = find_base(str(tmp_path / "back"))
    theirs = DiffusionPipeline.from_pretrained(tmp_path / "back", local_files_only=True)
    assert type(theirs).__name__ == folder.index["_class_name"]
    for part in [*PARTS, *(["text_encoder_2"] if folder.is_xl else [])]:
        expected = state(folder.load(part))
        same(expected, state(file.load(part, torch_dtype=torch.float32)))
        same(expected, state(back.load(part)))
        same(expected, state(getattr(theirs, part)))
    for base in (file, back):
        assert (base.family, base.native_size, base.vae_factor) == (folder.family, folder.native_size, 8)
        assert (base.inpaints, base.is_xl) == (folder.inpaints, folder.is_xl)
        assert base.prediction_type == folder.prediction_type
        assert base.scheduler["_class_name"] == folder.scheduler["_class_name"]
        for key, value in folder.unet.items():
            assert base.unet[key] == value or key.startswith("_"), key
        text = "a red circle"
        for suffix in base.text_parts():
            ids = [each.load(f"tokenizer{suffix}")(text, padding="max_length").input_ids for each in (base, folder)]
            assert ids[0] == ids[1]
    to_webui(back, tmp_path / "again.safetensors")
    same(load_file(files[name]), load_file(tmp_path / "again.safetensors"))


@pytest.mark.parametrize("name", ["random-sd15", "random-sd21", "random-sdxl"])
def test_diffusers_reads_the_file_as_the_same_network(name, files):
    """Another implementation's reader, given the config, which it would else ask the hub for."""
    folder = find_base(name).folder
    read = UNet2DConditionModel.from_single_file(str(files[name]), config=str(folder), subfolder="unet")
    same(state(find_base(name).load("unet")), state(read))


class Shapes(TensorFile):
    """A file of which only the shapes matter."""

    def __init__(self, tensors, metadata=None, facts=None):
        super().__init__("shapes", "safetensors")
        self.shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        self.metadata, self.facts = metadata or {}, facts or {}


@pytest.mark.parametrize("wanted", [SD1, SD2, SDXL], ids=["SD 1.x", "SD 2.x", "SDXL"])
def test_configs_are_read_from_the_shapes_of_full_size_networks(wanted):
    """The config of the published network, from which its own keys and shapes follow again."""
    with torch.device("meta"):
        network = UNet2DConditionModel(**wanted)
        net = ControlNetModel.from_unet(network, load_weights_from_unet=False)
    found = configs.unet_config(Shapes(unet.unet_to_ldm(network.state_dict(), network.config)).shapes)
    of_net = configs.controlnet_config(Shapes(unet.controlnet_to_ldm(net.state_dict(), net.config)).shapes, ldm=True)
    of_names = configs.controlnet_config(Shapes(net.state_dict()).shapes, ldm=False)
    assert of_net == of_names

    def heads(config):
        value = config["attention_head_dim"]
        return [value] * len(config["block_out_channels"]) if isinstance(value, int) else list(value)

    for config, model in [(found, network), (of_net, net)]:
        for key, value in config.items():
            stated = model.config[key]
            if key == "attention_head_dim":
                assert heads(config) == heads(model.config)
            elif key == "transformer_layers_per_block" and isinstance(value, list):
                assert value == list(stated)
            else:
                assert value == (list(stated) if isinstance(stated, tuple) else stated), key


def small_pipeline(folder, *, second=False, xl=False, prediction="epsilon"):
    """As small as the family's own rules allow (32 groups, 8 heads or heads of 64), so that shapes alone tell it."""
    width = 64
    text = CLIPTextConfig(
        vocab_size=514, hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=1,
        hidden_act="gelu" if second else "quick_gelu", projection_dim=width, bos_token_id=512, eos_token_id=513,
    )  # fmt: skip
    torch.manual_seed(0)
    linear = {"use_linear_projection": True, "attention_head_dim": 1}
    if xl:
        network = UNet2DConditionModel(
            block_out_channels=(64, 64), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2),
            cross_attention_dim=2 * width, addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=6 * 256 + width, **linear,
        )  # fmt: skip
    else:
        network = UNet2DConditionModel(
            block_out_channels=(64, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=width,
            **(linear if second else {"attention_head_dim": 8}),
        )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 32), layers_per_block=1, scaling_factor=0.13025 if xl else 0.18215,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
    )
    tokenizer = find_base("random-sd15").load("tokenizer")
    more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if xl:
        more = {
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**{**text.to_dict(), "hidden_act": "gelu"})),
            "tokenizer_2": tokenizer,
        }
    cls = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    cls(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=network, scheduler=scheduler, **more
    ).save_pretrained(folder)


@pytest.mark.parametrize("kind", ["SD 1.x", "SD 2.x", "SDXL"])
@pytest.mark.parametrize("container", ["safetensors", "ckpt"])
def test_a_file_of_another_tool_is_read_by_its_shapes_alone(kind, container, tmp_path):
    """No metadata; in the .ckpt also what a trainer leaves behind, and text names without their beginning."""
    small_pipeline(tmp_path / "folder", second=kind == "SD 2.x", xl=kind == "SDXL")
    folder = find_base(str(tmp_path / "folder"))
    to_webui(folder, tmp_path / "ours.safetensors")
    tensors = load_file(tmp_path / "ours.safetensors")
    path = tmp_path / f"model.{container}"
    if container == "ckpt":
        extra = {
            "model_ema.decay": torch.ones(()),
            "model_ema.diffusion_modelinput_blocks00weight": torch.ones(2),
            "alphas_cumprod": torch.ones(4),
            "first_stage_model.loss.logvar": torch.ones(()),
        }
        if kind == "SD 1.x":
            tensors = {name.replace("transformer.text_model.", "transformer."): each for name, each in tensors.items()}
            extra["cond_stage_model.transformer.embeddings.position_ids"] = torch.rand(1, 77)
        torch.save({"state_dict": {**tensors, **extra}, "global_step": 5}, path)
    else:
        save_file(tensors, path)
    file = find_base(str(path), tokenizer=str(tmp_path / "folder"))
    for part in [*PARTS, *(["text_encoder_2"] if folder.is_xl else [])]:
        loaded, expected = file.load(part, torch_dtype=torch.float32), folder.load(part)
        same(state(expected), state(loaded))
        for key in ("attention_head_dim", "norm_num_groups", "scaling_factor", "num_attention_heads", "hidden_act"):
            stated = getattr(expected.config, key, None)
            found = getattr(loaded.config, key, None)
            assert stated == found or [stated] * 2 == list(found), (part, key)
    assert file.prediction_type == "epsilon"
    assert bool(file.guesses) == (kind == "SD 2.x")


def published(kind):
    """All tensors of the family's published checkpoint, on the meta device."""
    xl, second = kind == "SDXL", kind == "SD 2.x"
    with torch.device("meta"):
        network = UNet2DConditionModel(**{"SD 1.x": SD1, "SD 2.x": SD2, "SDXL": SDXL}[kind])
        autoencoder = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2,
        )  # fmt: skip
        clip_l = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12))
        wide = CLIPTextConfig(
            hidden_size=1280 if xl else 1024, intermediate_size=5120 if xl else 4096,
            num_hidden_layers=32 if xl else 23, projection_dim=1280,
        )  # fmt: skip
        open_clip = (CLIPTextModelWithProjection if xl else CLIPTextModel)(wide)
    names = TEXT_PREFIXES[kind]
    yield from prefixed(unet.unet_to_ldm(network.state_dict(), network.config), "model.diffusion_model.").items()
    yield from prefixed(vae.vae_to_ldm(autoencoder.state_dict(), autoencoder.config), "first_stage_model.").items()
    if not second:
        ours = text.text_from_transformers(clip_l.state_dict())
        yield from prefixed(ours, names["text_encoder"]).items()
        yield names["text_encoder"] + "text_model.embeddings.position_ids", torch.empty(1, 77, device="meta")
    if second or xl:
        yield from prefixed(text.text_to_open_clip(open_clip.state_dict()), list(names.values())[-1]).items()


@pytest.mark.parametrize(("kind", "count"), [("SD 1.x", 1131), ("SD 2.x", 1228), ("SDXL", 2515)])
def test_a_published_checkpoint_is_opened_at_full_size(kind, count, tmp_path):
    """A sparse file of gigabytes: found out from its header, with every tensor of every component in its place."""
    header, end = {}, 0
    for name, tensor in published(kind):
        start, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    path = tmp_path / "model.safetensors"
    data = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        file.truncate(8 + len(data) + end)
    contents = base_contents(read_tensors(path))
    assert len(header) == count
    assert contents.layout == kind
    for component in contents.parts:
        fitted(empty_model(component, contents.configs[component]), contents.tensors(component), component)
    heads = {"SD 1.x": (12, None), "SD 2.x": (16, None), "SDXL": (12, 20)}[kind]
    for component, wanted in zip(("text_encoder", "text_encoder_2"), heads, strict=True):
        assert wanted is None or contents.configs[component]["num_attention_heads"] == wanted
    assert contents.configs["vae"]["scaling_factor"] == (0.13025 if kind == "SDXL" else 0.18215)
    assert contents.configs["unet"]["sample_size"] == (128 if kind == "SDXL" else 64)


def rewritten(source, target, metadata=None, drop=(), add=None):
    tensors = {name: value for name, value in load_file(source).items() if not name.startswith(tuple(drop))}
    save_file({**tensors, **(add or {})}, target, metadata=metadata)
    return str(target)


def test_the_prediction_comes_from_the_best_source(tmp_path):
    small_pipeline(tmp_path / "folder", second=True, prediction="v_prediction")
    to_webui(find_base(str(tmp_path / "folder")), tmp_path / "ours.safetensors")
    ours, path, near = tmp_path / "ours.safetensors", tmp_path / "x.safetensors", str(tmp_path / "folder")

    def found(prediction=None, **change):
        base = find_base(rewritten(ours, path, drop=("v_pred", *change.pop("drop", ())), **change), tokenizer=near,
                         prediction=prediction)  # fmt: skip
        return base.prediction_type, bool(base.guesses)

    assert find_base(str(ours), tokenizer=near).prediction_type == "v_prediction"
    assert found() == ("epsilon", True)
    assert found(prediction="v_prediction") == ("v_prediction", False)
    assert found(metadata={"modelspec.prediction_type": "v"}) == ("v_prediction", False)
    assert found(metadata={"modelspec.architecture": "stable-diffusion-v2-768-v"}) == ("v_prediction", False)
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file({**load_file(ours), **marks}, path)
    base = find_base(str(path), tokenizer=near)
    assert base.prediction_type == "v_prediction"
    assert base.scheduler["rescale_betas_zero_snr"]
    (tmp_path / "x.yaml").write_text("model:\n  params:\n    parameterization: v\n")
    assert found() == ("v_prediction", False)
    with pytest.raises(RequestError, match="prediction 'velocity': expected epsilon"):
        find_base("random-sd15", prediction="velocity")
    assert find_base("random-sd15", prediction="v_prediction").scheduler["prediction_type"] == "v_prediction"


def test_what_is_no_whole_base_is_refused_in_one_line(files, tmp_path):
    source, near = files["random-sd15"], str(find_base("random-sd15").folder)

    def refused(words, *, tokenizer=near, **change):
        with pytest.raises(RequestError, match=words) as reason:
            find_base(rewritten(source, tmp_path / "x.safetensors", **change), tokenizer=tokenizer)
        assert "\n" not in str(reason.value)

    refused("holds no VAE", drop=("first_stage_model.",))
    refused("holds no text encoder", drop=("cond_stage_model.",))
    refused("expected a base", drop=("model.diffusion_model.",))
    refused(r"width \d+ does not tell its number of heads")
    metadata = read_tensors(source).metadata
    refused("of no Stable Diffusion", metadata=metadata, add={"model.diffusion_model.odd.weight": torch.ones(1)})
    refused("InstructPix2Pix", metadata=metadata,
            add={"model.diffusion_model.input_blocks.0.0.weight": torch.ones(16, 8, 3, 3)})  # fmt: skip
    refused("predicts in EDM's form", metadata=metadata, add={"edm_mean": torch.zeros(4)})
    refused("holds no tokenizer.*--tokenizer FOLDER", tokenizer=None, metadata=metadata)
    refused("--tokenizer .* expected a folder with vocab.json", tokenizer=str(tmp_path), metadata=metadata)
    refused("damaged", metadata={configs.CONFIGS: "{"})
    name = "model.diffusion_model.middle_block.1.norm.weight"
    path = rewritten(source, tmp_path / "x.safetensors", metadata=metadata, drop=(name,))
    with pytest.raises(RequestError, match=r"lacks 1 tensors of a UNet2DConditionModel"):
        find_base(path, tokenizer=near).load("unet")
    with pytest.raises(RequestError, match="is for a base in a single file"):
        find_base("random-sd15", tokenizer=near)


def test_a_tokenizer_of_another_vocabulary_is_refused(files, tmp_path):
    shutil.copytree(find_base("random-sd15").folder / "tokenizer", tmp_path / "other")
    words = json.loads((tmp_path / "other" / "vocab.json").read_text())
    (tmp_path / "other" / "vocab.json").write_text(json.dumps({**words, "more": len(words)}))
    with pytest.raises(RequestError, match=r"has 515 words, the text encoder of base .* 514"):
        find_base(str(files["random-sd15"]), tokenizer=str(tmp_path / "other"))


def saved_net(name, folder):
    base = find_base(name)
    net = make_controlnet(base.load("unet"), vae_factor=8, latent_channels=4, seed=0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(-0.05, 0.05)
    save_controlnet(net, folder, {"condition": "canny"})
    return net


@pytest.mark.parametrize("name", ["random-sd15", "random-sd21", "random-sdxl"])
def test_a_controlnet_goes_into_a_file_and_back_bit_for_bit(name, tmp_path):
    """Also without the prefix, as a pickle, inside a whole checkpoint, and as one file under diffusers' names."""
    net = saved_net(name, tmp_path / "net")
    folder = find_controlnet(str(tmp_path / "net"))
    to_webui(folder, tmp_path / "net.safetensors")
    assert kind_of(read_tensors(tmp_path / "net.safetensors")) == "ControlNet"
    tensors, metadata = load_file(tmp_path / "net.safetensors"), read_tensors(tmp_path / "net.safetensors").metadata
    bare = {key.removeprefix("control_model."): value for key, value in tensors.items()}
    save_file(bare, tmp_path / "bare.safetensors", metadata=metadata)
    whole = {**tensors, "model.diffusion_model.input_blocks.0.0.weight": torch.ones(1), "betas": torch.ones(3)}
    save_file(whole, tmp_path / "whole.safetensors", metadata=metadata)
    save_file(folder_tensors(tmp_path / "net"), tmp_path / "named.safetensors", metadata=metadata)
    for file in ("net", "bare", "whole", "named"):
        found = find_controlnet(str(tmp_path / f"{file}.safetensors"))
        assert found.condition == "canny"
        found.check_fits(find_base(name))
        same(net.state_dict(), found.load(torch_dtype=torch.float32).state_dict())
    to_diffusers(find_controlnet(str(tmp_path / "net.safetensors")), tmp_path / "back")
    same(net.state_dict(), ControlNetModel.from_pretrained(tmp_path / "back").state_dict())
    assert find_controlnet(str(tmp_path / "back")).condition == "canny"
    other = "random-sdxl" if name != "random-sdxl" else "random-sd15"
    with pytest.raises(RequestError, match="was made for"):
        find_controlnet(str(tmp_path / "net.safetensors")).check_fits(find_base(other))


def test_a_picture_from_files_is_that_from_folders(files, tmp_path, dataset):
    """Base and ControlNet as files: the pixels are those of the folders, the settings hold the file's hash.

    To 1/255: the weights are equal bit for bit, but kernels round by where weights lie in memory, and a folder's are
    mapped from its files.
    """
    saved_net("random-sd15", tmp_path / "net")
    to_webui(find_controlnet(str(tmp_path / "net")), tmp_path / "net.safetensors")
    control = next((dataset / "conditions" / "canny").glob("*.png"))
    common = ["generate", "--control", str(control), "--steps", "2", "--seed", "3", "--device", "cpu", "-q"]
    one = [*common, "--out", str(tmp_path / "folder.png"), "--controlnet", str(tmp_path / "net")]
    assert main([*one, "--base", "random-sd15"]) == 0
    two = [*common, "--out", str(tmp_path / "file.png"), "--controlnet", str(tmp_path / "net.safetensors")]
    assert main([*two, "--base", str(files["random-sd15"])]) == 0
    first, second = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("folder.png", "file.png"))
    assert np.abs(first - second).max() <= 1
    assert first.std() > 5
    assert read_settings(tmp_path / "file.png")["base"]["sha256"] == sha256(files["random-sd15"])


def test_a_training_takes_a_file_as_its_base(files, dataset, capsys):
    settings = [f"data.path={dataset}", f"base={files['random-sd21']}", "output=unused"]
    assert main(["train", *settings, "--dry-run", "--json"]) == 0
    assert "Stable Diffusion" in json.loads(capsys.readouterr().out)["family"]
    assert main(["train", *settings, "base_tokenizer=nowhere", "--dry-run"]) == 2
    assert "--tokenizer 'nowhere'" in capsys.readouterr().err


def kinds():
    one = torch.ones(1)
    conv = torch.ones(4, 4, 1, 1)
    yield "Control-LoRA", {"lora_controlnet": torch.zeros(0), "zero_convs.0.0.weight": conv}
    yield "ControlNet-LLLite", {"lllite_unet_input_blocks_4_1.down.0.weight": one}
    yield "textual inversion", {"emb_params": torch.ones(2, 768)}
    yield "textual inversion", {"<thing>": torch.ones(768)}
    yield "textual inversion", {"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)}
    yield "LoRA", {"lora_unet_down_blocks_0.lora_down.weight": torch.ones(4, 768), "x.alpha": one}
    yield "LoRA", {"unet.down_blocks.0.to_q.lora_A.weight": torch.ones(4, 768)}
    yield "LoRA", {"lora_te_text_model.hada_w1_a": torch.ones(4, 768)}
    yield "LoRA", {"input_blocks.0.diff": one}
    yield "IP-Adapter", {"image_proj.norm.weight": one, "ip_adapter.1.to_k_ip.weight": one}
    yield "AnimateDiff", {"down_blocks.0.motion_modules.0.x": one}
    yield "difference ControlNet", {"difference": one, "control_model.zero_convs.0.0.weight": conv}
    yield "ControlNet", {"control_model.zero_convs.0.0.weight": conv}
    yield "ControlNet", {"zero_convs.0.0.weight": conv}
    yield "ControlNet, diffusers' names", {"controlnet_cond_embedding.conv_in.weight": conv}
    yield "ControlNet-Union", {"controlnet_cond_embedding.conv_in.weight": conv, "task_embedding": torch.ones(6, 320)}
    yield "T2I-Adapter", {"adapter.body.0.resnets.0.block1.weight": conv}
    yield "base", {"model.diffusion_model.input_blocks.0.0.weight": conv}
    yield "UNet, diffusers' names", {"conv_out.weight": conv, "time_embedding.linear_1.weight": torch.ones(4, 4)}
    yield "VAE", {"first_stage_model.encoder.conv_in.weight": conv,
                  "first_stage_model.encoder.down.0.block.0.norm1.weight": one}  # fmt: skip
    yield "VAE, diffusers' names", {"encoder.down_blocks.0.resnets.0.conv1.weight": conv}
    yield "TAESD", {"encoder.layers.0.weight": conv}
    yield "CLIP text encoder", {"text_model.encoder.layers.0.self_attn.q_proj.weight": torch.ones(4, 4)}
    yield "unknown", {"transformer_blocks.0.weight": torch.ones(4, 4)}


@pytest.mark.parametrize(("kind", "tensors"), list(kinds()))
def test_every_kind_is_told_whatever_its_extension(kind, tensors, tmp_path):
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "x.ckpt")
    torch.save(tensors, tmp_path / "x.safetensors")
    assert kind_of(read_tensors(tmp_path / "x.ckpt")) == kind
    assert kind_of(read_tensors(tmp_path / "x.safetensors")) == kind
    if kind not in CONTROLNETS:
        with pytest.raises(RequestError, match=f"is: {kind}; expected a ControlNet"):
            find_controlnet(str(tmp_path / "x.ckpt"))
    if kind == "base":
        with pytest.raises(RequestError, match=r"holds no|lacks"):
            find_base(str(tmp_path / "x.ckpt"))


def test_inspect_says_what_a_file_is(files, tmp_path, capsys):
    path = files["random-sdxl"]
    assert main(["inspect", str(path), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["kind"] == "base"
    assert about["family"].startswith("SDXL")
    assert about["prediction"] == "epsilon"
    assert about["sha256"] == sha256(path)
    assert about["tensors"] == len(load_file(path))
    assert about["parameters"] == sum(value.numel() for value in load_file(path).values())
    assert about["metadata"]["modelspec.architecture"] == "stable-diffusion-xl-v1-base"

    lora = {
        "lora_unet_x_attn2_to_k.lora_down.weight": torch.ones(4, 1024), "lora_unet_x_attn2_to_k.alpha": torch.ones(()),
        "lora_unet_y.lora_down.weight": torch.ones(8, 320),
    }  # fmt: skip
    torch.save(lora, tmp_path / "lora.bin")
    assert main(["inspect", str(tmp_path / "lora.bin")]) == 0
    text = capsys.readouterr().out
    assert "LoRA · torch zip" in text
    assert "SD 2.x" in text
    assert "ranks        4 (1), 8 (1)" in text
    assert main(["inspect", str(tmp_path)]) == 2
    assert "is a folder; expected a model file" in capsys.readouterr().err


def test_convert_is_whole_or_nothing(files, tmp_path, capsys):
    source = files["random-sd15"]
    assert main(["convert", str(source), str(tmp_path / "folder"), "--to", "diffusers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "base"
    again = tmp_path / "again.safetensors"
    assert main(["convert", str(tmp_path / "folder"), str(again), "--to", "webui"]) == 0
    same(load_file(source), load_file(again))
    assert again.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    capsys.readouterr()
    before = sorted(path.name for path in tmp_path.iterdir())
    refused = [
        (["convert", str(source), str(tmp_path / "folder"), "--to", "diffusers"], "exists; choose another name"),
        (["convert", str(source), str(tmp_path / "x.ckpt"), "--to", "webui"], "ends in .safetensors"),
        (["convert", str(source), str(tmp_path / "x.safetensors"), "--to", "webui"], "is a single file already"),
        (
            ["convert", str(tmp_path / "folder"), str(tmp_path / "y"), "--to", "diffusers"],
            "in diffusers' layout already",
        ),
    ]
    broken = rewritten(source, tmp_path.parent / "broken.safetensors", metadata=read_tensors(source).metadata,
                       drop=("cond_stage_model.transformer.text_model.encoder.layers.2.",))  # fmt: skip
    near = str(find_base("random-sd15").folder)
    refused.append(
        (["convert", broken, str(tmp_path / "z"), "--to", "diffusers", "--tokenizer", near], "lacks 16 tensors")
    )
    for arguments, words in refused:
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_other_kinds_are_not_converted(tmp_path):
    save_file({"emb_params": torch.ones(2, 768)}, tmp_path / "x.safetensors")
    with pytest.raises(RequestError, match="is: textual inversion; expected a base or a ControlNet"):
        find_model(str(tmp_path / "x.safetensors"))
