"""`controlkit train` by plain gradient descent: weights then differ by what the gradients differ by.

Adam divides each gradient by its own size. Where that is all but zero, its rounding becomes a step of full length, and
no two ways of adding up a batch end with the same weights.
"""

import sys

import torch

import train_controlnet
from controlkit.cli.main import main


def descend(config, parameters):
    """In the place of the trainer's `make_optimizer`."""
    return torch.optim.SGD(parameters, lr=config.lr)


def take_descent():
    """For a process that trains."""
    train_controlnet.make_optimizer = descend


if __name__ == "__main__":
    take_descent()
    sys.exit(main(["train", *sys.argv[1:]]))
