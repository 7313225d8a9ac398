"""Samplers under stable names: diffusers' schedulers, with the options that a name stands for written out.

Written out, because `from_config` keeps whatever else the base's config holds: without them "dpmpp_2m" on a base whose
config says Karras would be "dpmpp_2m_karras". Importing this module loads neither torch nor diffusers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from controlkit.diffusion.names import unknown

_PLAIN = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_KARRAS = {**_PLAIN, "use_karras_sigmas": True}
_DPMPP_2M = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "use_lu_lambdas": False}
_DPMPP_2M_SDE = {**_DPMPP_2M, "algorithm_type": "sde-dpmsolver++"}
# Singlestep's default for its last steps cannot end at sigma = 0; diffusers would switch it with a warning each time.
_DPMPP_2S = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "lower_order_final": True}
_UNIPC = {"solver_order": 2, "solver_type": "bh2", "predict_x0": True}
_DEIS = {"algorithm_type": "deis", "solver_order": 2, "solver_type": "logrho"}

# name -> (class of diffusers, options over the base's config)
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "deis": ("DEISMultistepScheduler", {**_DEIS, **_PLAIN}),
    "dpm2": ("KDPM2DiscreteScheduler", _PLAIN),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", _PLAIN),
    "dpm2_a_karras": ("KDPM2AncestralDiscreteScheduler", _KARRAS),
    "dpm2_karras": ("KDPM2DiscreteScheduler", _KARRAS),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {**_DPMPP_2M, **_PLAIN}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {**_DPMPP_2M, **_KARRAS}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {**_DPMPP_2M_SDE, **_PLAIN}),
    "dpmpp_2m_sde_karras": ("DPMSolverMultistepScheduler", {**_DPMPP_2M_SDE, **_KARRAS}),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {**_DPMPP_2S, **_PLAIN}),
    "dpmpp_2s_karras": ("DPMSolverSinglestepScheduler", {**_DPMPP_2S, **_KARRAS}),
    "euler": ("EulerDiscreteScheduler", _PLAIN),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "euler_karras": ("EulerDiscreteScheduler", _KARRAS),
    "heun": ("HeunDiscreteScheduler", _PLAIN),
    "heun_karras": ("HeunDiscreteScheduler", _KARRAS),
    "lcm": ("LCMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", _PLAIN),
    "lms_karras": ("LMSDiscreteScheduler", _KARRAS),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),  # "plms": without Runge-Kutta steps, as Stable Diffusion's own
    "tcd": ("TCDScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {**_UNIPC, **_PLAIN}),
    "unipc_karras": ("UniPCMultistepScheduler", {**_UNIPC, **_KARRAS}),
}

ETA_SAMPLERS = ("ddim", "tcd")

# What the network was trained on, and so no sampler's to choose.
_OF_THE_BASE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
)
_PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
_WITHOUT_SAMPLE_PREDICTION = ("dpm2", "dpm2_a", "dpm2_a_karras", "dpm2_karras", "euler_a", "pndm")
_FROM_PURE_NOISE = (
    *("ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_sde", "dpmpp_2m_sde_karras"),
    *("euler", "euler_a", "euler_karras", "lcm", "tcd", "unipc", "unipc_karras"),
)
_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")  # known to every class
_DISTILLED = ("lcm", "tcd")
_DISTILLATION_STEPS = 50  # of the walk they were distilled from, where the config names none
_ONE_POINT_MORE = ("deis", "dpmpp_2m", "dpmpp_2m_sde", "unipc")  # lay steps + 1 points and leave the last one out
_OWN_GRID = ("dpmpp_2s", *_DISTILLED)  # neither spacing nor offset of the config


def make_sampler(
    name: str, scheduler_config: Mapping[str, Any] | Any, *, steps: int | None = None, eta: float = 0.0
) -> Any:
    """The diffusers scheduler of that name for the base whose scheduler, or scheduler config, is given.

    Betas and prediction type stay the base's, even where its config leaves them to the defaults of its class, which
    are not those of every other class. `steps` and `eta`, if given, are checked; they are the pipeline's to pass on.
    """
    class_name, options = _entry(name)
    check_eta(name, eta)

    import diffusers

    from controlkit.diffusion.prediction import check_prediction
    from controlkit.diffusion.schedules import from_scheduler_config, source_scheduler

    source = source_scheduler(scheduler_config)
    given = scheduler_config if isinstance(scheduler_config, Mapping) else scheduler_config.config
    stated = {**source.config, **given}
    prediction_type = stated.get("prediction_type", "epsilon")
    _check_prediction_type(name, prediction_type)
    schedule = from_scheduler_config(source)
    check_prediction(prediction_type, schedule)

    kind = getattr(diffusers, class_name)
    known = inspect.signature(kind.__init__).parameters
    of_the_base = {key: stated[key] for key in _OF_THE_BASE if key in stated}
    if stated.get("beta_schedule") not in _BETA_SCHEDULES:
        of_the_base["trained_betas"] = source.betas.tolist()
    if schedule.alpha_bar[-1] == 0:
        if name not in _FROM_PURE_NOISE:
            raise ValueError(
                f"sampler {name!r} cannot start at alpha_bar = 0, where this base's schedule ends (zero terminal SNR); "
                f"use one of {', '.join(_FROM_PURE_NOISE)}"
            )
        of_the_base["rescale_betas_zero_snr"] = True
    # Some classes clip x_0 to ±1 unless told otherwise. Latents do not keep to that: a base whose own scheduler knows
    # no clipping gets none.
    if "clip_sample" not in (stated if "_class_name" in given else given):
        of_the_base["clip_sample"] = False
    of_the_base["original_inference_steps"] = _distillation_steps(stated)
    of_the_base = {key: value for key, value in of_the_base.items() if key in known}
    scheduler = kind.from_config(given, **{**of_the_base, **options})
    if steps is not None:
        check_steps(name, steps, stated)
        _check_grid(name, steps, scheduler.config)
    return scheduler


def accepts_eta(name: str) -> bool:
    """Whether eta, the noise of a step between 0 and 1, means anything to this sampler."""
    _entry(name)
    return name in ETA_SAMPLERS


def check_eta(name: str, eta: float) -> None:
    """Refuse an eta outside [0, 1], or above 0 where the sampler has none."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta:g}: expected 0 (deterministic) to 1 (as noisy as DDPM)")
    if eta > 0 and not accepts_eta(name):
        raise ValueError(f"eta={eta:g}: sampler {name!r} has no eta; leave it at 0, or use {' or '.join(ETA_SAMPLERS)}")


def check_steps(name: str, steps: int, scheduler_config: Mapping[str, Any]) -> None:
    """Refuse no steps, and more than the schedule has."""
    _entry(name)
    most = int(scheduler_config.get("num_train_timesteps", 1000))
    reason = f"the schedule of this base has {most}"
    if name in _DISTILLED and _distillation_steps(scheduler_config) < most:
        most = _distillation_steps(scheduler_config)
        reason = f"sampler {name!r} takes some of the {most} it was distilled from"
    if not 1 <= steps <= most:
        raise ValueError(f"{steps} steps: {reason}; expected 1 to {most}")


def _entry(name: str) -> tuple[str, dict[str, Any]]:
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    return SAMPLERS[name]


def _check_prediction_type(name: str, prediction_type: str) -> None:
    if prediction_type not in _PREDICTION_TYPES:
        raise ValueError(
            f"this base predicts {prediction_type!r}; the samplers here take {', '.join(_PREDICTION_TYPES)}"
        )
    if prediction_type == "sample" and name in _WITHOUT_SAMPLE_PREDICTION:
        able = [other for other in SAMPLERS if other not in _WITHOUT_SAMPLE_PREDICTION]
        raise ValueError(f"sampler {name!r} cannot take a base that predicts 'sample'; use one of {', '.join(able)}")


def _distillation_steps(scheduler_config: Mapping[str, Any]) -> int:
    asked = int(scheduler_config.get("original_inference_steps", _DISTILLATION_STEPS))
    return min(asked, int(scheduler_config.get("num_train_timesteps", 1000)))


def _check_grid(name: str, steps: int, config: Mapping[str, Any]) -> None:
    """Refuse a grid that leaves the schedule or stands still: diffusers would index past its end, or divide by 0."""
    if name in _OWN_GRID or config.get("use_karras_sigmas"):
        return
    T, offset, spacing = int(config["num_train_timesteps"]), int(config["steps_offset"]), config["timestep_spacing"]

    def fits(steps: int) -> bool:
        points = steps + 1 if name in _ONE_POINT_MORE else steps
        last = (points - 1) * (T // points) + offset if spacing == "leading" else T - 1
        return points <= T and last < T

    if spacing != "trailing" and not fits(steps):
        most = next((fewer for fewer in range(steps, 0, -1) if fits(fewer)), 0)
        raise ValueError(
            f"{steps} steps: sampler {name!r} with {spacing} spacing and offset {offset} finds room for {most} on a "
            f"schedule of {T}; take at most {most}"
        )
