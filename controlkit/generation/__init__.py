"""A request becomes pictures, by diffusers' own pipelines."""
