"""Studies: what a study file may say, what its cells show, and what is refused."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from unmix.cli import main
from unmix.config import Settings
from unmix.config.earlier import RenamedWarning
from unmix.errors import UserError
from unmix.studies import Study, StudyResults, read_study
from unmix.studies.cells import Cell, changed_settings, result_settings
from unmix.studies.conditions import parse_seeds
from unmix.studies.cost import Cost, epochs_for
from unmix.studies.summary import over_rows
from unmix.training.loading.batch import Batch
from unmix.training.run.parts import build_parts
from unmix.training.run.pretrain import settings_for

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence"
SMALL = {
    "method": "moco", "data": "photos", "limit": 64, "epochs": 2, "batch_size": 32,
    "queue_size": 64, "logger": "none", "device": "cpu",
}  # fmt: skip


def study(text: str, name: str = "tried") -> Study:
    return Study.of(yaml.safe_load(textwrap.dedent(text)), name)


TWO = """
    base: {method: moco, data: photos}
    conditions: {plain: {}, Un-Mix: {unmix: true}}
    seeds: 0-5
"""


def test_conditions_are_compared_with_the_first_unless_the_file_says_otherwise() -> None:
    assert study(TWO).comparisons == {"": [("Un-Mix", "plain")]}
    assert study(TWO + "    baseline: Un-Mix\n").comparisons == {"": [("plain", "Un-Mix")]}
    asked = study(TWO + "    comparisons: {main: [[plain, Un-Mix]]}\n")
    assert asked.comparisons == {"main": [("plain", "Un-Mix")]}


def test_logs_are_named_as_their_runs(tmp_path: Path) -> None:
    """A condition "IM at 0.5" is no name with an extension, which would be cut off."""
    cells = [Cell("IM at 0.5", seed, {}, {}, None, tmp_path) for seed in (0, 1)]
    logs = [cell.log for cell in cells]
    assert [log.name for log in logs] == [f"{cell.run.name}.log" for cell in cells]
    assert len({*logs}) == 2


def test_crossed_factors_are_compared_within_the_levels_of_the_others() -> None:
    found = study("""
        vary:
          augmentation: {none: {flip_p: 0}, full: {}}
          mixture: {plain: {}, Un-Mix: {unmix: true}, i-Mix: {unmix: true, unmix_rule: imix}}
        seeds: 0-6
    """)
    assert list(found.conditions) == [
        "none, plain", "none, Un-Mix", "none, i-Mix", "full, plain", "full, Un-Mix", "full, i-Mix",
    ]  # fmt: skip
    assert found.comparisons["none"] == [
        ("none, Un-Mix", "none, plain"),
        ("none, i-Mix", "none, plain"),
    ]
    assert found.settings("none, i-Mix", 3) == {
        "flip_p": 0, "unmix": True, "unmix_rule": "imix", "seed": 3,
    }  # fmt: skip


def test_a_list_of_values_is_a_factor_too() -> None:
    found = study("vary: {lr: [0.03, 0.06]}\nseeds: 0-5\n")
    assert list(found.conditions) == ["lr=0.03", "lr=0.06"]


def test_one_value_is_nothing_to_compare_and_errors_name_the_file_not_a_flag() -> None:
    """`--vary lr=0.03` trained six runs."""
    with pytest.raises(UserError, match="vary lr has one value, so there is nothing to compare"):
        study("vary: {lr: [0.03]}\nseeds: 0-5\n")
    found = study("vary: {method: [moco], mixture: [none, unmix]}\nseeds: 0-5\n")
    assert list(found.conditions) == ["moco, none", "moco, unmix"]
    with pytest.raises(UserError) as caught:
        study(SOME + "    condition: {}\n")
    assert caught.value.on_command_line().startswith("study: key: 'condition' is unknown. Did you")


def test_methods_and_mixtures_are_crossed_where_they_go_together() -> None:
    found = study("""
        vary: {method: [moco, barlow], mixture: [none, IM, unmix, "unmix:fmix", mixbt]}
        seeds: [0]
        exploratory: true
    """)
    assert list(found.conditions) == [
        "moco, none", "moco, IM", "moco, unmix", "moco, unmix:fmix",
        "barlow, none", "barlow, IM", "barlow, unmix", "barlow, unmix:fmix", "barlow, mixbt",
    ]  # fmt: skip
    assert found.left_out[0].startswith("moco, mixbt: it has no cross-correlation")
    assert found.conditions["moco, unmix:fmix"].settings == {
        "method": "moco", "unmix": True, "unmix_rule": "unmix", "unmix_mixture": "fmix",
    }  # fmt: skip
    with pytest.raises(UserError, match="mixbt cannot be used with moco"):
        study("conditions: {a: {unmix: true, unmix_rule: mixbt}, b: {}}")
    with pytest.raises(UserError, match="Did you mean 'unmix'"):
        study("vary: {mixture: [none, umix]}")


def tried(**content: Any) -> Study:
    return Study.of({"seeds": "0-5", "exploratory": True, **content}, "tried")


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"config": "moco-unmix-cifar10"}, {"none": "none", "IM": "IM", "unmix": "Un-Mix"}),
        ({"base": {"unmix": True}}, {"none": "none", "IM": "IM", "imix": "i-Mix"}),
        ({"base": {"IM": True}}, {"none": "none", "unmix": "Un-Mix"}),
        ({}, {"none": "none", "unmix:fmix": "Un-Mix (fmix)"}),
    ],
)
def test_a_level_of_mixture_says_all_of_it_whatever_base_and_recipe_mix(
    content: dict[str, Any], names: dict[str, str]
) -> None:
    """Where the recipe mixes, "none" was trained with Un-Mix."""
    found = tried(**content, vary={"mixture": list(names)})
    assert {name: found.resolved(name, 0).mixture.name for name in names} == names


def test_what_the_levels_of_mixture_say_is_not_said_in_the_base() -> None:
    with pytest.raises(UserError, match="base: unmix_mixture is what the levels of mixture say"):
        tried(base={"unmix": True, "unmix_mixture": "fmix"}, vary={"mixture": ["none", "unmix"]})


def test_whether_a_rule_applies_is_asked_of_the_method_that_the_recipe_says() -> None:
    found = tried(config="barlow-photos", vary={"mixture": ["none", "mixbt", "imix"]})
    assert list(found.conditions) == ["none", "mixbt"]
    assert found.left_out[0].startswith("imix: its loss is a scalar per batch")
    named = {"none": {}, "mixbt": {"unmix": True, "unmix_rule": "mixbt"}}
    assert list(tried(config="barlow-photos", conditions=named).conditions) == list(named)
    named["imix"] = {"unmix": True, "unmix_rule": "imix"}
    with pytest.raises(UserError, match="imix cannot be used with barlow: its loss is a scalar"):
        tried(config="barlow-photos", conditions=named)
    # A recipe that mixes, and a method that cannot.
    config = {"config": "moco-unmix-cifar10", "base": {"unmix_rule": "imix", "unmix_prob": None}}
    found = tried(**config, vary={"method": ["moco", "barlow"]})
    assert (list(found.conditions), len(found.left_out)) == (["moco"], 1)
    with pytest.raises(UserError, match="condition 'a': --unmix_rule: 'imx' is unknown"):
        tried(conditions={"a": {"unmix": True, "unmix_rule": "imx"}, "b": {}})


def test_settings_of_a_view_as_a_mapping_are_overridden_like_any_other() -> None:
    """A condition without augmentation solarized half of its second views."""
    own = {
        "none": {"augmentation": "none"},
        "a": {"second_view": {"blur_p": 0.1}},
        "b": {"second_solarize_p": 0.1},
    }
    found = tried(base={"second_view": {"solarize_p": 0.5}}, conditions=own)
    flat = {**own, "a": {"second_blur_p": 0.1}}
    assert found == tried(base={"second_solarize_p": 0.5}, conditions=flat)
    of_second = {
        name: (views.second_solarize_p, views.second_blur_p)
        for name in own
        if (views := found.resolved(name, 0).views)
    }
    assert of_second == {"none": (None, None), "a": (0.5, 0.1), "b": (0.1, None)}
    crossed = tried(vary={
        "blur": {"x": {"second_view": {"blur_p": 0.1}}, "y": {}},
        "solar": {"u": {"second_view": {"solarize_p": 0.2}}, "v": {}},
    })  # fmt: skip
    assert crossed.conditions["x, u"].settings == {"second_blur_p": 0.1, "second_solarize_p": 0.2}


def test_old_names_in_base_are_overridden_by_present_ones() -> None:
    with pytest.warns(RenamedWarning, match="normalise_last is now called normalize_last"):
        found = tried(
            base={"method": "dino", "normalise_last": True},
            conditions={"a": {}, "b": {"normalize_last": False}},
        )
    assert found.resolved("b", 0).method["normalize_last"] is False


@pytest.mark.parametrize("config", [[["moco"]], [1, 2], [None], 3])
def test_a_config_that_names_no_recipe_is_refused(config: Any) -> None:
    with pytest.raises(UserError, match=r"config is .+; it must be a recipe or a list of recipes"):
        tried(config=config, vary={"lr": [0.1, 0.2]})
    with pytest.raises(UserError, match=r"config: .+ must be a recipe or a YAML file, or a list"):
        settings_for({}, config)


def test_a_study_is_what_its_own_file_says() -> None:
    before = study("""
        about: Does it help?
        base: {method: moco, data: photos}
        conditions:
          plain: {}
          longer: {same_compute_as: Un-Mix}
          Un-Mix: {unmix: true}
        seeds: [0, 1, 2, 3, 4, 5, 6]
        evaluations: [knn]
    """)
    assert Study.of(yaml.safe_load(yaml.safe_dump(before.content())), "tried") == before


SOME = """
    base: {method: moco, data: photos}
    conditions: {plain: {}, Un-Mix: {unmix: true}, i-Mix: {unmix: true, lr: 0.1, seeds: 0-1}}
    comparisons: [[Un-Mix, plain]]
    seeds: 0-5
"""


def test_a_condition_may_have_fewer_seeds_if_no_verdict_is_asked_of_it() -> None:
    found = study(SOME)
    assert found.seeds_of("plain") == (0, 1, 2, 3, 4, 5)
    assert found.seeds_of("i-Mix") == (0, 1)
    assert len(found.cells) == 14
    assert found.cells[:4] == [("plain", 0), ("Un-Mix", 0), ("i-Mix", 0), ("plain", 1)]
    assert Study.of(yaml.safe_load(yaml.safe_dump(found.content())), "tried") == found
    cells = [cell(name, seed, 50.0 + seed) for name, seed in found.cells]
    shown = StudyResults(found, cells).markdown()
    assert "i-Mix against" not in shown
    assert "missing" not in shown
    assert "| i-Mix | 40 | 4.0 | 1.00x | 3:00 min | 2 | 50.5 ± 0.7 | 55.5 ± 0.7 |" in shown
    assert StudyResults(found, cells[:-1]).missing() == ["Un-Mix, seed 5"]
    with pytest.raises(UserError, match=r"seeds: 0-1 are 2 seeds that the conditions have"):
        study(SOME.replace("[[Un-Mix, plain]]", "[[i-Mix, plain]]"))
    with pytest.raises(UserError, match="condition 'i-Mix': seeds: 'x' is no seed"):
        study(SOME.replace("0-1", "x"))


@pytest.mark.parametrize(
    ("value", "seeds"),
    [("0-5", (0, 1, 2, 3, 4, 5)), ([3, 1], (3, 1)), ("0,2 4", (0, 2, 4)), ("7", (7,))],
)
def test_seeds(value: Any, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(value) == seeds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("    seeed: 1", "'seeed' is unknown. Did you mean 'seeds'?"),
        (
            "    seeds: 0-4",
            "seeds: 0-4 are 5 seeds, too few for one comparison at level 0.05; give 6 or more, "
            "such as 0-5, or `exploratory` for no verdict.",
        ),
        ("    seeds: 6", "6 could be one seed or several"),
        ("    seeds: 3-1", "'3-1' is no seed"),
        ("    seeds: 0 0 1 2 3 4", "0 is given twice"),
        ("    baseline: Un-Mxi", "Did you mean 'Un-Mix'?"),
        ("    evaluations: [cmc]", "'cmc' is unknown"),
        ("    conditions: {a: {unmixx: true}, b: {}}", "condition 'a': --unmixx: unknown setting"),
        ("    conditions: {a: {lr: -1}, b: {}}", "condition 'a': --lr: -1 is out of range"),
        ("    conditions: {a: {}, b: {lr: 0.06}}", "conditions 'a' and 'b' differ in nothing"),
        ("    conditions: {a: {}, b: {limit: 100}}", "limit is 100 and None; it must be the same"),
        ("    conditions: {a: {}, b: {size: 16}}", "size is 16"),
        ("    conditions: {a: {}, b: {test_folder: c}}", "test_folder is 'c' and None"),
        ("    conditions: {a: {}, b: {label_column: c}}", "label_column is 'c' and None"),
        ("    conditions: {a: {}, b: {max_pixels: 99}}", "max_pixels is 99"),
        ("    conditions: {a: {}, b: {knn_k: 5}}", "knn_k is 5"),
        ("    conditions: {a: {}, b: {seed: 3}}", "condition 'b': seed is the study's"),
        ("    conditions: {a: {}, A: {lr: 0.1}}", "would have the same file name, a"),
        ("    conditions: {a: {}, b: {same_compute_as: c}}", "same cost as: 'c' is unknown"),
        ("    conditions: {}", "conditions is empty"),
        ("    vary: {lr: [1, 2]}", "one of them"),
        ("    base: {second_view: 3}", "base: second_view: 3 is not a mapping of settings"),
        ("    conditions: {a: {second_view: 3}, b: {}}", "condition 'a': second_view: 3 is not a"),
        ("    comparisons: [[plain]]", "['plain'] is no pair"),
        ("    comparisons: [[plain, plain]]", "is compared with itself"),
    ],
)
def test_mistakes_are_one_line_that_says_what_would_be_right(change: str, message: str) -> None:
    content = {**yaml.safe_load(textwrap.dedent(TWO)), **yaml.safe_load(textwrap.dedent(change))}
    if "b" in content.get("conditions", {}):
        content["base"]["lr"] = 0.06
    with pytest.raises(UserError) as caught:
        Study.of(content, "tried")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_few_seeds_name_what_was_typed_and_where(
    tmp_path: Path, refuse: Callable[..., str]
) -> None:
    words = ["--method", "moco", "--data", "photos", "--out", tmp_path / "s"]
    vary = ["--vary", "unmix=no,yes", "--vary", "lr=0.1,0.2,0.3", "--seeds", "2", "4-8"]
    assert refuse("study", "mine", *vary, *words) == (
        "--seeds: 2,4-8 are 6 seeds, too few for 2 comparisons ('unmix=no') at level 0.05; give "
        "7 or more, such as 0-6, or --exploratory for no verdict."
    )
    file = tmp_path / "mine.yaml"
    file.write_text(textwrap.dedent(TWO.replace("0-5", "[3]")), encoding="utf-8")
    assert refuse("study", file) == (
        f"{file}: seeds: 3 is one seed, too few for one comparison at level 0.05; give 6 or more, "
        "such as 0-5, or --exploratory for no verdict."
    )
    # What the message offers is taken, beside a file too.
    assert Study.load(file, exploratory=True).exploratory


def test_the_remedies_of_a_conditions_error_are_flags(
    tmp_path: Path, refuse: Callable[..., str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(textwrap.dedent(TWO.replace("photos", "cifar10")), encoding="utf-8")
    line = refuse("study", file, "--out", tmp_path / "s")
    assert line.startswith("condition 'plain': --data_dir: cifar10 needs a folder DIR that holds ")
    assert line.endswith(", or add --download to fetch it.")


def test_fewer_seeds_are_for_exploring_alone() -> None:
    found = study(TWO.replace("0-5", "0-1") + "    exploratory: true\n")
    cells = [cell("plain", 0, 50.0), cell("plain", 1, 51.0), cell("Un-Mix", 0, 60.0)]
    shown = StudyResults(found, [*cells, cell("Un-Mix", 1, 62.0)]).markdown()
    assert "+10.5 points over 2 paired seeds; this study is exploratory" in shown
    assert "better" not in shown


def cell(condition: str, seed: int, knn: float, **changed: Any) -> dict[str, Any]:
    return {
        "schema": 1, "condition": condition, "seed": seed, "settings": {"seed": seed, "lr": 0.1},
        "accuracies": {"knn": knn, "linear": knn + 5}, "epochs": 40, "seconds": 180.0 + seed,
        "cores_taken_by_others": 0.0,
        "cost": {"forward_equivalents": 7.0 if condition == "Un-Mix" else 4.0,
                 "images_per_epoch": 5000}, "code": {"sources": "a"}, **changed,
    }  # fmt: skip


def test_times_of_a_machine_that_may_have_been_busy_are_not_compared() -> None:
    """Cells of the first versions do not say what other processes took."""
    cells = [cell("plain", s, 28.0) for s in range(6)] + [cell("Un-Mix", s, 35.0) for s in range(6)]
    results = StudyResults(study(TWO), cells)
    assert "training time" in results.markdown()
    for each in cells[:6]:
        del each["cores_taken_by_others"]
    shown = StudyResults(study(TWO), cells).markdown()
    assert "training time" not in shown
    assert "1.75x the forward-equivalents" in shown
    assert "| plain | 40 | 4.0 | 1.00x | – | 6 |" in shown
    assert "| Un-Mix | 40 | 7.0 | 1.75x | 3:02 min | 6 |" in shown


def test_a_table_opens_with_the_verdict_and_has_what_it_cost() -> None:
    cells = [cell("plain", s, 28.0 + s / 10) for s in range(6)]
    cells += [cell("Un-Mix", s, 35.0 + s / 5) for s in range(6)]
    lines = StudyResults(study(TWO), cells).markdown().splitlines()
    assert lines[0].startswith("- Un-Mix against plain, kNN: better by 7.2 points (95% interval 7.")
    assert lines[1].startswith("- Un-Mix against plain, linear: better by")
    assert "| plain | 40 | 4.0 | 1.00x | 3:02 min | 6 | 28.2 ± 0.2 | 33.2 ± 0.2 |" in lines
    assert "| Un-Mix | 40 | 7.0 | 1.75x | 3:02 min | 6 | 35.5 ± 0.4 | 40.5 ± 0.4 |" in lines


def test_json_has_every_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study(TWO).content()))
    for name, start in (("plain", 50.0), ("Un-Mix", 52.0)):
        for seed in range(6):
            content = json.dumps(cell(name, seed, start + seed / 7))
            (tmp_path / "cells" / f"{name}-{seed}.json").write_text(content)
    assert main(["study", "show", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    first = found["comparisons"][0]
    assert first["differences"] == pytest.approx([2.0] * 6)
    assert {"interval", "bca", "p", "p_adjusted", "std", "words"} <= set(first)
    assert found["accuracies"]["Un-Mix"]["knn"]["0"] == 52.0
    assert found["missing"] == []


def test_published_numbers_stand_beside_ours() -> None:
    found = study(TWO + "    published: {plain: 90.49 after 1000 epochs}\n")
    lines = StudyResults(found, [cell("plain", 0, 50.0)]).markdown().splitlines()
    assert lines[-2].endswith("| 50.0 | 55.0 | 90.49 after 1000 epochs |")
    with pytest.raises(UserError, match="published: 'plan' is unknown"):
        study(TWO + "    published: {plan: 90}\n")


def test_how_many_trials_a_tuned_setting_got_is_told() -> None:
    found = study(TWO + "    tuned: {lr: 6}\n")
    assert study(yaml.safe_dump(found.content())) == found
    told = StudyResults(found, [cell("plain", 0, 50.0)]).markdown()
    assert (
        "- note: lr was chosen from 6 trials of each condition, as the study file states\n" in told
    )
    assert "trial" not in StudyResults(study(TWO), []).markdown()
    with pytest.raises(UserError, match=r"tuned: 'lrr' is unknown. Did you mean 'lr'\?"):
        study(TWO + "    tuned: {lrr: 6}\n")
    with pytest.raises(UserError, match=r"tuned.lr is 0"):
        study(TWO + "    tuned: {lr: 0}\n")


def test_planned_comparisons_count_also_where_cells_are_missing() -> None:
    found = study("""
        conditions: {plain: {}, a: {lr: 0.1}, b: {lr: 0.2}, c: {lr: 0.3}, d: {lr: 0.4}}
        seeds: 0-7
    """)
    cells = [cell(name, s, v) for name, v in (("plain", 10.0), ("a", 20.0)) for s in range(6)]
    results = StudyResults(found, cells)
    first = results.comparisons()[0]
    assert first.result is not None
    assert first.result.comparisons == 4
    assert "8 are needed for 4 comparisons" in first.words()
    assert "28 cells are missing: plain, seed 6" in results.markdown()


def test_cells_of_other_code_or_settings_are_marked() -> None:
    cells = [cell("plain", 0, 50.0), cell("plain", 1, 50.0, code={"sources": "b"})]
    assert "2 versions of the code" in StudyResults(study(TWO), cells).markdown()
    # All seeds alike, but not what the study says: `--stale keep`.
    kept = [cell("plain", s, 50.0, settings={"seed": s, "epochs": 3}) for s in range(2)]
    planned = study(TWO.replace("photos}", "photos, epochs: 5}"))
    assert planned.base["epochs"] == 5
    assert StudyResults(planned, kept).marks() == [
        "plain was measured with other settings: epochs 3, not 5"
    ]
    cells[1] = cell("plain", 1, 50.0, settings={"seed": 1, "lr": 0.2})
    assert "seeds of plain were not trained with the same settings" in "\n".join(
        StudyResults(study(TWO), cells).marks()
    )


def test_cells_of_seeds_or_conditions_that_are_not_planned_do_not_count(tmp_path: Path) -> None:
    """Those of an earlier plan, of other settings, were in the verdict."""
    (tmp_path / "cells").mkdir()
    planned = study(TWO.replace("0-5", "6-11"))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(planned.content()))
    for seed in range(12):
        gain = -1.0 if seed > 5 else 8.0
        for name, value in (("plain", 50.0), ("Un-Mix", 50.0 + gain), ("gone", 90.0)):
            text = json.dumps(cell(name, seed, value + seed % 3 / 9))
            (tmp_path / "cells" / f"{name}-{seed}.json").write_text(text)
    found = read_study(tmp_path)
    assert "kNN: worse by 1.0 points" in found.markdown().splitlines()[0]
    assert "6 paired seeds" in found.markdown().splitlines()[0]
    assert found.missing() == []
    assert (
        "- note: 24 cells in the folder are of other conditions or seeds than the study's, and do "
        "not count: Un-Mix, seed 0; Un-Mix, seed 1; Un-Mix, seed 2 and 21 more\n"
    ) in found.markdown()


def test_damaged_cells_are_named(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study(TWO).content()))
    file = tmp_path / "cells" / "plain-0.json"
    for content, message in (
        ("{", "is damaged (no valid JSON); remove it"),
        ("[]", "is not a cell"),
        (json.dumps({**cell("plain", 0, 50.0), "seed": "0"}), "seed is '0'"),
        (json.dumps(cell("plain", 0, 500.0)), "accuracies.knn is 500.0"),
        (json.dumps({**cell("plain", 0, 5.0), "schema": 9}), "is not a cell"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=r"plain-0\.json") as caught:
            read_study(tmp_path)
        assert message in str(caught.value)
    with pytest.raises(UserError, match=r"no study\.yaml"):
        read_study(tmp_path / "cells")


def test_equal_cost_is_counted_in_epochs() -> None:
    found = study("""
        conditions:
          plain: {}
          longer: {same_compute_as: Un-Mix}
          as long: {same_time_as: Un-Mix}
          Un-Mix: {unmix: true}
        seeds: 0-6
    """)
    plain, unmix = Cost(4.0, 0.1, 39, 40, 128), Cost(7.0, 0.15, 39, 40, 128)
    costs = {"plain": plain, "longer": plain, "as long": plain, "Un-Mix": unmix}
    assert epochs_for(found, costs) == {"plain": 40, "longer": 70, "as long": 60, "Un-Mix": 40}


def test_too_few_epochs_to_be_of_equal_cost_are_refused() -> None:
    found = study("""
        conditions: {Un-Mix: {unmix: true}, longer: {same_compute_as: Un-Mix}}
        seeds: 0-6
    """)
    few = {"Un-Mix": Cost(7.0, 0.15, 39, 1, 128), "longer": Cost(4.0, 0.1, 39, 1, 128)}
    with pytest.raises(
        UserError, match=r"'longer': no whole .* 2 are 114% of it. Give that one more"
    ):
        epochs_for(found, few)
    four = {"Un-Mix": Cost(7.0, 0.15, 39, 4, 128), "longer": Cost(4.0, 0.1, 39, 4, 128)}
    assert epochs_for(found, four)["longer"] == 7


def test_where_a_run_lies_is_no_other_setting() -> None:
    def resolved(**words: Any) -> dict[str, Any]:
        return result_settings(settings_for({"method": "moco", **words})[0])

    assert resolved() == resolved(run="elsewhere", workers=3, logger="none")
    assert changed_settings(resolved(), resolved(lr=0.5)) == ["lr 0.06 -> 0.5"]


def first_step(**words: Any) -> tuple[dict[str, torch.Tensor], list[torch.Tensor], Batch]:
    """Initial weights, the first step's views and its batch."""
    parts = build_parts(Settings.of(settings_for({**SMALL, **words})[0].flat()))
    module = parts.module
    module.order.position = lambda: (0, 0)
    from unmix.training.loading.loaders import build_loader

    batch = next(iter(build_loader(parts.train, module.views, module.order, resident=True)))
    from unmix.randomness import generator_for

    views = module.make_views(batch, generator_for(module.seed, "step", 0))
    return module.method.state_dict(), views, batch


def test_a_seed_gives_all_conditions_the_same_weights_order_and_views() -> None:
    weights, views, batch = first_step(seed=3)
    for words in (
        {"unmix": True},
        {"unmix": True, "unmix_rule": "imix"},
        {"unmix": True, "unmix_mixture": "fmix"},
    ):
        others, mixed_views, other_batch = first_step(seed=3, **words)
        assert all(torch.equal(value, others[name]) for name, value in weights.items())
        assert torch.equal(batch.index, other_batch.index)
        assert all(torch.equal(a, b) for a, b in zip(views, mixed_views, strict=True))
    # Image space perturbs the very same views; without a mixture drawn nothing is left of it.
    *_, im_batch = first_step(seed=3, IM=True)
    _, same, _ = first_step(seed=3, IM=True, g_prob=0.0, r_prob=0.0)
    assert torch.equal(batch.index, im_batch.index)
    assert all(torch.equal(a, b) for a, b in zip(views, same, strict=True))
    other_weights, other_views, _ = first_step(seed=4)
    assert not torch.equal(views[0], other_views[0])
    assert any(not torch.equal(v, other_weights[n]) for n, v in weights.items())


@pytest.mark.parametrize(
    "path",
    sorted(EVIDENCE.glob("*.yaml"))
    + sorted((Path(__file__).parents[1] / "benchmarks").glob("*.yaml")),
    ids=lambda path: path.name,
)
def test_the_studies_of_the_evidence_can_be_run_as_they_stand(path: Path) -> None:
    found = Study.load(path)
    assert found.name == path.stem
    assert len(found.conditions) >= 2


@pytest.mark.parametrize(
    "folder",
    sorted({p.parents[1] for p in EVIDENCE.glob("*/cells/*.json")}),
    ids=lambda path: path.name,
)
def test_the_cells_that_ship_are_of_their_study_and_name_no_machine(folder: Path) -> None:
    found = read_study(folder)
    assert found.study == Study.load(folder.with_suffix(".yaml"))
    assert found.cells
    # Of its own: cells of a neighboring study are as good, and named.
    assert [mark for mark in found.marks() if "measured by study" not in mark] == []
    for content in found.cells:
        expected = found.study.resolved(content["condition"], content["seed"], content["epochs"])
        assert changed_settings(content["settings"], result_settings(expected)) == []
        assert "/" not in content["command"]


METHODS = """
    base: {data: photos}
    vary: {method: [moco, simclr, byol], mixture: [none, unmix]}
    seeds: 0-5
"""


def test_over_several_methods_there_is_a_mean_difference_and_a_mean_rank() -> None:
    gains = {"moco": 1.0, "simclr": 2.0, "byol": 3.0}
    cells = [
        cell(f"{method}, {mixture}", seed, 50.0 + seed + (mixture == "unmix") * gain)
        for method, gain in gains.items() for mixture in ("none", "unmix") for seed in range(6)
    ]  # fmt: skip
    text = StudyResults(study(METHODS), cells).markdown()
    # Half the t quantile of two degrees of freedom by 1 / sqrt(3): 4.303 * 0.577 = 2.5
    interval = "95% interval over methods -0.5 to +4.5"
    assert f"- over 3 methods, kNN: unmix +2.0 points to none ({interval}), mean rank 1.0" in text
    assert "mean rank 1.0 against 2.0 (1.0 to 1.0) of 2" in text
    # A method that lacks a level does not count, and seeds that one level lacks do not.
    fewer = [c for c in cells if not (c["condition"] == "byol, unmix" or c["seed"] > 2)]
    over = StudyResults(study(METHODS), fewer).as_dict()["over_rows"][0]
    assert over["ranks"]["unmix"]["rows"] == 2
    assert over["ranks"]["unmix"]["mean_difference"] == pytest.approx(1.5)


def test_data_sets_are_rows_too_and_one_method_alone_has_no_such_line() -> None:
    text = METHODS.replace("base: {data: photos}", "base: {}").replace("mixture:", "mixture:")
    text = text.replace("method: [moco, simclr, byol]", "data: [photos, digits]")
    names = ("data=photos, none", "data=photos, unmix", "data=digits, none", "data=digits, unmix")
    cells = [cell(name, 0, 50.0 + i) for i, name in enumerate(names)]
    assert (
        "over 2 data sets, kNN: unmix +1.0 points to none, mean rank 1.0 against 2.0; an interval "
        "over data sets needs 3 or more of them, here are 2"
    ) in StudyResults(study(text), cells).markdown()
    assert "over " not in StudyResults(study(TWO), [cell("plain", 0, 5.0)]).markdown()


def test_methods_with_names_of_their_own_and_another_baseline_have_the_same_sentences() -> None:
    plain = METHODS.replace("[none, unmix]", "[none, unmix, imix]").replace("0-5", "0-6")
    named = plain.replace(
        "[moco, simclr, byol]",
        "{MoCo: {method: moco}, SimCLR: {method: simclr}, BYOL: {method: byol}}",
    )
    for changed, reference in (("", "none"), ("    baseline: unmix\n", "unmix")):
        told = []
        for text in (plain, named):
            own = study(text + changed)
            cells = [
                cell(name, seed, 50.0 + place % 3 + seed)
                for place, name in enumerate(own.conditions) for seed in range(7)
            ]  # fmt: skip
            told.append([o.words("kNN") for o in over_rows(StudyResults(own, cells))])
        assert told[0] == told[1] != []
        assert all(f" points to {reference} (" in line for line in told[0][0])
