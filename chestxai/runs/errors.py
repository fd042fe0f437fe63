"""The errors a user can act on. Everything else is a bug and keeps its traceback."""


class InputError(ValueError):
    """A file, setting or argument that the user can mend; the message says what, where and how."""


class MissingError(InputError, FileNotFoundError):
    """Something that has to be made or downloaded first; the message names the command or the address."""

    # OSError formats its arguments by itself; the plain text is what we want.
    __str__ = ValueError.__str__


class DivergedError(InputError, FloatingPointError):
    """A model whose loss, weights or output are no longer finite."""


# Words in an error → what to do about it.
_REMEDIES = {
    ("No space left", "quota exceeded", "os error 28"): "free some disk space and run again; finished work is kept",
    ("Permission denied", "Operation not permitted", "Read-only file system"): "check the folder's permissions, or "
    "choose another folder",
    ("DeadKernelError",): "if it ran out of memory, use fewer --workers or smaller batches",
    ("OutOfMemoryError", "out of memory"): "in the profile, raise finetune.accumulate, lower grounding.batch or "
    "sampling.batch, set finetune.precision to bf16 or finetune.gradient_checkpointing to true; finished work is kept",
}


def remedy(line: str) -> str:
    """What to do about an error, to be put behind its message; "" where it says so itself or nothing is known."""
    known = [remedy for words, remedy in _REMEDIES.items() if any(word in line for word in words)]
    return f". Remedy: {known[0]}" if known and "Remedy" not in line and "in the profile" not in line else ""


def explain(name: str, text: str) -> str:
    """An error of the class ``name`` with the message ``text`` on one line, with a remedy where it has none."""
    line = " ".join(f"{name}: {text}".split())
    advice = remedy(line)
    return line.rstrip(".") + advice if advice else line
