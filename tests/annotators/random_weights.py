"""Weights of the true architectures, random, in the files and under the names that are published.

Each writer builds the network with the class of the library that owns it. Where a model is described by a config, it is
a small one; the others have their full size and are written in half precision, as some of the published ones are.
"""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace

import torch

from annotators import ANNOTATORS, auxiliary

WRITERS = {}


def writes(*keys):
    """Registers a writer for (type, backend) pairs that share their weights."""

    def add(writer):
        WRITERS.update(dict.fromkeys(keys, writer))
        return writer

    return add


def needs_weights(type_name, backend):
    return hasattr(ANNOTATORS.class_of(type_name, backend), "needs")


def own_backends():
    """(type, backend) of all that this package registers; who is imported beside it may add others."""
    pairs = [(type_name, backend) for type_name in ANNOTATORS for backend in ANNOTATORS.backends(type_name)]
    return [pair for pair in pairs if ANNOTATORS.class_of(*pair).__module__.startswith("annotators.")]


def save(network, path: Path, wrap=lambda state: state) -> None:
    state = {name: each.half() if each.is_floating_point() else each for name, each in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(wrap(state), path)


@writes(("softedge", "hed"), ("scribble", "hed"))
def hed(folder):
    network = auxiliary.module("hed").ControlNetHED_Apache2()
    torch.nn.init.constant_(network.norm, 127)
    save(network, folder / "ControlNetHED.pth")


@writes(("softedge", "pidinet"), ("scribble", "pidinet"))
def pidinet(folder):
    """As its trainer saved it: under `state_dict`, with the prefix of DataParallel."""
    network = auxiliary.module("pidi.model").pidinet()
    with torch.no_grad():
        network.classifier.weight.mul_(500)  # its edges of untrained weights are all 0.5
    save(
        network,
        folder / "table5_pidinet.pth",
        lambda state: {"epoch": 1, "state_dict": {f"module.{name}": each for name, each in state.items()}},
    )


@writes(("softedge", "teed"))
def teed(folder):
    save(auxiliary.module("teed.ted").TED(), folder / "5_model.pth")


@writes(("lineart", "realistic"))
def lineart(folder):
    for name in ("sk_model.pth", "sk_model2.pth"):
        save(auxiliary.module("lineart").Generator(3, 1, 3), folder / name)


@writes(("lineart", "anime"))
def lineart_anime(folder):
    norm = functools.partial(torch.nn.InstanceNorm2d, affine=False, track_running_stats=False)
    network = auxiliary.module("lineart_anime").UnetGenerator(3, 1, 8, 64, norm_layer=norm)
    save(network, folder / "netG.pth", lambda state: {f"module.{name}": each for name, each in state.items()})


@writes(("mlsd", "default"))
def mlsd(folder):
    network = auxiliary.module("mlsd.models.mbv2_mlsd_large").MobileV2_MLSD_Large()
    with torch.no_grad():
        network.block23.conv3.weight.mul_(100)  # its segments of untrained weights are all alike
    save(network, folder / "mlsd_large_512_fp32.pth")


@writes(("normal", "bae"))
def normal_bae(folder):
    decoder = SimpleNamespace(architecture="BN", sampling_ratio=0.4, importance_ratio=0.7)
    network = auxiliary.module("normalbae.nets.NNET").NNET(decoder)
    for layer in network.decoder.out_conv_res1[::2]:
        torch.nn.init.zeros_(layer.bias)  # which would drown what the picture says
    save(network, folder / "scannet.pt", lambda state: {"model": state})


@writes(("depth", "midas"))
def midas(folder):
    network = auxiliary.module("midas.midas.dpt_depth").DPTDepthModel(backbone="vitb_rn50_384")
    torch.nn.init.constant_(network.scratch.output_conv[4].bias, 1)  # above the last ReLU
    save(network, folder / "dpt_hybrid-midas-501f0c75.pt")


@writes(("depth", "zoe"))
def zoe(folder):
    library = auxiliary.module("zoe")
    network = library.ZoeDepth.build_from_config(library.get_config("zoedepth", "infer"))
    save(network, folder / "ZoeD_M12_N.pt", lambda state: {"model": state})


@writes(("segmentation", "sam"))
def sam(folder):
    """MobileSAM, sure of every mask that it makes: the generator drops the others."""
    network = auxiliary.module("segment_anything").sam_model_registry["vit_t"]()
    with torch.no_grad():
        network.mask_decoder.iou_prediction_head.layers[-1].bias.fill_(1)
        for head in network.mask_decoder.output_hypernetworks_mlps:
            head.layers[-1].weight.mul_(1e4)
            head.layers[-1].bias.mul_(1e4)
    path = folder / "checkpoints" / "mobile_sam.pth"
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)


@writes(("depth", "depth-anything"))
def depth_anything(folder, **settings):
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=70,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    sizes = {"reassemble_hidden_size": 16, "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}
    config = DepthAnythingConfig(backbone_config=backbone, head_hidden_size=8, **sizes, **settings)
    model = DepthAnythingForDepthEstimation(config)
    with torch.no_grad():
        model.head.conv3.bias.fill_(0.5)  # above the last ReLU
        model.head.conv3.weight.mul_(50)
    model.save_pretrained(folder)
    size = {"height": 70, "width": 70}
    DPTImageProcessor(size=size, ensure_multiple_of=14, keep_aspect_ratio=True).save_pretrained(folder)


@writes(("segmentation", "ade20k"))
def upernet(folder, classes=150):
    from transformers import ConvNextConfig, SegformerImageProcessor, UperNetConfig, UperNetForSemanticSegmentation

    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=stages)
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=16, num_labels=classes, auxiliary_in_channels=16, auxiliary_channels=8
    )
    model = UperNetForSemanticSegmentation(config)
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    config.architectures = ["UperNetForSemanticSegmentation"]
    config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")  # as its publisher keeps it
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
