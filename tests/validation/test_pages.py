"""Lines of the page that are computed from scores."""

from autopar.validation.published.pages import mixed_line
from autopar.validation.step_time.score import ChoiceScore


def choice(device: str, regret: float) -> ChoiceScore:
    return ChoiceScore(
        family="x",
        model="GPT",
        device=device,
        devices=16,
        global_batch=32,
        plans=43,
        regret=regret,
        rule_regret=0.5,
        in_top3=True,
        kendall_tau=0.5,
    )


def test_a_mixed_cluster_is_told_apart_with_the_regret_of_its_choice():
    line = mixed_line([choice("T4", 0.5), choice("V100+T4 (heterogeneous)", 0.031)])
    assert "16 devices of V100+T4" in line
    assert "43 measured plans" in line
    assert "3.1%" in line
    assert "50" not in line


def test_no_mixed_cluster_is_said():
    assert "No set" in mixed_line([choice("T4", 0.5)])
