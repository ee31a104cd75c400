import pytest

from embedfit.data.dataset import Dataset
from embedfit.pipeline.checking import check


def test_of_many_texts_the_tokens_of_a_sample_and_of_all_long_texts_are_counted(monkeypatch):
    texts = [f"short text {number}" for number in range(40)] + ["long " * 300, "\ufdfa " * 60]
    dataset = Dataset.from_pairs(texts, ["one", "two"] * 21)
    whole = check(dataset, model="all-MiniLM-L6-v2")
    monkeypatch.setattr("embedfit.pipeline.checking._SAMPLED", 5)
    sampled = check(dataset, model="all-MiniLM-L6-v2")
    [before], [after] = ([finding for finding in each.findings if finding.kind == "truncated"] for each in (whole, sampled))
    assert after.ids == before.ids == ("q41",)
    assert "1 of 42 query texts are longer than the 256 tokens" in after.message
    assert "5 of 42 counted" in sampled.summary[-1]
    assert "counted" not in whole.summary[-1]
    share = [float(finding.message.rpartition(": ")[2].partition("%")[0]) for finding in (before, after)]
    assert share[0] == pytest.approx(share[1], rel=0.1)
