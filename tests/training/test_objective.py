"""What a step changes, and what it is computed from."""

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline

from controlkit.data.rows import read_dataset
from controlkit.generation.pipelines import control_pipeline, load_parts
from controlkit.models.bases import find_base
from controlkit.models.controlnets import make_controlnet
from controlkit.training.batches import ControlRows, collate
from controlkit.training.objective import Models, control_loss, encode_pictures, encode_texts

BASES = ["random-sd15", "random-sd21", "random-sdxl"]


def set_up(name, dataset, prompt_dropout=0.5):
    base = find_base(name)
    parts = load_parts(base, dtype=torch.float32, device=torch.device("cpu"), locked=True)
    net = make_controlnet(parts["unet"], vae_factor=base.vae_factor, latent_channels=base.latent_channels, seed=0)
    pipeline = control_pipeline(base, parts, [net], DDPMScheduler.from_config(base.scheduler))
    models = Models.of(base, pipeline, net, torch.device("cpu"))
    data = ControlRows(
        read_dataset(dataset, "canny"), condition="canny", resolution=64, latent_shape=(4, 8, 8), timesteps=1000,
        prompt_dropout=prompt_dropout, seed=0,
    )  # fmt: skip
    return models, net, collate([data[0, number] for number in range(8)])


@pytest.mark.parametrize("name", BASES)
def test_exactly_the_output_zero_convolutions_learn_at_first(name, dataset):
    """Their inputs are not zero, their weights are: the gradient reaches them and nothing behind them. After the first
    step (AdamW, weight decay 0) exactly they have moved, and the base never does."""
    models, net, batch = set_up(name, dataset)
    outputs = ("controlnet_down_blocks.", "controlnet_mid_block.")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    unet = models.pipeline.unet
    base_before = {key: value.clone() for key, value in unet.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.0)
    control_loss(models, batch).backward()
    for key, parameter in net.named_parameters():
        moves = parameter.grad is not None and bool((parameter.grad != 0).any())
        assert moves == key.startswith(outputs), key
    optimizer.step()
    for key, parameter in net.named_parameters():
        assert (not torch.equal(parameter, before[key])) == key.startswith(outputs), key
    # From the second step on everything learns.
    for _ in range(2):
        optimizer.zero_grad()
        control_loss(models, batch).backward()
        optimizer.step()
    still = [key for key, parameter in net.named_parameters() if torch.equal(parameter, before[key])]
    assert not still
    assert all(torch.equal(value, base_before[key]) for key, value in unet.state_dict().items())
    assert all(parameter.grad is None for parameter in unet.parameters())


@pytest.mark.parametrize("name", BASES)
def test_the_loss_at_the_start_is_that_of_the_base_alone(name, dataset):
    """An untrained net adds nothing, so the loss is the base's own, computed here with diffusers' scheduler."""
    models, _, batch = set_up(name, dataset)
    base, pipeline = models.base, models.pipeline
    scheduler = DDPMScheduler.from_config(base.scheduler)
    posterior = pipeline.vae.encode(batch.pixels).latent_dist
    x_0 = (posterior.mean + posterior.std * batch.vae_noise) * pipeline.vae.config.scaling_factor
    x_t = scheduler.add_noise(x_0, batch.noise, batch.timesteps)
    predicted = pipeline.unet(x_t, batch.timesteps, **encode_texts(models, batch)).sample
    velocity = scheduler.get_velocity(x_0, batch.noise, batch.timesteps)
    expected = torch.nn.functional.mse_loss(
        predicted, velocity if base.prediction_type == "v_prediction" else batch.noise
    )
    assert torch.allclose(control_loss(models, batch), expected, rtol=1e-5)


@pytest.mark.parametrize("name", BASES)
def test_texts_are_encoded_as_the_pipeline_does_at_inference(name, dataset):
    """Also the emptied ones: as the pipeline's own "no negative prompt", which for SDXL is zeros."""
    models, _, batch = set_up(name, dataset)
    assert batch.emptied.any()
    assert not batch.emptied.all()
    text = encode_texts(models, batch)
    pipeline = models.pipeline
    for number, prompt in enumerate(batch.texts):
        if isinstance(pipeline, StableDiffusionXLControlNetPipeline):
            prompted, empty, pooled, empty_pooled = pipeline.encode_prompt(
                prompt, do_classifier_free_guidance=True, device="cpu"
            )
            expected_pooled = empty_pooled if batch.emptied[number] else pooled
            assert torch.allclose(text["added_cond_kwargs"]["text_embeds"][number], expected_pooled[0], atol=1e-6)
        else:
            assert isinstance(pipeline, StableDiffusionControlNetPipeline)
            prompted, empty = pipeline.encode_prompt(prompt, "cpu", 1, True)
        expected = empty if batch.emptied[number] else prompted
        assert torch.allclose(text["encoder_hidden_states"][number], expected[0], atol=1e-6)


def test_the_latent_is_a_draw_from_the_vaes_posterior(dataset):
    models, _, batch = set_up("random-sd15", dataset)
    vae = models.pipeline.vae
    mean = encode_pictures(vae, batch.pixels, torch.zeros_like(batch.vae_noise))
    assert torch.equal(mean, vae.encode(batch.pixels).latent_dist.mean * vae.config.scaling_factor)
    assert not torch.equal(mean, encode_pictures(vae, batch.pixels, batch.vae_noise))
