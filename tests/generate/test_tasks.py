from collections import Counter

import pytest

from embedfit.data.dataset import Document
from embedfit.data.documents import read_documents
from embedfit.data.duplicates import Said, near_duplicates
from embedfit.data.records import record_type
from embedfit.errors import ConfigError
from embedfit.generate.tasks import PERSONAS, STYLES, Questions, Records, Rejected, filled, prompt_template, read_examples
from embedfit.samples import TRANSACTIONS

PASSAGE = "A plan can be ended on any day. It runs until the end of the month, and what was paid is not given back to you."


@pytest.fixture(scope="module")
def labels():
    return read_documents(TRANSACTIONS / "categories.json")


def records(labels, count=100, **more):
    return Records(labels, count, record_type("transaction"), prompt_template(None, "transaction"), **more)


def questions(each=2, **more):
    documents = {id: Document(id, text) for id, text in {"a": PASSAGE, "b": "Invoices stand under Billing.", "c": "Other."}.items()}
    return Questions(documents, each, prompt_template(None, "question"), **more)


def row(**changes):
    given = {
        "merchant_name": "Kiwi & Sons",
        "merchant_category": ["Travel Agencies"],
        "department": "Sales",
        "location": "Oslo, Norway",
        "amount": 12.34,
        "memo": None,
        "spend_program_name": "Field",
        "trip_name": None,
        "expense_category": "Travel: Airfare",
    }
    return {**given, **changes}


def test_labels_are_balanced_and_a_longer_plan_begins_with_the_shorter_one(labels):
    task = records(labels)
    slots = [task.slot(position) for position in range(100)]
    assert set(Counter(slot.label for slot in slots).values()) == {3, 4}
    assert len({slot.key for slot in slots}) == 100
    assert [records(labels, 300).slot(position) for position in range(100)] == slots
    assert [records(labels, seed=1).slot(position) for position in range(100)] != slots


def test_the_bundled_prompt_asks_for_what_it_should_and_lists_every_label(labels):
    task = records(labels)
    prompt = task.prompt(task.slot(0), 12345)
    label = task.slot(0).label
    assert f'the expense category "{label}"' in prompt
    for words in (
        "potentially ambiguous",
        "challenge automatic categorisation",
        "not an obvious one",
        "International",
        "not rounded",
        "MCC",
    ):
        assert words in prompt
    for name in labels:
        assert f"- {name}" in prompt
    assert task.prompt(task.slot(0), 1) != prompt  # another draw, another company and place
    assert "number 2 of this category" in task.prompt(task.slot(27), 0)


def test_the_schema_pins_the_label_and_leaves_the_types_own_alone(labels):
    task = records(labels)
    assert task.schema("Insurance")["properties"]["expense_category"]["enum"] == ["Insurance"]
    assert "enum" not in record_type("transaction").schema()["properties"]["expense_category"]


def test_a_wrong_label_is_told_to_the_model(labels):
    task = records(labels)
    slot = next(task.slot(position) for position in range(27) if task.slot(position).label == "Travel: Airfare")
    assert task.check(slot, row()) == "Kiwi & Sons Travel Agencies Sales Oslo, Norway 12.34 Field"
    with pytest.raises(Rejected, match="expense_category is 'Insurance', but it must be 'Travel: Airfare'") as caught:
        task.check(slot, row(expense_category="Insurance"))
    assert caught.value.reason == "wrong label"


@pytest.mark.parametrize(
    ("label", "text", "caught"),
    [
        ("Travel: Airfare", "cheap airfares to Rome", True),
        ("Travel: Airfare", "AIRFARE!", True),
        ("Travel: Airfare", "travel to Rome", False),  # four labels have that word
        ("Subscriptions & Memberships", "yearly membership", True),
        ("IT Support & Maintenance", "it support & maintenance", True),  # no word of its own, but the whole name
        ("IT Support & Maintenance", "support with maintenance of it", False),
        ("Hardware & Equipment", "software/hardware", True),
    ],
)
def test_words_that_give_a_label_away_are_caught(labels, label, text, caught):
    task = records(labels)
    slot = next(task.slot(position) for position in range(27) if task.slot(position).label == label)
    given = row(expense_category=label, memo=text, merchant_category=["x"])
    if caught:
        with pytest.raises(Rejected, match="say it in other words"):
            task.check(slot, given)
    else:
        assert task.check(slot, given)


def test_few_of_the_bundled_transactions_give_their_label_away(labels, transactions):
    task = records(labels)
    slots = {task.slot(position).label: task.slot(position) for position in range(27)}
    given_away = 0
    for query in transactions.queries.values():
        label = next(iter(transactions.qrels[query.id]))
        fields = {name: value for name, value in query.metadata.items() if name in task.record.fields}
        try:
            task.check(slots[label], {**fields, "expense_category": label})
        except Rejected:
            given_away += 1
    assert given_away == 18  # of 326: nearly all name a department, such as Customer Success


def test_types_and_templates_of_ones_own(tmp_path):
    (tmp_path / "type.json").write_text('{"type": "object", "properties": {"text": {"type": "string"}, "expected": {"type": "string"}}}')
    template = tmp_path / "prompt.jinja"
    template.write_text("{{ label }} {{ field }} {{ labels | length }} {% for e in examples %}<{{ e }}>{% endfor %}")
    labels = {"red": Document("red", "red"), "blue": Document("blue", "The colour of the sky", "Sky")}
    task = Records(labels, 4, record_type(str(tmp_path / "type.json")), prompt_template(str(template), "record"), examples=("one", "two"))
    slot = next(task.slot(position) for position in range(2) if task.slot(position).label == "red")
    assert task.prompt(slot, 0) in ("red expected 2 <one><two>", "red expected 2 <two><one>")
    bundled = Records(labels, 4, task.record, prompt_template(None, "record"))
    listed = bundled.prompt(slot, 0).partition("Every expected there is:\n")[2]
    assert sorted(listed.splitlines()) == ["- blue: Sky The colour of the sky", "- red"]


def test_an_undefined_variable_and_a_broken_template_are_errors(tmp_path, labels):
    task = Records(labels, 4, record_type("transaction"), "{{ lable }}")
    with pytest.raises(ConfigError, match="'lable' is undefined; known: draw, examples, field, label, labels, number"):
        task.prompt(task.slot(0), 0)
    (tmp_path / "bad.jinja").write_text("line\n{% if %}")
    with pytest.raises(ConfigError, match=r"bad.jinja:2: is not a Jinja template"):
        prompt_template(str(tmp_path / "bad.jinja"), "record")
    with pytest.raises(ConfigError, match="cannot be read"):
        prompt_template(str(tmp_path / "none.jinja"), "record")


def test_a_template_cannot_reach_into_python_and_text_of_data_is_no_template():
    with pytest.raises(ConfigError, match="cannot be filled"):
        filled("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    assert filled("{{ passage }}", passage="{{ 7 * 7 }} <b>") == "{{ 7 * 7 }} <b>"


def test_questions_go_round_passages_styles_and_personas():
    task = questions(each=6)
    slots = [task.slot(position) for position in range(task.count)]
    assert task.count == 18
    assert {slot.label for slot in slots[:3]} == {"a", "b", "c"}
    for id in "abc":
        outputs = [task.output(slot, {"query": "q", "evidence": "e"}) for slot in slots if slot.label == id]
        assert Counter(output["style"] for output in outputs) == dict.fromkeys(STYLES, 2)
        assert {output["expected"] for output in outputs} == {id}
        assert {output["persona"] for output in outputs} <= set(PERSONAS)
    prompt = task.prompt(next(slot for slot in slots if slot.label == "a"), 0)
    assert PASSAGE in prompt
    assert "{" not in prompt


def test_a_changed_passage_is_asked_for_anew():
    task = questions()
    other = Questions({**task.documents, "a": Document("a", "Changed.")}, 2, task.template)
    keys = [{slot.label: slot.key for slot in map(one.slot, range(3))} for one in (task, other)]
    assert keys[0]["a"] != keys[1]["a"]
    assert keys[0]["b"] == keys[1]["b"]


@pytest.mark.parametrize(
    ("query", "evidence", "reason"),
    [
        ("do I get my money back", "what was paid is not given back", ""),
        ("do I get my money back", "WHAT was paid, is not", ""),
        ("do I get my money back", "nothing is refunded", "not answered"),
        ("is it true that a plan can be ended on any day or not", "on any day", "quoted"),
        ("a plan can be ended on any day", "on any day", "quoted"),
        ("runs until the end", "the month", "quoted"),  # all four words of it
        ("end of month", "on any day", ""),
    ],
)
def test_the_passage_must_answer_a_query_and_not_be_quoted_in_it(query, evidence, reason):
    task = questions()
    slot = next(task.slot(position) for position in range(3) if task.slot(position).label == "a")
    given = {"query": query, "evidence": evidence}
    if reason:
        with pytest.raises(Rejected) as caught:
            task.check(slot, given)
        assert caught.value.reason == reason
    else:
        assert task.check(slot, given) == query


def test_the_judge_is_shown_all_labels_and_a_passage_among_others(labels):
    task = records(labels)
    options, right = task.options(task.slot(3), 1)
    assert right == task.slot(3).label
    assert sorted(option["name"] for option in options) == sorted(labels)
    assert options != task.options(task.slot(3), 2)[0]
    many = Questions({str(n): Document(str(n), f"passage {n}") for n in range(50)}, 1, "")
    for draw in range(20):
        options, right = many.options(many.slot(7), draw)
        assert [option["name"] for option in options] == [*map(str, range(1, len(options))), "none"]
        assert options[int(right) - 1]["about"] == f"passage {many.slot(7).label}"
        assert len(options) == len({option["about"] for option in options}) in (10, 11)


def test_examples_are_queries_lines_or_records(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"query": "one", "expected": "x"}\n{"merchant": "two"}\n')
    assert read_examples(str(tmp_path / "a.jsonl")) == ("one", '{"merchant": "two"}')
    (tmp_path / "b.txt").write_text("one\n\ntwo\n")
    assert read_examples(str(tmp_path / "b.txt")) == ("one", "two")
    (tmp_path / "c.txt").write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        read_examples(str(tmp_path / "c.txt"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_examples(str(tmp_path / "d.txt"))


def test_texts_that_come_one_by_one_are_near_where_near_duplicates_says_so(transactions):
    texts = [" ".join(map(str, query.metadata.values())) for query in transactions.queries.values()]
    changed = [text.replace("o", "0", 1) for text in texts[::7]] + [f"{text} more" for text in texts[::9]] + texts[::11]
    all_of_them = [*texts, *changed]
    expected = {}
    for one, other in sorted(near_duplicates(all_of_them).pairs()):
        expected.setdefault(other, one)
    said, found = Said(), {}
    for number, text in enumerate(all_of_them):
        twin = said.find(text)
        if twin is not None:
            found[number] = twin
        assert said.add(text) == number
    assert found == expected
    assert len(found) > 50
