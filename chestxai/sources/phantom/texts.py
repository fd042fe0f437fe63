"""What the radiologist writes: a report of the lesions that were drawn, and the findings that it states or negates."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from chestxai.sources.phantom.patients import Lesion, Patient
from chestxai.studies import FINDINGS, Box, Finding, box_of

_WORDS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
_NAMES: dict[str, tuple[list[str], list[str]]] = _WORDS["names"]
_GRADES, _GRADED = _WORDS["grades"], {"Cardiomegaly": _WORDS["cardiomegaly"]}
_ZONES, _NORMAL, _DEVICES = _WORDS["zones"], _WORDS["normal"], _WORDS["devices"]


def write_report(
    one: Patient, masks: Sequence[np.ndarray], rng: np.random.Generator
) -> tuple[str, tuple[Finding, ...]]:
    """A report of ``one`` exposure, and its findings: those that are present, then those that the text negates.

    A finding's phrase is a verbatim passage of the text; that of a present one is in the impression, too, where it may
    be capitalised. ``masks`` are bool ``(size, size)``, one per lesion; ``rng`` chooses the words.
    """
    phrases = [_phrase(lesion, rng) for lesion in one.lesions]
    absent = [name for name in FINDINGS if name not in {lesion.name for lesion in one.lesions}]
    # A faint lesion is not a positive proof of absence; reports negate what matters and is not there.
    denied = [str(n) for n in rng.choice(absent, size=int(rng.integers(0, 3)), replace=False)] if absent else []
    numbered, shout = rng.random() < 0.25, rng.random() < 0.15
    impression = _impression(phrases, denied, numbered, rng)
    details = _details(one, phrases, denied, rng)
    style = rng.random()
    if style < 0.55:
        text = f"INDICATION: {one.age}-year-old with XXXX.\nFINDINGS: {details}\nIMPRESSION: {impression}"
    elif style < 0.75:
        text = f"{one.view} chest radiograph.\n\nFindings: {details}\n\nImpression: {impression}"
    elif style < 0.9:
        text = f"FINDINGS:\n{details}\n\nIMPRESSION:\n{impression}"
    else:
        text = impression
    if shout:
        text = text.upper()
    findings = []
    for lesion, phrase, mask in zip(one.lesions, phrases, masks, strict=True):
        about = (_verbatim(text, phrase), True, _side(lesion), lesion.zone or None, lesion.severity)
        findings.append(Finding(lesion.name, *about, boxes=_boxes(mask, lesion, one), mask=mask))
    for name in denied:
        words = _NAMES[name][0][0]
        phrase = _verbatim(text, f"no evidence of {words}") or _verbatim(text, f"no {words}")
        # Not every style has all negations, and what the text does not say is not negated.
        if phrase:
            findings.append(Finding(name, phrase, present=False))
    return text, tuple(findings)


def _side(lesion: Lesion) -> str | None:
    return {-1: "right", 1: "left", 0: None if lesion.name == "Cardiomegaly" else "bilateral"}[lesion.side]


def _phrase(lesion: Lesion, rng: np.random.Generator) -> str:
    canonical, synonyms = _NAMES[lesion.name]
    name = str(rng.choice(canonical if rng.random() < 0.75 else synonyms))
    grade = _GRADED.get(lesion.name, {}).get(lesion.severity) or str(rng.choice(_GRADES[lesion.severity]))
    zone = str(rng.choice(_ZONES[lesion.zone]))
    return " ".join(filter(None, [grade, _side(lesion) if lesion.side else "", zone, name]))


def _impression(phrases: Sequence[str], denied: Sequence[str], numbered: bool, rng: np.random.Generator) -> str:
    sentences = [_sentence(phrase) for phrase in phrases]
    if len(phrases) == 2 and rng.random() < 0.5:
        sentences = [_sentence(" and ".join(phrases))]
    if numbered and len(sentences) > 1:
        sentences = [f"{i}. {text}" for i, text in enumerate(sentences, 1)]
    if not phrases:
        sentences = [str(rng.choice(_NORMAL))]
    if denied and rng.random() < 0.4:
        sentences.append(_sentence(f"no {_NAMES[denied[0]][0][0]}"))
    return " ".join(sentences)


def _details(one: Patient, phrases: Sequence[str], denied: Sequence[str], rng: np.random.Generator) -> str:
    body = [_DEVICES[one.device]] if one.device else []
    if rng.random() < 0.3:
        body.append(str(rng.choice(_WORDS["comparisons"])))
    body += [f"There is {'an' if phrase[0] in 'aeiou' else 'a'} {phrase}." for phrase in phrases]
    body += [f"{'No' if rng.random() < 0.5 else 'There is no evidence of'} {_NAMES[n][0][0]}." for n in denied]
    if not phrases:
        body.append("The lungs are clear. The heart is normal in size.")
    if rng.random() < 0.4:
        body.append("The osseous structures are intact.")
    return " ".join(body)


def paraphrase(findings: Sequence[Finding], rng: np.random.Generator) -> str:
    """The same in other words: ``findings``, in an order and in terms drawn by ``rng``; those of any source."""
    sentences = []
    for one in (findings[i] for i in rng.permutation(len(findings))):
        names = [word for words in _NAMES.get(one.name, ((one.name.lower(),),)) for word in words]
        grade = _GRADED.get(one.name, {}).get(one.severity or "") or rng.choice(_GRADES.get(one.severity or "", ("",)))
        zone = rng.choice(_ZONES.get(one.zone or "", (one.zone or "",)))
        about = [grade, one.side, zone] if one.present else ["no"]
        pattern = rng.choice(["{}.", "{} is seen.", "the image shows {}.", "findings in keeping with {}."])
        text = " ".join(str(part) for part in [*about, rng.choice(names)] if part)
        sentences.append(_sentence(str(pattern if one.present else "{}.").format(text)[:-1]))
    return " ".join(sentences) or str(rng.choice(_NORMAL))


def _verbatim(text: str, words: str) -> str:
    start = text.lower().find(words)
    return text[start : start + len(words)] if start >= 0 else ""


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _boxes(mask: np.ndarray, lesion: Lesion, one: Patient) -> tuple[Box, ...]:
    halves = [mask]
    if lesion.name == "Edema":
        half = np.arange(mask.shape[1]) < one.midline * mask.shape[1]
        halves = [mask & half, mask & ~half]
    return tuple(filter(None, map(box_of, halves)))
