"""Sentences chosen by data, for any number of variants: numbers in, Markdown out, a module per group of chapters.

A sentence states an estimate with its interval, and chooses its verb by whether the interval excludes zero.
"""

# ruff: noqa: F401
from chestxai.sentences import answers, causes, fidelity, images, knowledge, localization, recipes, tradeoff, words
