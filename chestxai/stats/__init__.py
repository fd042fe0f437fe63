# ruff: noqa: F401, I001
"""Intervals and tests for scores that come in clusters: several phrases of one patient are not independent.

The unit of resampling is the *group* (the patient) with all of its rows, so that intervals cover a new sample of
patients (Field & Welsh 2007, "Bootstrapping clustered data"). With few patients the textbook percentile interval
undercovers: in simulations of skewed scores, 1 to 3 phrases per patient, 95 % intervals cover the mean in 88 to 91 %
(10 patients), 92 to 95 % (28) and 94 to 95 % (100, 250). Expanded, as by default, they cover it in 93 to 97 % from 20
patients on; below that `FewGroupsWarning` is issued. Seeds are a second level, crossed with patients: `seeds_ci`.
"""

from chestxai.stats.intervals import FEW_GROUPS, Difference, FewGroupsWarning, Interval, SeedInterval
from chestxai.stats.intervals import bootstrap_ci, bootstrap_statistic, format_interval, seeds_ci
from chestxai.stats.simulation import clustered_scores, coverage
from chestxai.stats.tables import format_table
from chestxai.stats.tests import holm, minimal_detectable_difference, p_above, paired_difference, sign_flip_test
