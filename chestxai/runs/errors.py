"""The errors a user can act on. Everything else is a bug and keeps its traceback."""


class InputError(ValueError):
    """A file, setting or argument that the user can mend; the message says what, where and how."""


class MissingError(InputError, FileNotFoundError):
    """Something that has to be made or downloaded first; the message names the command or the address."""

    # OSError formats its arguments by itself; the plain text is what we want.
    __str__ = ValueError.__str__


class DivergedError(InputError, FloatingPointError):
    """A model whose loss, weights or output are no longer finite."""
