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
    ("DeadKernelError",): "if it ran out of memory, use fewer --workers or smaller batches",
    ("OutOfMemoryError", "out of memory"): "in the profile, raise finetune.accumulate, lower grounding.batch or "
    "sampling.batch, set finetune.precision to bf16 or finetune.gradient_checkpointing to true; finished work is kept",
}


def explain(name: str, text: str) -> str:
    """An error on one line, with a remedy where its message has none.

    Args:
        name: class of the error.
        text: its message.
    """
    line = " ".join(f"{name}: {text}".split())
    remedies = [remedy for words, remedy in _REMEDIES.items() if any(word in line for word in words)]
    return line if "Remedy" in line or "in the profile" in line or not remedies else f"{line}. Remedy: {remedies[0]}"
