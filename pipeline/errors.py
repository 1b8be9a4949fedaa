"""The one error that a user is meant to read: a single line that says what is wrong and what to do next."""


class UserError(Exception):
    """A mistake in input, parameters or environment, told in one line.

    `pipeline.run` prints it without a traceback and exits with code 2; `LFM_DEBUG=1` shows the traceback too.
    """
