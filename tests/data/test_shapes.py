"""What the rows of other tools say besides right answers: negatives, several annotators, nothing at all; and rows that say it badly."""

import datasets
import pandas as pd
import pyarrow as pa
import pytest
from written import (
    ARRIVE,
    CARD,
    CHANGE,
    DOCUMENTS,
    HASHES,
    OPEN,
    PIN,
    QRELS,
    QUERIES,
    README,
    TUPLES,
    choice,
    delimited,
    lines,
    note,
    whole,
    xlsx,
)

import embedfit
from embedfit.data.check import check_dataset
from embedfit.data.dataset import Dataset
from embedfit.data.formats import sniff
from embedfit.data.load import load
from embedfit.data.split import split_folds
from embedfit.data.write import write_jsonl
from embedfit.errors import ConfigError, DataError


def refusal(*args, **kwargs):
    """Return the one line with which `load` refuses."""
    with pytest.raises(DataError) as caught:
        load(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Training sets


def test_a_negative_that_another_row_has_as_right_is_right(tmp_path, capsys):
    rows = [{"anchor": CARD, "positive": ARRIVE, "negative": OPEN}, {"anchor": CARD, "positive": OPEN, "negative": CHANGE}]
    data = load(lines(tmp_path / "t.jsonl", rows))
    assert data.qrels == {"q1": {ARRIVE: 1, OPEN: 1, CHANGE: 0}}
    assert "negatives that another row of the same query has as right, and that count as right: 1" in capsys.readouterr().err


def test_ids_beside_the_lists_of_flagembedding_are_the_ids_of_documents(tmp_path):
    row = {"id": "a", "query": CARD, "pos": [ARRIVE], "pos_id": ["d1"], "neg": [CHANGE, OPEN], "neg_id": [2, "d3"]}
    data = load(lines(tmp_path / "t.jsonl", [row]))
    assert data.qrels == {"a": {"d1": 1, "2": 0, "d3": 0}}
    assert data.corpus["2"].text == CHANGE
    row["neg_id"] = ["d2"]
    assert "t.jsonl:1: has 2 texts under 'neg' and the ids ['d2']; expected an id for each text" in refusal(
        lines(tmp_path / "t.jsonl", [row])
    )


def test_passages_are_matched_to_given_documents_and_others_are_added(tmp_path, capsys):
    documents = lines(tmp_path / "d.jsonl", [{"id": "d1", "text": ARRIVE.upper() + "  "}, {"id": "d2", "text": CHANGE}])
    data = load(lines(tmp_path / "t.jsonl", [{"query": CARD, "pos": [ARRIVE], "neg": [OPEN]}]), documents)
    assert data.qrels == {"q1": {"d1": 1, OPEN: 0}}
    assert list(data.corpus) == ["d1", "d2", OPEN]
    err = capsys.readouterr().err
    assert "labels that are the text of a document, and were matched to it: 1" in err
    assert "passages that are none of the documents, and were added to them: 1" in err


@pytest.mark.parametrize(("scores", "grades"), [((1, 0), (1, 0)), ((5, 0), (5, 0)), ((0.75, 0.25), (1, 0)), (("1", "0.0"), (1, 0))])
def test_scores_of_pairs_are_grades_or_similarities(tmp_path, scores, grades):
    rows = [{"sentence1": CARD, "sentence2": text, "score": score} for text, score in zip((ARRIVE, OPEN), scores, strict=True)]
    assert load(lines(tmp_path / "t.jsonl", rows)).qrels == {"q1": dict(zip((ARRIVE, OPEN), grades, strict=True))}
    rows[0]["score"] = 7.8
    line = refusal(lines(tmp_path / "t.jsonl", rows))
    assert "t.jsonl:1: key 'score' is 7.8; expected a whole grade, or a similarity from 0 to 1 or to 5; fix: divide" in line


def test_similarities_of_sts_are_said_to_be_from_0_to_5(tmp_path, capsys):
    rows = [{"sentence1": CARD, "sentence2": text, "score": score} for text, score in ((ARRIVE, 4.2), (CHANGE, "2.5"), (OPEN, 2.4))]
    assert load(lines(tmp_path / "t.jsonl", rows)).qrels == {"q1": {ARRIVE: 1, CHANGE: 1, OPEN: 0}}
    assert "'score' is a similarity from 0 to 5: from 2.5 the second sentence is right, below it is not" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("premise", "hypothesis", "label"), (0, 2, 1, -1)),
        (("premise", "hypothesis", "label"), ("0", "2.0", "1", "-1")),
        (("premise", "hypothesis", "gold_label"), ("Entailment", "not_entailment", "neutral", "-")),
        (("sentence1", "sentence2", "gold_label"), ("entailment", "contradiction", "neutral", None)),
    ],
)
def test_entailment_is_right_contradiction_is_not_and_the_rest_is_not_judged(tmp_path, capsys, names, labels):
    texts = (ARRIVE, CHANGE, OPEN, "Something else")
    path = lines(tmp_path / "nli.jsonl", [dict(zip(names, (CARD, *row), strict=True)) for row in zip(texts, labels, strict=True)])
    assert load(path).qrels == {"q1": {ARRIVE: 1, CHANGE: 0}}
    note = capsys.readouterr().err
    assert "nli.jsonl: entailed sentences are right, contradicted ones are not, and" in note
    assert ("of the numbers, 0 is entailment and 2 contradiction" in note) == (labels[0] in (0, "0"))
    assert sniff(path).shape == "NLI"


def test_two_numbers_do_not_say_which_of_them_is_entailment(tmp_path):
    rows = [{"premise": CARD, "hypothesis": text, "label": label} for text, label in ((ARRIVE, 1), (OPEN, 0))]
    path = lines(tmp_path / "rte.jsonl", rows)
    line = refusal(path)
    assert "rte.jsonl: has no label but 0 and 1 in all 2 rows, and either may be entailment; expected 0, 1 and 2, or words" in line
    assert load(path, query="premise", label="hypothesis", grade="label").qrels == {"q1": {ARRIVE: 1, OPEN: 0}}
    rows[0]["label"] = "maybe"
    assert sniff(lines(tmp_path / "rte.jsonl", rows)).shape == ""


def test_examples_of_the_older_sentence_transformers(tmp_path):
    rows = [{"texts": [CARD, ARRIVE], "label": 1.0}, {"texts": [CARD, OPEN], "label": 0.0}]
    assert load(lines(tmp_path / "t.jsonl", rows)).qrels == {"q1": {ARRIVE: 1, OPEN: 0}}
    rows = [{"texts": list(row)} for row in TUPLES]
    assert load(lines(tmp_path / "t.jsonl", rows)).qrels == {"q1": {ARRIVE: 1, CHANGE: 0}, "q2": {CHANGE: 1, OPEN: 0}}


def test_a_setting_for_a_column_makes_any_file_a_plain_table(tmp_path):
    rows = [{"query": CARD, "pos": [ARRIVE], "topic": "cards"}, {"query": PIN, "pos": [CHANGE], "topic": "pins"}]
    path = lines(tmp_path / "t.jsonl", rows)
    assert load(path, query="query", label="topic").qrels == {"q1": {"cards": 1}, "q2": {"pins": 1}}
    assert (sniff(path).shape, sniff(path, label="topic").shape) == ("FlagEmbedding", "")


@pytest.mark.parametrize(
    "row",
    [
        {"text": "walk", "pos": "NOUN", "label": "b"},
        {"text": "Great", "positive": "0.93", "negative": "0.07", "label": "b"},
        {"query": "Great", "doc_id": "b", "positive": True},
        {"question": "Great", "answer": "accept", "label": "b"},
        {"text": "Great", "data": "x", "label": "b"},
    ],
)
def test_columns_that_only_sound_like_a_tools_are_no_shape(tmp_path, row):
    path = lines(tmp_path / "t.jsonl", [row])
    assert sniff(path).shape == ""
    assert load(path, label="answer" if "answer" in row else None, grade="").judged == ("q1",)


# Questions about texts


def test_a_question_of_squad_without_an_answer_judges_its_context(tmp_path):
    rows = [
        {"id": "a", "title": "Cards", "context": ARRIVE, "question": CARD, "answers": {"text": ["ten"], "answer_start": [0]}},
        {"id": "b", "title": "Cards", "context": ARRIVE, "question": PIN, "answers": {"text": [], "answer_start": []}},
    ]
    data = load(lines(tmp_path / "s.jsonl", rows))
    assert list(data.qrels.values()) == [{ARRIVE: 1}, {ARRIVE: 0}]
    assert data.corpus[ARRIVE].title == "Cards"
    assert list(data.queries) == ["a", "b"]


def test_contexts_of_ragas_are_matched_to_the_document_that_holds_them(tmp_path):
    whole_text = f"Chapter one. {ARRIVE} They arrive by post, in a plain envelope, and have to be signed for. The end."
    documents = lines(tmp_path / "d.jsonl", [{"id": "guide", "text": whole_text}, {"id": "d3", "text": OPEN}])
    context = "They arrive  by post, in a plain envelope, and have to be signed for."
    rows = [{"user_input": CARD, "reference_contexts": [context]}, {"user_input": PIN, "reference_contexts": None}]
    data = load(lines(tmp_path / "r.jsonl", rows), documents)
    assert data.qrels == {"q1": {"guide": 1}}
    assert list(data.corpus) == ["guide", "d3"]
    cells = [["user_input", "reference_contexts", "reference"], [CARD, str([context, OPEN]), "x"]]
    assert load(delimited(tmp_path / "r.csv", cells, ","), documents).qrels == {"q1": {"guide": 1, "d3": 1}}


# Labelling tools


def test_annotators_of_label_studio_are_kept_and_cancelled_tasks_say_nothing(tmp_path):
    cancelled = note(3, choice("pins")) | {"was_cancelled": True}
    tasks = [
        {
            "id": 1,
            "data": {"text": CARD},
            "annotations": [note(1, choice("cards")), note({"id": 2, "email": "b@x.example"}, choice("lost", "cards"))],
        },
        {"id": 2, "data": {"text": PIN}, "annotations": [cancelled]},
        {"id": 3, "data": {"text": "Hello"}, "annotations": [note(1, choice("None of these"))]},
    ]
    data = load(whole(tmp_path / "p.json", tasks))
    assert data.qrels == {"1": {"cards": 1, "lost": 1}, "3": {}}
    assert data.queries["1"].metadata == {"annotators": {"1": ["cards"], "b@x.example": ["lost", "cards"]}}
    tasks[0]["annotations"][1]["ground_truth"] = True
    assert load(whole(tmp_path / "p.json", tasks)).qrels["1"] == {"lost": 1, "cards": 1}
    [unjudged] = [finding for finding in check_dataset(data) if finding.kind == "unjudged"]
    assert unjudged.message == "2 queries have no relevant document and are left out; 1 of them are judged to have none"


def test_choices_about_a_passage_are_judgements(tmp_path):
    def task(id, query, passage, *words):
        data = {"query": query, "passage": DOCUMENTS[passage], "doc_id": passage}
        return {"id": id, "data": data, "annotations": [note(who, choice(word)) for who, word in enumerate(words)]}

    tasks = [
        task(1, CARD, "d1", "Relevant"),
        task(2, CARD, "d2", "Not relevant"),
        task(3, PIN, "d2", "Relevant", "Not relevant", "Relevant"),
    ]
    assert load(whole(tmp_path / "p.json", tasks)).qrels == {"q1": {"d1": 1, "d2": 0}, "q3": {"d2": 1}}


@pytest.mark.parametrize(
    ("value", "grades"),
    [
        ({"ranker": ["d2", "d1", "d3"]}, {"d2": 2, "d1": 1, "d3": 0}),
        ({"ranker": {"rank": ["d1", "d3"]}}, {"d1": 1, "d3": 0}),
        ({"ranker": {"_": ["d3"], "relevant_results": ["d1"], "biased_results": ["d2"]}}, {"d1": 1, "d2": 0}),
        ({"ranker": {"_": ["d1", "d2"], "relevant_results": ["d3"]}}, {"d3": 1}),
    ],
)
def test_rankers_order_or_sort_into_buckets(tmp_path, value, grades):
    items = [{"id": id, "title": f"Title {id}", "body": text} for id, text in DOCUMENTS.items()]
    result = {"from_name": "rank", "to_name": "results", "type": "ranker", "value": value}
    task = {"id": 7, "data": {"query": CARD, "items": items}, "annotations": [note(1, result)]}
    data = load(whole(tmp_path / "p.json", [task]))
    assert data.qrels == {"7": grades}
    assert data.corpus[next(iter(grades))].title == f"Title {next(iter(grades))}"
    task["annotations"][0]["result"][0]["value"] = {"ranker": ["d9"]}
    assert "p.json[0]: ranks 'd9', which is no item of the task; expected one of d1, d2, d3" in refusal(whole(tmp_path / "p.json", [task]))


def test_annotators_of_argilla_are_kept_and_ratings_of_a_passage_are_grades(tmp_path):
    def record(id, fields, question, *answers, **more):
        responses = [{"value": value, "user_id": f"u{who}", "status": status} for who, (value, status) in enumerate(answers)]
        return {
            "id": id,
            "status": "completed",
            "fields": fields,
            "metadata": {},
            "suggestions": {},
            "responses": {question: responses},
            **more,
        }

    done = "submitted"
    rows = [
        record("r1", {"text": CARD}, "label", ("cards", done), ("lost", done), ("pins", "discarded")),
        record("r2", {"text": PIN}, "label", ("pins", done), status="discarded"),
        record("r3", {"text": "Hello"}, "label"),
    ]
    data = load(whole(tmp_path / "records.json", rows))
    assert data.qrels == {"r1": {"cards": 1, "lost": 1}}
    assert list(data.queries) == ["r1", "r2", "r3"]
    assert data.queries["r1"].metadata == {"annotators": {"u0": "cards", "u1": "lost"}}
    rows = [
        record(id, {"query": CARD, "document": DOCUMENTS[id]}, "rating", *((n, done) for n in ns))
        for id, ns in (("d1", (3, 2, 2)), ("d3", (0,)))
    ]
    data = load(whole(tmp_path / "records.json", [{**row, "metadata": {"doc_id": row["id"]}} for row in rows]))
    assert data.qrels == {"q1": {"d1": 2, "d3": 0}}
    several = [record("r1", {"text": CARD}, "label", (["cards", "lost"], done))]
    assert load(whole(tmp_path / "records.json", several)).qrels == {"r1": {"cards": 1, "lost": 1}}


def test_prodigy_accepts_rejects_and_ignores(tmp_path):
    rows = [
        {"text": CARD, "label": "cards", "answer": "accept"},
        {"text": CARD, "label": "pins", "answer": "reject"},
        {"text": PIN, "label": "pins", "answer": "ignore"},
        {"text": "Hello", "options": [{"id": "cards", "text": "All about cards"}, {"id": "pins"}], "accept": [], "answer": "accept"},
    ]
    data = load(lines(tmp_path / "p.jsonl", [{**row, **HASHES} for row in rows]))
    assert data.qrels == {"q1": {"cards": 1, "pins": 0}, "q4": {}}
    assert data.query_texts() == [CARD, PIN, "Hello"]
    rows[3]["accept"] = ["cars"]
    line = refusal(lines(tmp_path / "p.jsonl", [{**row, **HASHES} for row in rows]))
    assert "p.jsonl:4: accepts 'cars', which is no option; expected one of cards, pins" in line
    pairs = [{"query": CARD, "document": text, "meta": {"doc_id": id}, **HASHES, "answer": answer} for (id, text), answer in
             zip(DOCUMENTS.items(), ("accept", "reject", "ignore"), strict=True)]  # fmt: skip
    assert load(lines(tmp_path / "p.jsonl", pairs)).qrels == {"q1": {"d1": 1, "d2": 0}}


def test_quepid_leaves_out_what_is_not_rated(tmp_path):
    path = tmp_path / "case.csv"
    path.write_text(f"query,docid,rating\n{CARD},d1,3\n{CARD},d2,0\n{CARD},d3,\n'=SUM(1),d1,1\nWhat is new\n")
    data = load(path)
    assert data.qrels == {"q1": {"d1": 3, "d2": 0}, "q4": {"d1": 1}}
    assert data.query_texts() == [CARD, "=SUM(1)", "What is new"]


def test_several_raters_of_a_quepid_book_are_one_judgement(tmp_path):
    header = ["query", "docid", "Ann Lee", "bo@example.org", "Unknown"]
    rows = [[CARD, "d1", "3", "2.0", "2"], [CARD, "d2", "", "0", ""], [CARD, "d3", "", "", ""], [" =SUM(1)", "d1", "1", "", "3"]]
    data = load(delimited(tmp_path / "book_1_export.csv", [header, *rows], ","))
    assert data.qrels == {"q1": {"d1": 2, "d2": 0}, "q4": {"d1": 1}}
    assert data.query_texts() == [CARD, "=SUM(1)"]
    rows[0][2] = "1.5"
    assert "book_1_export.csv:2: rating 1.5; expected a whole number" in refusal(
        delimited(tmp_path / "book_1_export.csv", [header, [CARD, "d1", "1.5", "", ""]], ",")
    )
    prices = delimited(tmp_path / "prices.csv", [["query", "docid", "rank", "price"], [CARD, "d1", "1", "9"]], ",")
    assert sniff(prices).shape == ""


def test_logs_of_ubi_need_their_searches_and_say_what_was_left_out(tmp_path, capsys):
    def event(action, search, document, **more):
        return {"action_name": action, "query_id": search, "event_attributes": {"object": {"object_id": document}}, **more}

    rows = [event("click", "s1", "d1", user_query=CARD), event("hover", "s1", "d2", user_query=CARD), event("dislike", "s1", "d3")]
    data = load(lines(tmp_path / "ubi_events.jsonl", [{"_index": "ubi_events", "_id": "1", "_source": row} for row in rows]))
    assert data.qrels == {"q1": {"d1": 1, "d3": 0}}
    assert "events that say neither yes nor no, and are left out: hover 1" in capsys.readouterr().err
    line = refusal(lines(tmp_path / "ubi_events.jsonl", [*rows, event("click", "s9", "d1")]))
    assert "ubi_events.jsonl:4: is an event of a search that is not in the log; fix: add the searches (ubi_queries)" in line


# Tables and folders


def test_files_in_a_folder_are_parts_by_their_names(tmp_path):
    for name, text in (("train-00000-of-00002", CARD), ("train-00001-of-00002", PIN), ("validation", "Hello"), ("test", "Bye")):
        lines(tmp_path / "set" / f"{name}.jsonl", [{"text": text, "label": "a"}])
    (tmp_path / "set" / "README.md").write_text("# A data set\n")
    data = load(tmp_path / "set")
    assert {part: len(ids) for part, ids in data.parts.items()} == {"train": 2, "dev": 1, "test": 1}
    assert load(tmp_path / "set", query="text", label="label").digest() == data.digest()
    lines(tmp_path / "mixed" / "a.jsonl", [{"text": CARD, "label": "a"}]), whole(tmp_path / "mixed" / "b.json", [])
    assert "mixed: holds tables of several formats (a.jsonl, b.json)" in refusal(tmp_path / "mixed")
    (tmp_path / "empty").mkdir()
    assert "empty: holds no table; expected a BEIR folder: corpus.jsonl" in refusal(tmp_path / "empty")


def test_splits_that_save_to_disk_wrote_are_parts_and_classes_have_names(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["cards", "pins"])})
    split = {name: datasets.Dataset.from_dict({"text": [name], "label": [1]}, features=features) for name in ("train", "test")}
    datasets.DatasetDict(split).save_to_disk(tmp_path / "saved")
    data = load(tmp_path / "saved")
    assert data.parts == {"test": ("q1",), "train": ("q2",)}
    assert list(data.corpus) == ["pins"]
    (tmp_path / "saved" / "test" / "state.json").write_text("{")
    assert "cannot be loaded" in refusal(tmp_path / "saved")


def test_a_data_set_of_mteb_comes_from_memory_too():
    parts = {
        "corpus": datasets.Dataset.from_list([{"_id": id, "text": text, "title": ""} for id, text in DOCUMENTS.items()]),
        "queries": datasets.Dataset.from_list([{"_id": id, "text": text} for id, text in QUERIES.items()]),
        "default": datasets.Dataset.from_list(
            [{"query-id": query, "corpus-id": id, "score": float(grade)} for query, grades in QRELS.items() for id, grade in grades.items()]
        ),
    }
    expected = Dataset(QUERIES, DOCUMENTS, QRELS)
    assert Dataset.from_hf(parts) == expected
    splits = {**parts, "default": datasets.DatasetDict({"test": parts["default"]})}
    assert Dataset.from_hf(splits).parts == {"test": ("a", "b")}


def test_a_clone_of_mteb_without_a_readme_is_found_by_its_names(tmp_path):
    lines(tmp_path / "corpus.jsonl", [{"_id": id, "text": text} for id, text in DOCUMENTS.items()])
    lines(tmp_path / "queries.jsonl", [{"_id": id, "text": text} for id, text in QUERIES.items()])
    rows = [{"query-id": query, "corpus-id": id, "score": grade} for query, grades in QRELS.items() for id, grade in grades.items()]
    lines(tmp_path / "test.jsonl", rows)
    assert load(tmp_path).parts == {"test": ("a", "b")}
    (tmp_path / "README.md").write_text(README.replace("configs:", "configs: ["))
    assert load(tmp_path).qrels == QRELS
    with pytest.raises(ConfigError, match="fix: leave 'label' out"):
        load(tmp_path, label="x")


def test_judgements_apart_need_documents_and_are_no_run(tmp_path):
    queries = lines(tmp_path / "queries.jsonl", [{"id": id, "text": text} for id, text in QUERIES.items()])
    documents = lines(tmp_path / "d.jsonl", [{"id": id, "text": text} for id, text in DOCUMENTS.items()])
    run = tmp_path / "bm25.run"
    run.write_text("a Q0 d1 1 12.5 bm25\n")
    with pytest.raises(ConfigError, match="qrels needs documents"):
        load(queries, qrels=run)
    with pytest.raises(ConfigError, match=r"queries\.jsonl has its labels in qrels; fix: leave 'label' out"):
        load(queries, documents, run, label="x")
    run.rename(tmp_path / "run.txt")
    line = refusal(queries, documents, tmp_path / "run.txt")
    assert (
        "run.txt:1: is a TREC run, which ranks and does not judge: 'a Q0 d1 1 12.5 bm25'; expected judgements; fix: give the qrels; "
        "'embedfit compare' takes a run" in line
    )
    table = delimited(tmp_path / "judged.csv", [["qid", "docid", "relevance"], ["a", "d1", "1.0"], ["b", "d2", "-1"]], ",")
    assert load(queries, documents, table).qrels == {"a": {"d1": 1}, "b": {"d2": 0}}


def test_sheets_are_named_and_cells_are_texts(tmp_path, capsys):
    rows = [["text", "label", "amount"], [CARD, "cards", "12"], ["4711", "", ""]]
    path = xlsx(tmp_path / "t.xlsx", {"First": rows, "Second": [["text", "label"], [PIN, "pins"]]})
    data = load(path)
    assert data.query_texts() == [CARD, "4711"]
    assert (data.qrels, data.queries["q1"].metadata) == ({"q1": {"cards": 1}}, {"amount": "12"})
    assert "sheet 'First' of 2 is read (First, Second); set sheet in [data] for another" in capsys.readouterr().err
    assert load(path, sheet="Second").query_texts() == [PIN]
    assert "t.xlsx: has no sheet 'Secnd'; did you mean 'Second'?" in refusal(path, sheet="Secnd")


@pytest.mark.parametrize("name", ["q.xlsx", "q.ods", "q.parquet", "q.arrow", "q.csv.gz", "q.jsonl.zst", "q.json.xz", "q.tsv.bz2"])
def test_what_is_not_what_its_suffix_says_is_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"hello, this is none of these")
    assert f"{name}: is not " in refusal(tmp_path / name)


def test_columns_of_json_have_one_length(tmp_path):
    path = whole(tmp_path / "t.json", {"query": ["a", "b"], "label": ["x"]})
    assert "t.json: has columns of different lengths (query 2, label 1); expected as many values" in refusal(path)


def test_a_file_without_a_header_has_numbers_for_names(tmp_path):
    (tmp_path / "t.tsv").write_text(f"17\t{CARD}\tcards\n18\t{PIN}\tpins\n")
    assert load(tmp_path / "t.tsv", query="2", label="3", id="1").qrels == {"17": {"cards": 1}, "18": {"pins": 1}}
    assert sniff(tmp_path / "t.tsv").columns == ("1", "2", "3")


def test_queries_without_an_answer_go_through_checks_splits_scores_and_files(tmp_path, word_encoder):
    rows = [{"query": f"where is the {word} number {n}", "expected": word} for n in range(8) for word in ("card", "pin", "bank")]
    rows += [{"query": "what is the weather", "expected": []}, {"query": "who sings this", "expected": None}]
    rows += [{"query": "tell me a joke", "expected": "None of these"}, {"query": "play chess", "expected": {"bank": 0}}]
    data = load(lines(tmp_path / "q.jsonl", rows))
    nothing = {"q25": {}, "q27": {}, "q28": {"bank": 0}}
    assert len(data.queries) == 28
    assert {id: grades for id, grades in data.qrels.items() if id not in data.judged} == nothing
    assert check_dataset(data)
    for split in split_folds(data, 3):
        train, _, test = split.datasets(data)
        assert nothing.keys().isdisjoint([*train.queries, *test.queries])
    assert embedfit.evaluate(data, [word_encoder]).value.notna().all()
    assert load(write_jsonl(data, tmp_path / "again") / "queries.jsonl", tmp_path / "again" / "documents.jsonl") == data


# Variants of tables and exports


TICKET_ROWS = [["Ticket", "Subject", "Category"], ["1001", "The printer is broken", "Hardware"], ["1002", "Cannot sign in", "Access"]]


@pytest.mark.parametrize("title", [["Support tickets 2026", "", ""], ["Exported by", "Ann", ""]])
@pytest.mark.parametrize("kind", ["xlsx", "csv", "plain csv"])
def test_a_title_above_the_header_is_left_out_and_said(tmp_path, capsys, title, kind):
    rows = [title, ["", "", ""], *TICKET_ROWS]
    if kind == "xlsx":
        path = xlsx(tmp_path / "t.xlsx", {"Cover": [title], "Tickets": rows, "Old": TICKET_ROWS[:2]})
    else:
        path = delimited(tmp_path / "t.csv", rows if kind == "csv" else [[title[0]], [], *TICKET_ROWS], ";")
    data = load(path)
    assert data.qrels == {"1001": {"Hardware": 1}, "1002": {"Access": 1}}
    said = capsys.readouterr().err
    assert f"rows above the header that are left out: 1 ('{title[0]}" in said
    assert ("sheet 'Tickets' of 3 is read" in said) == (kind == "xlsx")
    assert sniff(path).query == "Subject"


def test_a_header_without_a_known_name_is_not_looked_for_further_down(tmp_path):
    path = delimited(
        tmp_path / "t.csv", [["Nr", "Frage", "Thema"], ["1", "Wo ist die Karte", "x"], ["2", "text", "label"], ["3", "a b", "c"]], ","
    )
    assert load(path, query="Frage", label="Thema").query_texts() == ["Wo ist die Karte", "text", "a b"]
    assert sniff(path).columns == ("Nr", "Frage", "Thema")


@pytest.mark.parametrize(
    ("rows", "shape"),
    [
        ([{"Query": CARD, "Pos": [ARRIVE], "Neg": [OPEN]}], "FlagEmbedding"),
        ([{"Anchor": CARD, "Positive": ARRIVE, "Negative 1": OPEN}], "sentence-transformers, tuples"),
        (
            [{"Premise": CARD, "Hypothesis": text, "Label": label} for text, label in ((ARRIVE, "Entailment"), (OPEN, "Contradiction"))],
            "NLI",
        ),
    ],
)
def test_capitalised_keys_make_no_other_shape(tmp_path, rows, shape):
    path = lines(tmp_path / "t.jsonl", rows)
    assert load(path).qrels == {"q1": {ARRIVE: 1, OPEN: 0}}
    assert sniff(path).shape == shape


def test_nested_values_in_the_cells_of_a_table_are_read(tmp_path):
    arrays = ["{'text': array(['ten'], dtype=object), 'answer_start': array([3])}", "{'text': array([], dtype=object), 'answer_start': []}"]
    rows = [["id", "context", "question", "answers"], ["a", ARRIVE, CARD, arrays[0]], ["b", ARRIVE, PIN, arrays[1]]]
    assert load(delimited(tmp_path / "s.csv", rows, ",")).qrels == {"a": {ARRIVE: 1}, "b": {ARRIVE: 0}}
    passages = [[{"docid": id, "text": DOCUMENTS[id]}] for id in ("d1", "d3")]
    rows = [["query_id", "query", "positive_passages", "negative_passages"], ["a", CARD, *map(str, passages)]]
    assert load(delimited(tmp_path / "t.csv", rows, ",")).qrels == {"a": {"d1": 1, "d3": 0}}


def test_label_studios_csv_may_have_its_columns_in_alphabetical_order(tmp_path):
    header = ["annotation_id", "annotator", "created_at", "id", "label", "lead_time", "text", "updated_at"]
    rows = [
        ["1", "1", "2026", "7", "cards", "2.2", CARD, "2026"],
        ["2", "1", "2026", "8", '{"choices": ["pins", "cards"]}', "3", PIN, "2026"],
    ]
    assert load(delimited(tmp_path / "p.csv", [header, *rows], ",")).qrels == {"7": {"cards": 1}, "8": {"pins": 1, "cards": 1}}


def test_sets_of_texts_and_rows_by_id_are_read(tmp_path):
    assert load(lines(tmp_path / "sets.jsonl", [{"set": [CARD, ARRIVE, CHANGE]}])).qrels == {"q1": {ARRIVE: 1, CHANGE: 1}}
    assert "sets.jsonl:1: key 'set' is ['x']; expected a list of two texts" in refusal(lines(tmp_path / "sets.jsonl", [{"set": ["x"]}]))
    by_id = whole(tmp_path / "index.json", {"7": {"query": CARD, "label": "cards"}, "9": {"query": PIN, "label": "pins"}})
    assert load(by_id).qrels == {"7": {"cards": 1}, "9": {"pins": 1}}


def test_a_note_beside_the_tables_of_a_folder_is_no_table(tmp_path):
    lines(tmp_path / "set" / "train.jsonl", [{"query": CARD, "label": "cards"}])
    (tmp_path / "set" / "notes.txt").write_text("")
    assert load(tmp_path / "set").parts == {"train": ("q1",)}


def test_a_folder_of_labelled_queries_and_documents_is_read_whole(tmp_path, capsys):
    data = Dataset(QUERIES, DOCUMENTS, QRELS)
    write_jsonl(data, tmp_path / "own")
    assert load(tmp_path / "own") == data
    assert "own: the documents are in documents.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("readme", [True, False])
def test_a_task_of_one_language_is_read_and_several_are_named(tmp_path, readme):
    def written(language):
        rows = [{"query-id": query, "corpus-id": id, "score": grade} for query, grades in QRELS.items() for id, grade in grades.items()]
        tables = {"corpus": DOCUMENTS, "queries": QUERIES}
        for name, texts in tables.items():
            lines(tmp_path / f"{language}-{name}" / "test.jsonl", [{"_id": id, "text": text} for id, text in texts.items()])
        lines(tmp_path / f"{language}-qrels" / "test.jsonl", rows)

    written("de")
    if readme:
        configurations = "".join(
            f"- config_name: de-{name}\n  data_files: de-{name}/test.jsonl\n" for name in ("corpus", "queries", "qrels")
        )
        (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configurations}---\n")
    assert load(tmp_path).qrels == QRELS
    written("en")
    assert f"{tmp_path}: holds 2 data sets (de, en); expected one; fix: give a folder of one" in refusal(tmp_path)


def test_answers_of_argilla_in_the_cells_of_a_table_count(tmp_path):
    header = ["id", "text", "label.responses", "label.responses.users", "label.responses.status"]
    rows = [["1", CARD, "['cards', 'lost']", "['u', 'v']", "['submitted', 'draft']"], ["2", PIN, "", "", ""]]
    assert load(delimited(tmp_path / "a.csv", [header, *rows], ",")).qrels == {"1": {"cards": 1}}
    rows[0][2] = "['cards"
    assert "a.csv:2: key 'label.responses' is \"['cards\", which looks like a list but is none" in refusal(
        delimited(tmp_path / "a.csv", [header, *rows], ",")
    )


def test_grades_of_esci_are_words_or_letters_and_other_letters_are_none(tmp_path):
    rows = [["query", "product_id", "esci_label"], *([CARD, f"B{place}", label] for place, label in enumerate("ESCI"))]
    assert load(delimited(tmp_path / "e.csv", rows, ",")).qrels == {"q1": {"B0": 3, "B1": 2, "B2": 1, "B3": 0}}
    rows = [["query", "product_id", "label"], [CARD, "p1", "Exact"], [CARD, "p2", "Partial"], [CARD, "p3", "Irrelevant"]]
    assert load(delimited(tmp_path / "w.tsv", rows, "\t")).qrels == {"q1": {"p1": 3, "p2": 1, "p3": 0}}
    assert load(delimited(tmp_path / "t.csv", [["text", "label"], [CARD, "e"], [PIN, "s"]], ",")).qrels == {"q1": {"e": 1}, "q2": {"s": 1}}


def test_further_keys_of_other_tools_are_known(tmp_path):
    rows = [{"query": CARD, "relevant_passages": [ARRIVE], "hard_negatives": [OPEN]}]  # Cohere
    assert load(lines(tmp_path / "c.jsonl", rows)).qrels == {"q1": {ARRIVE: 1, OPEN: 0}}
    assert load(lines(tmp_path / "p.jsonl", [{"prompt": CARD, "completion": ARRIVE}])).qrels == {"q1": {ARRIVE: 1}}  # OpenAI
    assert load(lines(tmp_path / "i.jsonl", [{"instruction": CARD, "input": "", "output": ARRIVE}])).qrels == {"q1": {ARRIVE: 1}}
    assert load(whole(tmp_path / "t.json", {"total": 1, "tickets": [{"subject": CARD, "category": "cards"}]})).qrels == {"q1": {"cards": 1}}
    assert load(lines(tmp_path / "ids.jsonl", [{"question": CARD, "positive_ids": ["d1", "d2"]}])).qrels == {"q1": {"d1": 1, "d2": 1}}
    lines(
        tmp_path / "ubi" / "events.jsonl", [{"action_name": "click", "query_id": "a", "event_attributes": {"object": {"object_id": "d2"}}}]
    )
    lines(tmp_path / "ubi" / "queries.jsonl", [{"query_id": "a", "user_query": CARD, "query_response_hit_ids": "d1, d2,d3"}])
    assert list(load(tmp_path / "ubi").qrels.values()) == [{"d2": 1, "d1": 0}]


def test_the_sheet_with_queries_and_labels_is_read(tmp_path):
    sheets = {"Documents": [["id", "text"], *map(list, DOCUMENTS.items())], "Queries": [["query", "doc_id"], [CARD, "d1"], [PIN, "d2"]]}
    assert load(xlsx(tmp_path / "t.xlsx", sheets)).qrels == {"q1": {"d1": 1}, "q2": {"d2": 1}}
    assert load(xlsx(tmp_path / "t.xlsx", sheets), sheet="Queries").qrels == {"q1": {"d1": 1}, "q2": {"d2": 1}}


def test_a_table_of_pyarrow_or_polars_is_a_frame_and_a_series_is_none(capsys):
    rows = {"premise": [CARD, CARD, PIN], "hypothesis": [ARRIVE, OPEN, None], "label": [0, 2, 0]}
    problems = []
    assert Dataset.from_frame(pa.table(rows), problems=problems).qrels == {"q1": {ARRIVE: 1, OPEN: 0}}
    assert "row 2: key 'hypothesis' is missing" in str(problems[0])
    assert "rows: entailed sentences are right" in capsys.readouterr().err

    class Polars:
        columns = ("text", "label")

        def to_dicts(self):
            return [{"text": CARD, "label": "cards"}, {"text": PIN, "label": None}]

    assert Dataset.from_frame(Polars()).qrels == {"q1": {"cards": 1}}
    with pytest.raises(DataError, match=r"expected a DataFrame, a datasets\.Dataset, or a list of records"):
        Dataset.from_frame(pd.DataFrame({"text": [CARD], "label": ["cards"]})["text"])
