"""The blind comparison: who gets a pick, and how often two equal searchers are told apart by chance."""

import json
from random import Random

import numpy as np
import pytest
from serve_data import TEXTS, searcher, serving

from embedfit.serve.feedback import Feedback
from embedfit.serve.interleaving import preferences, team_draft
from embedfit.serve.summary import summarise


def row(person, team, search="s"):
    shown = [{"id": "x", "team": "A", "teams": ["A", "B"]}, {"id": "y", "team": "B", "teams": ["A", "B"]}]
    return {"kind": "pick", "person": person, "search": search, "choice": {"A": "x", "B": "y"}.get(team), "shown": json.dumps(shown)}


def picks(teams):
    return [row("", team, f"s{number}") for number, team in enumerate(teams)]


class Coins:
    def __init__(self, *coins):
        self.coins = list(coins)

    def randrange(self, _):
        return self.coins.pop(0)


@pytest.mark.parametrize(("coins", "ids", "teams"), [("000", "abcedf", "010101"), ("011", "abecfd", "011010"), ("100", "bacedf", "100101")])
def test_the_papers_rankings_by_hand(coins, ids, teams):
    drafted = team_draft("abcdgh", "beafgh", 6, Coins(*map(int, coins)))
    assert ("".join(drafted.ids), "".join(map(str, drafted.teams))) == (ids, teams)


@pytest.mark.parametrize(("k", "ids"), [(1, "a"), (2, "ab"), (5, "abcde"), (9, "abcdefg")])
def test_equal_rankings_stay_as_they_are_and_each_team_has_its_half(k, ids):
    drafted = team_draft("abcdefg", "abcdefg", k, Random(0))
    assert "".join(drafted.ids) == ids
    assert drafted.probability == 1
    assert abs(drafted.teams.count(0) - drafted.teams.count(1)) <= 1


def test_the_probabilities_of_all_orders_add_up_to_one():
    orders = {}
    for seed in range(200):
        drafted = team_draft("abcd", "bdae", 4, Random(seed))
        orders[drafted.ids] = drafted.probability
    assert sum(orders.values()) == pytest.approx(1)
    assert team_draft([], [], 5, Random(0)).ids == ()
    assert team_draft("a", [], 5, Random(0)).ids == ("a",)


def test_an_exact_interval_and_people_as_the_unit():
    [one] = preferences(picks("B" * 9 + "A" + "-"))
    assert (one.wins_first, one.wins_second, one.neither, one.people) == (1, 9, 1, 11)
    assert (one.low, one.high) == (pytest.approx(0.5549839), pytest.approx(0.9974714))  # Clopper and Pearson
    assert one.winner == "B"
    assert one.sentence == "Blind comparison: 9 picks for B, 1 for A: 90% (55% to 100%) for B; B is preferred."
    [two] = preferences([row("Ann", "B", f"s{number}") for number in range(30)] + [row("Bob", "A", f"t{number}") for number in range(9)])
    assert (two.people, two.winner) == (2, None)  # 30 picks of one person say nothing of others
    assert preferences([{**row("", "A"), "kind": "click"}]) == ()


def test_two_equal_searchers_are_told_apart_in_at_most_one_comparison_of_twenty():
    """Whatever place people prefer, and also if each person has a taste of their own."""
    random, wins, runs = Random(1), {"places": 0, "people": 0}, 250
    for _ in range(runs):
        teams = []
        for _ in range(40):
            first, second = (random.sample("abcdefgh", 8) for _ in range(2))
            drafted = team_draft(first, second, 5, random)
            teams.append("AB"[drafted.teams[min(4, int(random.expovariate(1)))]])  # the first places are picked most
        wins["places"] += preferences(picks(teams))[0].winner is not None
        rows = []
        for person in range(8):
            taste = random.choice([0.1, 0.9])
            rows += [row(f"p{person}", "B" if random.random() < taste else "A", f"s{person}-{number}") for number in range(10)]
        wins["people"] += preferences(rows)[0].winner is not None
    allowed = 0.05 * runs + 2 * np.sqrt(0.05 * 0.95 * runs)
    assert max(wins.values()) <= allowed, wins


def test_a_better_searcher_wins_and_nobody_sees_whose_answer_is_whose(word_encoder, tmp_path):
    better = searcher(word_encoder)
    better.name = "better"
    last = [hit.id for hit in better.searcher.search("zorbing", 5)][-1]
    better.learn([("k", "zorbing", last)])
    with serving(searcher(word_encoder), tmp_path, other=better, agreement="second-person") as client:  # neither learns
        for _ in range(20):
            answer = client.post("/search", json={"query": "zorbing", "k": 2}).json()
            assert {(hit["score"], hit["probability"], len(hit["because"])) for hit in answer["hits"]} == {(0.0, None, 0)}
            assert "better" not in json.dumps(answer)
            ids = [hit["id"] for hit in answer["hits"]]
            assert set(ids) <= set(TEXTS)
            client.post("/feedback", json={"search_id": answer["search_id"], "choice": last if last in ids else None})
    store = Feedback(tmp_path / "feedback.db")
    summary = summarise(store)
    store.close()
    [preference] = summary.preferences
    assert (preference.first, preference.second, preference.winner) == ("words", "better", "better")
    assert any("better is preferred" in sentence for sentence in summary.sentences)
    assert summary.to_dict()["preferences"][0]["winner"] == "better"
    assert summary.explored is None
