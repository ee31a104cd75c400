import pytest

from embedfit.generate.modes import correction, request_parts

SCHEMA = {"description": "A word.", "type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
ASKED = {"role": "user", "content": "Which word?"}
CALL = {"id": "7", "function": {"name": "Word", "arguments": "{}"}}


def test_structured_output_is_asked_for_by_the_schema_alone():
    schema = {"title": "Word", **SCHEMA}
    expected = {"messages": [ASKED], "response_format": {"type": "json_schema", "json_schema": {"name": "Word", "schema": schema}}}
    assert request_parts("json_schema", "Word", SCHEMA, "Which word?") == expected


def test_a_tool_is_described_by_the_schema_and_has_to_be_called():
    parts = request_parts("tools", "Word", {"title": "My word", **SCHEMA}, "Which word?")
    parameters = {key: SCHEMA[key] for key in ("type", "properties", "required")}
    function = {"name": "Word", "description": "A word.", "parameters": parameters}
    expected = {"messages": [ASKED], "tools": [{"type": "function", "function": function}]}
    assert parts == {**expected, "tool_choice": {"type": "function", "function": {"name": "Word"}}}


def test_a_tool_without_a_description_has_none():
    [tool] = request_parts("tools", "Choice", {"type": "object", "properties": {}}, "Which?")["tools"]
    assert tool["function"] == {"name": "Choice", "parameters": {"type": "object", "properties": {}, "required": []}}


def test_json_mode_has_the_schema_in_the_prompt():
    parts = request_parts("json", "Word", SCHEMA, "Which word?")
    system, asked = parts["messages"]
    assert asked == ASKED
    assert system["role"] == "system"
    assert '{"title": "Word", "description": "A word.", "type": "object"' in system["content"]
    assert parts["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    ("mode", "words"), [("json_schema", "Correct your JSON"), ("json", "Correct your JSON"), ("tools", "Recall the function")]
)
@pytest.mark.parametrize(
    ("message", "content"),
    [
        ({"content": "no"}, "no"),
        ({"content": None}, ""),
        ({"content": None, "tool_calls": []}, ""),
        ({"content": [{"type": "text", "text": "no"}], "tool_calls": "what?"}, "no"),
        ({"content": {"word": 1}}, '{"word": 1}'),
        ({"content": "no", "tool_calls": [CALL, {"id": 7, "function": {}}]}, "no"),
    ],
)
def test_a_text_is_shown_again_with_what_is_wrong_with_it(mode, words, message, content):
    reply, problem = correction(mode, message, "too\nshort")
    assert reply == {"role": "assistant", "content": content}
    assert problem["role"] == "user"
    assert "too\nshort" in problem["content"]
    assert words in problem["content"]


@pytest.mark.parametrize("mode", ["json_schema", "json", "tools"])
def test_every_tool_call_is_answered(mode):
    reply, first, second = correction(mode, {"content": None, "tool_calls": [CALL, {**CALL, "id": "8"}]}, "too short")
    assert [call["id"] for call in reply["tool_calls"]] == [first["tool_call_id"], second["tool_call_id"]] == ["7", "8"]
    assert {call["type"] for call in reply["tool_calls"]} == {"function"}
    assert {answer["role"] for answer in (first, second)} == {"tool"}
    assert "too short" in first["content"]
