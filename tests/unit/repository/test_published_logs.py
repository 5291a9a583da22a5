"""Our aggregation against numbers of published evaluation logs: OpenUnlearning's of Llama-3.2-1B-Instruct on TOFU.

Source, unless a test names another: github.com/nxZhai/BalDRO at 7b338ed92bc319dd684c7be18ce5c34cb5749606, which keeps
OpenUnlearning's saves/eval/tofu_Llama-3.2-1B-Instruct_full/evals_forget01/TOFU_EVAL.json (target) and
saves/eval/tofu_Llama-3.2-1B-Instruct_retain99/TOFU_EVAL.json (retain model): forget01's 40 questions, in order.
"""

import numpy as np
import pytest

from unlearngate.assistant_training.evaluate.figures import figures_of
from unlearngate.assistant_training.evaluate.memorization import member_auc
from unlearngate.assistant_training.evaluate.metrics import (
    UTILITY_METRICS,
    UTILITY_SETS,
    answer_probability,
    forget_quality,
    model_utility,
    truth_ratio,
)

TARGET_RATIOS = [
    0.5327843, 0.2114612, 0.7223057, 1.1586248, 0.3466380, 0.1685763, 0.4201352, 0.2385178, 0.9367620, 0.1447047,
    0.6120020, 0.7887859, 0.5278341, 0.8418172, 0.6458012, 0.4226088, 0.1700504, 0.9062180, 0.2867419, 0.3411729,
    0.4692723, 1.4416041, 1.0843367, 0.4421430, 0.3098121, 0.2432328, 0.0908406, 0.1424372, 0.7604214, 0.7782717,
    0.2694240, 0.5967476, 0.2776737, 0.4843493, 0.5634374, 0.3504596, 0.1993129, 0.2960943, 0.3423552, 0.5498785,
]  # fmt: skip
RETAIN_RATIOS = [
    0.9023615, 0.1987350, 0.6516924, 1.2991347, 0.8309734, 2.8496201, 0.5549100, 1.0166086, 0.9885567, 0.2201532,
    0.8820397, 0.9297430, 0.7611523, 0.9299138, 1.1970499, 0.4244545, 0.1942980, 0.9624175, 1.0548813, 0.4383048,
    1.2859501, 2.1661264, 1.4198093, 0.6030092, 1.2114568, 0.5702719, 0.3558204, 0.2939384, 0.9256739, 1.2387049,
    0.3483905, 0.7875880, 0.4306260, 0.7613438, 0.8156483, 0.5844474, 0.3383996, 0.5278018, 0.4111282, 0.9761990,
]  # fmt: skip
# Question -> the mean loss of the paraphrase, of the five wrong answers, and the logged truth ratio; of the target.
LOSSES = {
    0: (2.627347946, [2.922283173, 3.663544416, 3.211350203, 3.013553619, 3.474201202], 0.5327843262480526),
    3: (3.375081062, [3.174684763, 3.225800276, 3.140340805, 3.334030151, 3.264380455], 1.1586247823422422),
    7: (1.592995882, [2.899656057, 3.298128366, 2.904303074, 3.317540646, 2.711908817], 0.23851775891222576),
}


@pytest.mark.parametrize("question", LOSSES)
def test_a_questions_truth_ratio_is_the_published_one(question):
    paraphrased, perturbed, published = LOSSES[question]
    assert truth_ratio([[-paraphrased]], [[[-loss] for loss in perturbed]])[0] == pytest.approx(published, rel=1e-6)


def test_the_forget_sets_truth_ratio_is_the_published_one():
    for ratios, published in ((TARGET_RATIOS, 0.47275169797934485), (RETAIN_RATIOS, 0.6516009669722308)):
        figures = figures_of({"forget": {"truth_ratio": ratios}}, seed=0)
        assert figures["forget_truth_ratio"].value == pytest.approx(published, abs=1e-6)


def test_forget_quality_is_the_published_one():
    assert forget_quality(TARGET_RATIOS, RETAIN_RATIOS).p_value == pytest.approx(0.006760732303569208, rel=1e-9)


def test_an_answers_probability_is_the_published_one():
    # forget_Q_A_Prob of questions 0 and 21.
    assert answer_probability([[-0.13410265743732452], [-0.3145015835762024]]) == pytest.approx(
        [0.8745002746582031, 0.7301527261734009], rel=1e-6
    )


def test_membership_inference_by_loss_is_the_published_one():
    # mia_loss of the retain model: 40 forget and 40 holdout questions.
    forget = [
        1.3854055, 0.0619143, 0.1579413, 0.5500667, 1.3101737, 3.0139656, 1.5289524, 3.0210667, 1.7475557, 2.3927979,
        1.7959220, 1.8271098, 1.8210329, 2.1012774, 2.8896089, 2.2455993, 2.4577806, 2.1531012, 2.9883690, 1.6136665,
        4.1204195, 2.2947333, 2.5734963, 1.7044138, 1.7543210, 3.4864824, 2.1614587, 3.2657037, 2.2510712, 2.0753160,
        2.0094705, 2.8807595, 2.2905283, 3.0136566, 3.0339379, 1.8306271, 2.1944058, 3.0708995, 2.0555325, 2.0879159,
    ]  # fmt: skip
    holdout = [
        0.3952781, 1.3951008, 2.0119014, 0.6210679, 1.6478890, 3.1696789, 1.6374099, 1.5765685, 1.7232630, 2.7590666,
        2.5853078, 2.2723680, 2.5576482, 2.3777647, 2.3914654, 1.8344660, 2.8265371, 2.6385272, 2.5364459, 1.5712422,
        0.5449233, 2.4987371, 2.3045571, 2.2329278, 3.0233097, 1.4328587, 1.3470812, 1.3689147, 2.6635756, 2.9137108,
        2.6341693, 1.5205303, 1.7832730, 3.4984674, 4.1567163, 1.3487785, 1.8978108, 2.6329899, 2.5849476, 2.9637480,
    ]  # fmt: skip
    assert member_auc(-np.array(forget), -np.array(holdout)) == pytest.approx(0.48375, abs=1e-9)


def test_model_utility_is_the_published_one():
    # OpenUnlearning's summary of tofu_Llama-3.2-1B-Instruct_retain90, as another project's ranking script quotes it;
    # docs/repro.md of OpenUnlearning has the same utility, rounded to .59.
    nine = iter(
        [
            *(0.8802840007841587, 0.8264372396779979, 0.5138097597002513),
            *(0.3915799226316357, 0.8145, 0.5022027051450156),
            *(0.4279515925645054, 0.8022792022792024, 0.6156096615954564),
        ]
    )
    scores = {name: {metric: next(nine) for metric in UTILITY_METRICS} for name in UTILITY_SETS}
    assert model_utility(scores) == pytest.approx(0.5892923390686856, rel=1e-12)
