"""The one door to a tree of `predict`: what analyses may read off it, checked once.

classes        class probabilities, and observed classes        ``open_classes``
case_numbers   the same, one per case, of trees that may lack some        ``open_case_numbers``
numbers        predicted distributions, draws, observed numbers ``open_numbers``
masks          sampled masks                                    ``open_draws``
graders        masks of several graders                         ``open_annotations``
groups         groups and variables of the tree, decoded        ``find_group``
layers         features of layers, where kept                   ``open_layers``
likelihoods    log-likelihood of the observation                ``open_log_likelihood``
attributions   maps of attribution                              ``select_maps``
copies         draws that are copies of each other, dropped     ``drop_copies``
pairs          two trees of the same draws, side by side        ``open_class_pair``
boxes          boxes of every draw, and observed ones          ``open_boxes``
cases          ids, groups, weights; the same cases everywhere
augmentations  trees of `predict_augmented`: ``open_augmented``, ``average_augmentations``
blocks         parts that fit in memory: trees may be larger than it
left_out       what was not observed, and how it is reported

An entry is a case, or a pixel of a case. What was not observed is -1 in labels and masks and NaN in
numbers. Every analysis that reads observations leaves such entries out and gives what it would give
on the other entries alone; a case without any is NaN in results per case and left out of means.
Every Dataset it returns says so in its attributes:

    left_out          entries that were not observed
    left_out_cases    cases of which no entry was observed
    num_cases         cases that count: those with an observed entry

Analyses of what was predicted alone need no observation and leave nothing out. A prediction that is
NaN is an error: it says that a draw has diverged.
"""

from ppl_med.analysis.tree.attributions import select_maps
from ppl_med.analysis.tree.augmentations import (
    augmented_blocks,
    average_augmentations,
    open_augmented,
)
from ppl_med.analysis.tree.blocks import Block, Part, join_blocks, split_blocks
from ppl_med.analysis.tree.boxes import BoxDraws, observed_boxes, open_boxes, overlaps
from ppl_med.analysis.tree.case_numbers import CaseNumbers, open_case_numbers
from ppl_med.analysis.tree.cases import (
    case_coords,
    case_ids,
    case_units,
    case_weights,
    check_apart,
    check_cases,
    check_disjoint,
    metadata_groups,
    other_samples,
    unit_names,
)
from ppl_med.analysis.tree.classes import Classes, Posterior, class_names, has_probs, open_classes
from ppl_med.analysis.tree.distinct_draws import drop_copies
from ppl_med.analysis.tree.graders import (
    Case,
    Weights,
    compared_cases,
    grader_distribution,
    open_annotations,
    sample_distribution,
)
from ppl_med.analysis.tree.groups import class_site, find_group, find_variable
from ppl_med.analysis.tree.layers import functions_of, mean_features, open_layers
from ppl_med.analysis.tree.left_out import UNANNOTATED, count_left_out, known
from ppl_med.analysis.tree.likelihoods import (
    LogLikelihood,
    needed_log_likelihood,
    open_log_likelihood,
)
from ppl_med.analysis.tree.masks import (
    ClassList,
    Draws,
    check_range,
    class_indices,
    class_labels,
    open_draws,
    open_probabilities,
)
from ppl_med.analysis.tree.numbers import DRAWS, Numbers, find_distribution, open_numbers
from ppl_med.analysis.tree.pairs import open_class_pair, open_number_pair

__all__ = [
    "DRAWS",
    "UNANNOTATED",
    "Block",
    "BoxDraws",
    "Case",
    "CaseNumbers",
    "ClassList",
    "Classes",
    "Draws",
    "LogLikelihood",
    "Numbers",
    "Part",
    "Posterior",
    "Weights",
    "augmented_blocks",
    "average_augmentations",
    "case_coords",
    "case_ids",
    "case_units",
    "case_weights",
    "check_apart",
    "check_cases",
    "check_disjoint",
    "check_range",
    "class_indices",
    "class_labels",
    "class_names",
    "class_site",
    "compared_cases",
    "count_left_out",
    "drop_copies",
    "find_distribution",
    "find_group",
    "find_variable",
    "functions_of",
    "grader_distribution",
    "has_probs",
    "join_blocks",
    "known",
    "mean_features",
    "metadata_groups",
    "needed_log_likelihood",
    "observed_boxes",
    "open_annotations",
    "open_augmented",
    "open_boxes",
    "open_case_numbers",
    "open_class_pair",
    "open_classes",
    "open_draws",
    "open_layers",
    "open_log_likelihood",
    "open_number_pair",
    "open_numbers",
    "open_probabilities",
    "other_samples",
    "overlaps",
    "sample_distribution",
    "select_maps",
    "split_blocks",
    "unit_names",
]
