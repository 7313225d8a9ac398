"""The libraries' own progress bars and advice, silenced: the command line shows its own."""

import functools


@functools.cache
def quiet_libraries() -> None:
    """Say nothing while models load; warnings stay off too, since what matters is checked and said by us."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
