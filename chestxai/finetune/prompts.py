"""From a study to the prompt it is trained with."""

from __future__ import annotations

from collections.abc import Sequence

from chestxai import reports
from chestxai.studies import Study


def study_prompts(studies: Sequence[Study]) -> tuple[list[Study], list[str], list[str]]:
    """The studies that have a prompt, their prompts, and one line for each study that has none."""
    usable, prompts, skipped = [], [], []
    for study in studies:
        try:
            prompts.append(reports.prompt(study.report))
            usable.append(study)
        except ValueError as error:
            skipped.append(f"{study.id}: {error}")
    return usable, prompts, skipped
