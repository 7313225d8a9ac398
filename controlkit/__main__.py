"""`python -m controlkit`, and so `accelerate launch -m controlkit`: the same as the command `controlkit`."""

from controlkit.cli.main import run

if __name__ == "__main__":
    run()
