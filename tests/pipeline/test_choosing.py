import json

import numpy as np
import pytest
import scipy.stats

from embedfit.config import make_config
from embedfit.data.dataset import Dataset
from embedfit.encode.local import LocalEncoder, load_model
from embedfit.encode.named import encoder_of
from embedfit.errors import ConfigError, ModelError
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.statistics import evidence
from embedfit.hub import parameters_of
from embedfit.pipeline.choosing import choose_model
from embedfit.pipeline.experiment import run
from embedfit.pipeline.result import config_of


@pytest.fixture(scope="module")
def scrambled(tiny_model, tmp_path_factory):
    """The folder of the one-layer model with its token embeddings in another order: as large, and of no use."""
    import torch

    model = load_model(tiny_model)
    weights = model.transformers_model.get_input_embeddings().weight
    with torch.no_grad():
        weights.copy_(weights[torch.randperm(len(weights), generator=torch.Generator().manual_seed(0))])
    folder = tmp_path_factory.mktemp("scrambled") / "scrambled"
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="module")
def some(transactions):
    part = transactions.select(transactions.judged[::4])
    return Dataset(part.queries, part.corpus, part.qrels, {"test": list(part.queries)[::4]})


def test_the_smallest_within_chance_of_the_best_is_chosen_without_the_held_out_queries(some, tiny_model, scrambled, tmp_path, said):
    models = [str(scrambled), str(tiny_model), "all-MiniLM-L6-v2"]
    choice = choose_model(some, models, output=str(tmp_path))
    rows = {row.name: row for row in choice.candidates}
    assert [row.parameters for row in choice.candidates] == sorted(row.parameters for row in choice.candidates)
    assert rows[str(tiny_model)].parameters == parameters_of(tiny_model) < rows["all-MiniLM-L6-v2"].parameters == 22_713_216
    assert not rows[str(scrambled)].may_be_best
    assert rows[str(scrambled)].high < 0
    assert choice.chosen == next(row.name for row in choice.candidates if row.may_be_best)
    assert rows[choice.chosen].searched > rows[choice.chosen].alone  # examples help
    assert (choice.queries, choice.held_out) == (len(some.queries) - len(some.parts["test"]), False)
    # Other answers to the held-out queries are the same choice, read from its record.
    test = set(some.parts["test"])
    wrong = {id: ({min(some.corpus): 1} if id in test else grades) for id, grades in some.qrels.items()}
    record = choice.folder / "choice.json"
    before = record.stat().st_mtime_ns
    assert choose_model(Dataset(some.queries, some.corpus, wrong, some.parts), models, output=str(tmp_path)) == choice
    assert record.stat().st_mtime_ns == before


def test_a_run_tunes_the_chosen_model_and_its_intervals_count_the_choice(some, tiny_model, scrambled, tmp_path):
    settings = {
        "split": {"folds": 2},
        "tune": {"epochs": 1},
        "evaluate": {"bm25": False},
        "searcher": {"views": ["documents"]},
        "general": {"measure": "off"},
    }
    model = {"candidates": [str(scrambled), str(tiny_model)], "precision": "fp32"}
    data = Dataset(some.queries, some.corpus, some.qrels)
    result = run(data, model=model, output=str(tmp_path), **settings)
    config = config_of(result)
    assert config.model.name == str(tiny_model)
    assert LocalEncoder(tiny_model, precision="fp32").fingerprint == result.manifest["base"]["fingerprint"]
    base, tuned = result.comparison.base, result.comparison.tuned
    both = compare_scores(base, tuned, choices=2)["mrr@10"]
    alone = compare_scores(base, tuned)["mrr@10"]
    row = result.comparison["mrr@10"]
    assert (row.low, row.high, row.p) == (both.low, both.high, both.p)
    assert both.low < alone.low < alone.high < both.high
    assert both.p == min(1, 2 * alone.p)
    assert "The base model was chosen among 2 on these queries" in result.report.read_text()
    assert run(data, model=model, output=str(tmp_path), **settings).reused


def test_without_candidates_nothing_changes_and_with_them_a_command_that_needs_a_model_says_so(tiny_model):
    config = make_config({"data": {"queries": "x.jsonl"}, "model": {"candidates": ["a", "b"]}})
    with pytest.raises(ModelError, match=r"model.candidates leaves the model open.*fix: 'embedfit candidates' chooses one"):
        encoder_of(config.model)
    assert encoder_of(config.model, str(tiny_model)).name == str(tiny_model)
    with pytest.raises(ConfigError, match="name is c, which is no candidate; fix: leave one of them out"):
        make_config({"data": {"queries": "x.jsonl"}, "model": {"name": "c", "candidates": ["a", "b"]}})


@pytest.mark.parametrize(
    ("models", "problem"),
    [((), "there are no models to choose from"), (("./nowhere",), r"model.candidates: \./nowhere cannot be used: .*nowhere")],
)
def test_a_candidate_that_cannot_be_loaded_is_refused_before_anything_is_measured(some, models, problem, tmp_path):
    with pytest.raises(ConfigError, match=problem):
        choose_model(some, models, output=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_command_prints_the_table_and_the_choice(some, tiny_model, tmp_path, monkeypatch, said):
    rows = [{"text": query.text, "label": min(some.relevant(id))} for id, query in some.queries.items()]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    code, out, _ = said("candidates", "queries.jsonl", "--model", tiny_model, "--json")
    choice = json.loads(out)
    assert (code, choice["chosen"], choice["held_out"]) == (0, str(tiny_model), True)
    code, out, _ = said("candidates", "queries.jsonl", "--model", tiny_model)
    assert code == 0
    assert choice["sentence"] in " ".join(out.split())


def test_the_luckiest_of_five_models_without_any_gain_is_called_better_in_at_most_one_case_of_forty():
    rng = np.random.default_rng(0)
    gaps = rng.choice([-1.0, 1.0], (5, 100, 500))  # models, queries, simulations
    luckiest = np.take_along_axis(gaps, gaps.mean(axis=1).argmax(axis=0)[None, None], axis=0)
    counted, alone = (evidence(luckiest, level=0.05 / choices) for choices in (5, 1))
    better = (counted.low > 0) & (5 * counted.p < 0.05)
    assert scipy.stats.binomtest(int(better.sum()), 500, 0.025, alternative="greater").pvalue > 0.01
    assert ((alone.low > 0) & (alone.p < 0.05)).mean() > 0.06  # as it would be if the choice were not counted
