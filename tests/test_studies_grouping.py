"""Finished runs as conditions: how they are grouped, named and compared; data of known truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unmix.commands.compare_report import differences_of
from unmix.commands.conditions import conditions_table
from unmix.figures.seed_dots import neighbors
from unmix.per_image import PerImage, keep_per_image
from unmix.results import Evaluation, RunResults
from unmix.studies.grouping import ComparedRun, GroupedRuns, group_runs
from unmix.studies.naming import texts_of


def run(
    seed: int, knn: float, folder: Path = Path("nowhere"), k: int = 200, **changed: Any
) -> ComparedRun:
    settings = {
        "method": "moco", "unmix": False, "lr": 0.06, "size": 32, "limit": None, "seed": seed,
        **changed,
    }  # fmt: skip
    data, mixture = settings.pop("data", "photos"), "Un-Mix" if settings["unmix"] else "none"
    results = RunResults(
        name=f"{mixture}-{seed}", method=settings["method"], mixture=mixture, data=data,
        backbone="resnet10", width=1.0, size=settings.get("size", 32), epochs=12, seed=seed,
        command="unmix pretrain", evaluations=(Evaluation("knn", 12, knn, None, {"k": k}),),
        training={"seconds": 90.0},
    )  # fmt: skip
    label = settings["method"] + (" + Un-Mix" if settings["unmix"] else "")
    return ComparedRun(folder, results, settings, label)


def grouped(*runs: ComparedRun) -> GroupedRuns:
    return group_runs(runs)


def test_runs_that_differ_in_the_seed_alone_are_one_condition_with_the_verdict_of_studies():
    plain = [run(s, 28.0 + s / 10) for s in range(6)]
    mixed = [run(s, 35.0 + s / 5, unmix=True) for s in range(6)]
    found = grouped(*mixed, *plain)
    assert list(found.groups) == ["moco", "moco + Un-Mix"]
    assert found.words() == [
        "moco + Un-Mix against moco, kNN: better by 7.2 points (95% interval 7.1 to 7.4, "
        "6 paired seeds)"
    ]
    table = conditions_table(found.findings)
    assert [cell.text for cell in table.rows[1]] == [
        "moco + Un-Mix", "12", "–", "–", "1:30 min", "6", "35.5 ± 0.4",
    ]  # fmt: skip
    assert [cell.best for cell in table.rows[1]] == [False] * 6 + [True]
    assert not any(cell.best for cell in table.rows[0])


def test_three_seeds_cannot_be_told_from_noise_and_nothing_is_marked():
    found = grouped(
        *(run(s, 28.0) for s in range(3)), *(run(s, 29.2, unmix=True) for s in range(3))
    )
    assert found.words() == [
        "moco + Un-Mix against moco, kNN: no verdict from 3 paired seeds (+1.2 points); "
        "6 are needed"
    ]
    assert not any(cell.best for row in conditions_table(found.findings).rows for cell in row)


def test_conditions_are_named_by_what_differs_and_nothing_else():
    found = grouped(run(0, 50.0), run(0, 51.0, lr=0.12), run(0, 52.0, unmix=True, lr=0.12))
    assert list(found.groups) == ["moco, lr 0.06", "moco, lr 0.12", "moco + Un-Mix, lr 0.12"]
    # A mixture is compared with the run that it shares its other settings with.
    assert found.families["moco"] == [
        ("moco, lr 0.12", "moco, lr 0.06"), ("moco + Un-Mix, lr 0.12", "moco, lr 0.12"),
    ]  # fmt: skip
    assert found.differing()["lr"] == {
        "moco, lr 0.06": 0.06, "moco, lr 0.12": 0.12, "moco + Un-Mix, lr 0.12": 0.12,
    }  # fmt: skip
    assert "method" not in found.differing()


def test_a_method_of_which_there_is_one_condition_is_named_by_it_alone_if_much_differs():
    plain = {"lr": 0.06, "epochs": 12, "batch_size": 64}
    own = {"lr": 0.1, "epochs": 9, "batch_size": 7}
    names = [
        list(grouped(run(0, 50.0, **plain), run(0, 40.0, **{**plain, **other})).groups)
        for other in ({"method": "byol", **own}, {"method": "byol", "lr": 0.1},
                      {"unmix": True, **own})
    ]  # fmt: skip
    assert names[0] == ["moco", "byol"]
    assert names[1] == ["moco, lr 0.06", "byol, lr 0.1"]
    assert names[2][1] == "moco + Un-Mix, lr 0.1, epochs 9, batch size 7"


def test_methods_are_compared_in_a_family_of_their_own():
    found = grouped(run(0, 50.0), run(0, 52.0, unmix=True), run(0, 40.0, method="byol"))
    assert found.families["methods"] == [("byol", "moco")]
    assert found.families["moco"] == [("moco + Un-Mix", "moco")]


def test_a_mixture_stands_below_what_it_is_compared_with_and_is_joined_to_it():
    runs = [run(s, 50.0 + s, method=m, unmix=u) for u in (True, False) for m in ("moco", "byol")
            for s in (0, 1)]  # fmt: skip
    found = grouped(*runs)
    assert list(found.groups) == ["moco", "moco + Un-Mix", "byol", "byol + Un-Mix"]
    differences = differences_of(found.findings)
    assert {d.text for d in differences} == {"+0.0 (too few seeds to tell)"}
    assert neighbors(list(found.groups), differences) == [
        ("moco", "moco + Un-Mix"), ("byol", "byol + Un-Mix"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"data": "digits"}, "data is digits and photos"),
        ({"size": 16}, "size is 16 and 32"),
        ({"limit": 100}, "limit is 100 and none"),
        ({"k": 20}, "k is 20 and 200"),
    ],
)
def test_different_data_or_protocols_are_no_comparison(changed: dict[str, Any], why: str):
    found = grouped(run(0, 50.0), run(0, 60.0, unmix=True, **changed))
    first, second = found.groups
    assert found.words() == [f"{second} against {first}: different settings: no comparison ({why})"]
    assert found.findings.comparisons == []


def test_runs_of_the_same_settings_and_seed_count_once():
    found = grouped(run(0, 50.0), run(0, 51.0), run(1, 52.0))
    assert found.groups["moco"].accuracies("knn") == {0: 50.0, 1: 52.0}
    assert found.repeated == ("none-0 has the settings and the seed of none-0; counted once.",)


def kept(folder: Path, correct: list[bool], images: str = "these", **changed: Any) -> ComparedRun:
    found = np.array(correct)
    one = run(0, 100 * float(found.mean()), folder, **changed)
    row = one.results.evaluations[0]
    plain = {"protocol": "knn", "epoch": 12, "top1": row.top1, **row.details}
    keep_per_image(folder, [PerImage(plain, images, found)])
    return one


def test_two_single_runs_are_compared_on_the_same_test_images(tmp_path: Path):
    plain = kept(tmp_path / "a", [True] * 50 + [False] * 50)
    mixed = kept(tmp_path / "b", [True] * 60 + [False] * 40, unmix=True)
    verdict, single = grouped(plain, mixed).words()
    assert verdict.endswith("no verdict from 1 paired seed (+10.0 points); 6 are needed")
    assert single == (
        "  single runs, kNN: +10.0 points on 100 test images (95% interval over images "
        "+4.0 to +16.0, McNemar p = 0.002): of these two encoders, not of their methods"
    )


def test_single_runs_without_predictions_or_on_other_images_say_why_there_is_no_test(
    tmp_path: Path,
):
    plain = kept(tmp_path / "a", [True, False])
    _, line = grouped(plain, run(0, 60.0, tmp_path / "b", unmix=True)).words()
    assert line.startswith(
        "  single runs, kNN: no test image by image, for Un-Mix-0: it kept no predictions of "
        f"single images (unmix knn {tmp_path / 'b'} measures them)"
    )
    runs = [
        replace(each, results=replace(each.results, evaluations=(tuned,)))
        for tuned in [Evaluation("finetune-10%", 1, 60.0)]
        for each in (plain, run(0, 60.0, tmp_path / "b", unmix=True))
    ]
    runs = [replace(each, at=1) for each in runs]
    assert "(the same `unmix finetune` with --overwrite measures them)" in "".join(
        grouped(*runs).words()
    )
    other = kept(tmp_path / "c", [True, True], "others", unmix=True)
    _, line = grouped(plain, other).words()
    assert line == "  single runs, kNN: no test image by image: their test images differ"
    same = kept(tmp_path / "d", [True, True], unmix=True)
    _, line = grouped(plain, same).words()
    assert line == "  single runs, kNN: no test image by image: it needs 3 test images or more"


def timed(seconds: float, taken: float, unmix: bool = False) -> ComparedRun:
    one = run(0, 50.0, unmix=unmix)
    training = {"seconds": seconds, "cores_taken_by_others": taken}
    hardware = {"cpu": "a", "cores": 4, "threads": 3}
    return replace(one, results=replace(one.results, training=training, hardware=hardware))


@pytest.mark.parametrize(
    ("plain", "mixed", "says"),
    [
        ((2.21, 0.0), (2.18, 0.0), "as much training time (2.2 s)"),
        ((187.0, 0.0), (188.0, 0.0), "as much training time (3:08 min and 3:07 min)"),
        ((2.0, 0.9), (3.0, 1.1), "1.50x the training time (3.0 s instead of 2.0 s)"),
        ((2.0, 1.5), (3.0, 0.0),
         "1.50x the training time (3.0 s instead of 2.0 s, on a busy machine)"),
    ],
)  # fmt: skip
def test_the_cost_in_time_says_no_more_than_was_measured(
    plain: tuple[float, float], mixed: tuple[float, float], says: str
):
    found = grouped(timed(*plain), timed(*mixed, unmix=True)).findings
    assert found.cost("moco + Un-Mix", "moco") == f"Cost of moco + Un-Mix against moco: {says}."
    times = [row[4].text for row in found.rows()]
    assert [" (busy)" in text for text in times] == [plain[1] > 1.2, mixed[1] > 1.2]


def test_the_command_that_measures_euclidean_knn_is_one_that_does():
    one, other = run(0, 50.0), run(0, 60.0, unmix=True)
    rows = [
        replace(each, results=replace(
            each.results, evaluations=(Evaluation("knn-euclidean", 12, 50.0, None, {"k": 5}),)
        ))
        for each in (one, other)
    ]  # fmt: skip
    assert "(unmix knn --metric euclidean nowhere measures them)" in grouped(*rows).words()[1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"lr": 0.12345}, {"lr": 0.123451}),
        ({"weight_decay": 1e-4}, {"weight_decay": 1.00001e-4}),
        ({"mean": [0.1, 0.2, 0.3]}, {"mean": [0.1, 0.2, 0.30001]}),
        ({}, {"neighbors": 5}),  # a setting that one of them does not have
    ],
)
def test_conditions_whose_rounded_names_are_alike_are_two_with_all_their_runs(
    one: dict[str, Any], other: dict[str, Any]
):
    runs = [run(s, 50.0 + s / 10, **one) for s in range(6)]
    runs += [run(s, 70.0 + s / 20, **other) for s in range(6)]
    found = grouped(*runs)
    assert [len(group.runs) for group in found.groups.values()] == [6, 6]
    assert len(found.findings.comparisons) == 1


def test_the_table_of_settings_shows_values_that_differ_as_different_texts():
    assert texts_of([0.12345, 0.123451, None], "lr") == ["0.12345", "0.123451", "–"]
    assert texts_of([0.12345, 0.5], "lr") == ["0.1235", "0.5"]
