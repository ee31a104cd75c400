import json

import pytest

from embedfit.data.load import load
from embedfit.data.records import TRANSACTION_TEMPLATE, record_type
from embedfit.errors import ConfigError, DataError
from embedfit.template import Template

ROW = {
    "merchant_name": "Zayo Group",
    "merchant_category": ["Telecommunication Services", "Utilities"],
    "department": "IT",
    "location": "Denver, CO",
    "amount": 2847.36,
    "memo": "dark fiber",
    "spend_program_name": "Infra Vendors",
    "trip_name": None,
    "expense_category": "Internet & Network Services",
}


# Templates


def test_a_template_fills_in_fields_and_joins_lists():
    template = Template("{name}: {samples} {{as is}}")
    assert template.fields == ("name", "samples")
    assert template.render({"name": "Food", "samples": ["lunch", None, 3], "other": "x"}) == "Food: lunch, 3 {as is}"


def test_a_field_that_is_missing_none_or_empty_reads_as_said():
    template = Template("{a}|{b}|{c}|{d}|{e}", missing="unknown")
    assert template.render({"a": None, "b": "", "c": [], "d": 0}) == "unknown|unknown|unknown|0|unknown"


def test_outer_white_space_of_a_rendered_text_is_cut():
    assert Template("{title} {text}").render({"text": "word"}) == "word"


@pytest.mark.parametrize("text", ["{a.b}", "{a[0]}", "{a!r}", "{a:>10}", "{}", "{0}", "{a b}", "{a.__class__}"])
def test_a_template_takes_plain_names_only(text):
    with pytest.raises(ConfigError, match="is not a plain field name"):
        Template(text)


@pytest.mark.parametrize("text", ["{a", "a}", "{"])
def test_a_template_with_a_lone_brace_says_how_to_write_one(text):
    with pytest.raises(ConfigError, match=r"write \{\{ or \}\} for a brace itself"):
        Template(text)


def test_a_template_without_fields_is_refused():
    with pytest.raises(ConfigError, match="names no field"):
        Template("every document says this")


def test_a_value_with_braces_is_not_a_template_itself():
    assert Template("{a}").render({"a": "{b} {a.__class__}", "b": "secret"}) == "{b} {a.__class__}"


# Transactions


def test_a_transaction_reads_as_lines_with_its_lists_joined_and_its_missing_trip_unknown():
    assert record_type("transaction").text(ROW) == (
        "Name: Zayo Group\nCategory: Telecommunication Services, Utilities\nDepartment: IT\nLocation: Denver, CO\n"
        "Amount: 2847.36\nMemo: dark fiber\nCard: Infra Vendors\nTrip: unknown"
    )


def test_a_transactions_label_is_its_category_and_never_in_its_text():
    kind = record_type("transaction")
    assert kind.label == "expense_category"
    assert "SECRET" not in kind.text({**ROW, "expense_category": "SECRET"})


def test_no_bundled_query_holds_its_label_line(transactions):
    assert all("expense" not in query.text.split("\n")[0] and query.text.count("\n") == 7 for query in transactions.queries.values())
    assert all("expense_category" not in query.metadata for query in transactions.queries.values())


def test_a_template_that_holds_the_label_is_refused():
    with pytest.raises(ConfigError, match=r"contains its label \{expense_category\}: every query would hold its answer"):
        record_type("transaction", template=TRANSACTION_TEMPLATE + "\n{expense_category}")


def test_a_template_with_an_unknown_field_names_the_nearest():
    with pytest.raises(ConfigError, match="no field 'merchant_nam'; did you mean 'merchant_name'"):
        record_type("transaction", template="{merchant_nam}")
    with pytest.raises(ConfigError, match="no field 'zzz'; known: amount, department"):
        record_type("transaction", template="{zzz}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"amount": "much"}, "pairs.jsonl:1: key 'amount': Input should be a valid number"),
        ({"merchant_name": "  "}, "key 'merchant_name': String should have at least 1 character"),
        ({"merchant_category": []}, "key 'merchant_category': List should have at least 1 item"),
        ({"departement": "IT"}, "key 'departement': Extra inputs are not permitted, seen 'IT'"),
        ({"merchant_category": ["a", 5]}, "key 'merchant_category.1': Input should be a valid string, seen 5"),
    ],
)
def test_an_invalid_record_is_one_line_with_key_and_value(tmp_path, change, said):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({**ROW, **change}))
    with pytest.raises(DataError) as caught:
        load(path, record="transaction")
    assert said in str(caught.value)
    assert str(caught.value).endswith("expected a transaction record")


def test_a_record_without_a_required_key_is_refused():
    with pytest.raises(DataError, match="record: key 'department': Field required"):
        record_type("transaction").text({key: value for key, value in ROW.items() if key != "department"})


def test_records_with_one_wrong_key_are_one_line_with_the_keys_there_are(tmp_path):
    rows = [{("merchant" if key == "merchant_name" else key): value for key, value in ROW.items()} | {"amount": n} for n in range(50)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    load(tmp_path / "pairs.jsonl", record="transaction", problems=(problems := []))
    assert len(problems) == 1
    assert "pairs.jsonl:1: key 'merchant_name': Field required (keys: merchant, merchant_category, department" in str(problems[0])
    assert "; did you mean 'merchant" in str(problems[0])
    assert "(and 49 more rows like it, the last at " in str(problems[0])


def test_a_record_may_have_an_id_and_a_part_beside_its_fields(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({**ROW, "id": "t1", "part": "test"}))
    found = load(path, record="transaction")
    assert found.parts == {"test": ("t1",)}
    assert found.queries["t1"].metadata["department"] == "IT"


# Your own types


MODULE = """
from pydantic import BaseModel

class Ticket(BaseModel):
    subject: str
    opened_by: str = "nobody"
    expected: str

limit = 5
"""


@pytest.fixture
def tickets(tmp_path, monkeypatch):
    (tmp_path / "my_tickets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield "my_tickets:Ticket"
    import sys

    sys.modules.pop("my_tickets", None)


def test_a_pydantic_model_of_ones_own_is_imported_from_the_working_directory(tickets):
    kind = record_type(tickets)
    assert kind.label == "expected"
    assert kind.text({"subject": "No sound", "expected": "audio"}) == "Subject: No sound\nOpened by: nobody"
    assert record_type(tickets, template="{subject}!").text({"subject": "No sound", "expected": "audio"}) == "No sound!"


def test_the_label_of_ones_own_type_may_be_another_field(tickets):
    assert record_type(tickets, label="subject").text({"subject": "x", "expected": "y"}) == "Opened by: nobody\nExpected: y"
    with pytest.raises(ConfigError, match="has no field 'subjct' for the label; did you mean 'subject'"):
        record_type(tickets, label="subjct")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_tickets:Tickt", "cannot be imported: module 'my_tickets' has no attribute 'Tickt'"),
        ("my_tickts:Ticket", "cannot be imported: No module named 'my_tickts'"),
        ("my_tickets:limit", "is 5; expected a Pydantic model class"),
        ("tickets", "record type 'tickets' is unknown; expected 'transaction', 'module:Class' or the path of a JSON Schema file"),
    ],
)
def test_a_record_type_that_is_none_is_refused(tickets, name, said):
    with pytest.raises(ConfigError, match=said):
        record_type(name)


SCHEMA = {
    "type": "object",
    "properties": {"subject": {"type": "string"}, "level": {"type": "integer", "minimum": 1}, "expected": {"type": "string"}},
    "required": ["subject", "expected"],
    "additionalProperties": False,
}


def test_a_json_schema_file_is_a_record_type(tmp_path):
    (tmp_path / "ticket.json").write_text(json.dumps(SCHEMA))
    kind = record_type(str(tmp_path / "ticket.json"))
    assert kind.text({"subject": "No sound", "expected": "audio"}) == "Subject: No sound\nLevel: unknown"
    with pytest.raises(DataError, match=r"pairs:3: key 'level': 0 is less than the minimum of 1; expected a .*ticket.json record"):
        kind.text({"subject": "No sound", "level": 0, "expected": "audio"}, "pairs:3")
    with pytest.raises(DataError, match="'subject' is a required property"):
        kind.text({"expected": "audio"})


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"type": "nothing", "properties": {}}', '{"properties": 5}'])
def test_a_file_that_is_no_json_schema_of_an_object_is_refused(tmp_path, text):
    (tmp_path / "ticket.json").write_text(text)
    with pytest.raises(ConfigError, match=r"ticket.json: not a JSON Schema of an object with properties") as caught:
        record_type(str(tmp_path / "ticket.json"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["#/definitions/gone", "http://127.0.0.1:9/other.json"])
def test_a_json_schema_that_refers_to_nothing_or_to_the_web_is_refused_in_one_line(tmp_path, target, monkeypatch):
    asked = []
    monkeypatch.setattr("urllib.request.urlopen", asked.append)
    (tmp_path / "ticket.json").write_text(json.dumps({**SCHEMA, "$ref": target}))
    with pytest.raises(ConfigError, match=rf"ticket.json: \$ref '{target.removeprefix('#')}' cannot be resolved; fix: ") as caught:
        record_type(str(tmp_path / "ticket.json")).text({"subject": "x", "expected": "y"})
    assert "\n" not in str(caught.value)
    assert asked == []


def test_a_json_schema_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"gone.json: No such file or directory; expected a JSON Schema file"):
        record_type(str(tmp_path / "gone.json"))
