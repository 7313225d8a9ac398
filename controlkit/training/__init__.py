"""Training a ControlNet: configuration, batches, objective, checkpoints, run folder. The loop: train_controlnet.py."""
