"""Model files of other tools: read safely, recognised by their tensors, renamed to diffusers' layout and back."""
