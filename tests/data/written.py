"""One small data set in the files of every tool, as each tool writes them."""

import csv
import gzip
import io
import json
import zipfile
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq

CARD, PIN = "Where is my card?", "How do I change my PIN?"
DOCUMENTS = {
    "d1": "Cards arrive within ten working days.",
    "d2": "PINs are changed at any cash machine.",
    "d3": "We are open from nine to five.",
}
ARRIVE, CHANGE, OPEN = DOCUMENTS.values()
QUERIES = {"a": CARD, "b": PIN}
QRELS = {"a": {"d1": 1, "d2": 0}, "b": {"d2": 1, "d3": 0}}
JUDGED = [(query, document, grade) for query, grades in QRELS.items() for document, grade in grades.items()]

FORMATS = {}
"""Name in the table of docs/data.md -> (what it can hold, function that writes it into a folder and returns arguments of `load`).

It can hold ``ids`` and texts of documents and grades 0; ``texts`` of documents and grades 0, without ids; ``right`` the same as ids without
grades 0; ``classes``: names as labels.
"""


def format(name, holds):
    def keep(function):
        assert name not in FORMATS
        FORMATS[name] = (holds, function)
        return function

    return keep


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def whole(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))
    return path


def documents(folder):
    return lines(folder / "documents.jsonl", ({"id": id, "text": text} for id, text in DOCUMENTS.items()))


LABELLED = [{"id": id, "query": text, "expected": QRELS[id]} for id, text in QUERIES.items()]
ROWS = [["id", "query", "doc_id", "grade"], *([query, QUERIES[query], document, str(grade)] for query, document, grade in JUDGED)]
COLUMNS = dict(zip(ROWS[0], map(list, zip(*ROWS[1:], strict=True)), strict=True))
CLASSES = [["text", "label"], [CARD, "cards"], [PIN, "pins"], ["My card is lost", "cards"]]
CLASS_ROWS = [dict(zip(CLASSES[0], row, strict=True)) for row in CLASSES[1:]]


def delimited(path, rows, delimiter, encoding="utf-8"):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows(rows)
    path.write_bytes(text.getvalue().encode(encoding))
    return path


# Tables


@format("JSON Lines", "ids")
def jsonl(folder):
    return lines(folder / "queries.jsonl", LABELLED), documents(folder)


@format("JSON", "ids")
def json_list(folder):
    return whole(folder / "queries.json", LABELLED), documents(folder)


@format("JSON, rows under a key", "ids")
def json_data(folder):
    return whole(folder / "queries.json", {"version": "1", "data": LABELLED}), documents(folder)


@format("JSON, columns", "ids")
def json_columns(folder):  # DataFrame.to_json()
    table = {name: {str(place): value for place, value in enumerate(column)} for name, column in COLUMNS.items()}
    return whole(folder / "queries.json", table), documents(folder)


@format("CSV", "ids")
def comma(folder):
    return delimited(folder / "queries.csv", ROWS, ","), documents(folder)


@format("CSV of Excel", "ids")
def semicolons(folder):
    return delimited(folder / "queries.csv", [["sep=;"], *ROWS], ";", "utf-16"), documents(folder)


@format("TSV", "ids")
def tabs(folder):
    return delimited(folder / "queries.tsv", ROWS, "\t"), documents(folder)


@format("compressed", "ids")
def compressed(folder):
    (folder / "queries.csv.gz").write_bytes(gzip.compress(delimited(folder / "queries.csv", ROWS, ",").read_bytes()))
    with pa.output_stream(str(folder / "documents.jsonl.zst"), compression="zstd") as file:
        file.write(documents(folder).read_bytes())
    return folder / "queries.csv.gz", folder / "documents.jsonl.zst"


def xlsx(path, sheets):
    """Write a workbook: {name of the sheet: rows}. Digits are numbers, as a spreadsheet makes them."""
    head = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    relations = "http://schemas.openxmlformats.org/package/2006/relationships"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    types = "http://schemas.openxmlformats.org/package/2006/content-types"

    def cell(value, name):
        if value.isdecimal():
            return f'<c r="{name}"><v>{value}</v></c>'
        return f'<c r="{name}" t="inlineStr"><is><t>{escape(value)}</t></is></c>' if value else ""

    with zipfile.ZipFile(path, "w") as book:
        book.writestr(
            "[Content_Types].xml",
            f'{head}<Types xmlns="{types}"><Default Extension="rels" ContentType='
            '"application/vnd.openxmlformats-package.relationships+xml"/><Default Extension="xml" ContentType="application/xml"/></Types>',
        )
        target = f'<Relationship Id="rId1" Type="{office}/officeDocument" Target="xl/workbook.xml"/>'
        book.writestr("_rels/.rels", f'{head}<Relationships xmlns="{relations}">{target}</Relationships>')
        names = "".join(f'<sheet name="{name}" sheetId="{n}" r:id="rId{n}"/>' for n, name in enumerate(sheets, 1))
        book.writestr("xl/workbook.xml", f'{head}<workbook xmlns="{main}" xmlns:r="{office}"><sheets>{names}</sheets></workbook>')
        links = "".join(
            f'<Relationship Id="rId{n}" Type="{office}/worksheet" Target="worksheets/sheet{n}.xml"/>' for n in range(1, len(sheets) + 1)
        )
        book.writestr("xl/_rels/workbook.xml.rels", f'{head}<Relationships xmlns="{relations}">{links}</Relationships>')
        for number, rows in enumerate(sheets.values(), 1):
            body = "".join(
                f'<row r="{r}">' + "".join(cell(value, f"{chr(65 + c)}{r}") for c, value in enumerate(row)) + "</row>"
                for r, row in enumerate(rows, 1)
            )
            sheet = f'{head}<worksheet xmlns="{main}"><sheetData>{body}</sheetData></worksheet>'
            book.writestr(f"xl/worksheets/sheet{number}.xml", sheet)
    return path


@format("Excel", "ids")
def excel(folder):
    return xlsx(folder / "queries.xlsx", {"Notes": [], "Labels": ROWS}), documents(folder)


@format("OpenDocument", "ids")
def opendocument(folder):
    spaces = {
        "office": "urn:oasis:names:tc:opendocument:xmlns:office:1.0",
        "table": "urn:oasis:names:tc:opendocument:xmlns:table:1.0",
        "text": "urn:oasis:names:tc:opendocument:xmlns:text:1.0",
    }
    names = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in spaces.items())

    def cell(value):
        kind = f'office:value-type="float" office:value="{value}"' if value.isdecimal() else 'office:value-type="string"'
        return f"<table:table-cell {kind}><text:p>{escape(value)}</text:p></table:table-cell>"

    rows = "".join("<table:table-row>" + "".join(map(cell, row)) + "</table:table-row>" for row in ROWS)
    table = f'<table:table table:name="Labels">{rows}</table:table>'
    body = f"<office:body><office:spreadsheet>{table}</office:spreadsheet></office:body>"
    with zipfile.ZipFile(folder / "queries.ods", "w") as book:
        book.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        entry = '<m:file-entry m:full-path="/" m:media-type="application/vnd.oasis.opendocument.spreadsheet"/>'
        spaces = 'xmlns:m="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0"'
        book.writestr("META-INF/manifest.xml", f'<?xml version="1.0"?><m:manifest {spaces}>{entry}</m:manifest>')
        book.writestr("content.xml", f'<?xml version="1.0"?><office:document-content {names}>{body}</office:document-content>')
    return folder / "queries.ods", documents(folder)


@format("Parquet", "ids")
def parquet(folder):
    pq.write_table(pa.table({**COLUMNS, "grade": [1, 0, 1, 0]}), folder / "queries.parquet")
    return folder / "queries.parquet", documents(folder)


@format("Parquet shards", "ids")
def shards(folder):
    table = pa.table({**COLUMNS, "grade": [1, 0, 1, 0]})
    (folder / "shards").mkdir()
    for number in range(2):
        pq.write_table(table.slice(2 * number, 2), folder / "shards" / f"part-0000{number}-of-00002.parquet")
    return folder / "shards", documents(folder)


@format("Arrow, Feather", "ids")
def arrow(folder):
    feather.write_feather(pa.table({**COLUMNS, "grade": [1, 0, 1, 0]}), folder / "queries.arrow")
    return folder / "queries.arrow", documents(folder)


@format("save_to_disk", "ids")
def saved(folder):
    import datasets

    datasets.Dataset.from_dict({**COLUMNS, "grade": [1, 0, 1, 0]}).save_to_disk(folder / "saved")
    return folder / "saved", documents(folder)


@format("one row for each judgement", "ids")
def with_documents(folder):
    rows = [["query_id", "query", "doc_id", "passage", "relevance"]]
    rows += [[query, QUERIES[query], document, DOCUMENTS[document], f"{grade}.0"] for query, document, grade in JUDGED]
    return (delimited(folder / "judged.csv", rows, ","),)


@format("queries and documents in a folder", "ids")
def own_folder(folder):
    documents(folder / "data")
    return (lines(folder / "data" / "queries.jsonl", LABELLED).parent,)


@format("ESCI", "ids no query ids")
def esci(folder):
    rows = [[query, QUERIES[query], document, "C" if grade else "I"] for query, document, grade in JUDGED]
    return delimited(folder / "examples.csv", [["query_id", "query", "product_id", "esci_label"], *rows], ","), documents(folder)


@format("classes", "classes")
def classes(folder):
    return (delimited(folder / "tickets.csv", CLASSES, ","),)


# Queries, documents and judgements apart


def corpus_and_queries(folder):
    lines(folder / "corpus.jsonl", ({"_id": id, "title": "", "text": text} for id, text in DOCUMENTS.items()))
    lines(folder / "queries.jsonl", ({"_id": id, "text": text, "metadata": {}} for id, text in QUERIES.items()))
    (folder / "qrels").mkdir()


@format("BEIR", "ids")
def beir(folder):
    corpus_and_queries(folder)
    rows = [["query-id", "corpus-id", "score"], *([query, document, str(grade)] for query, document, grade in JUDGED)]
    delimited(folder / "qrels" / "all.tsv", rows, "\t")
    return (folder,)


@format("BEIR, qrels as JSONL or Parquet", "ids")
def beir_jsonl(folder):
    corpus_and_queries(folder)
    first, *rest = [{"query-id": query, "corpus-id": document, "score": float(grade or -1)} for query, document, grade in JUDGED]
    lines(folder / "qrels" / "first.jsonl", [first])
    pq.write_table(pa.Table.from_pylist(rest), folder / "qrels" / "rest.parquet")
    return (folder,)


README = """---
task_categories: [text-retrieval]
configs:
- config_name: default
  data_files:
  - {split: all, path: data/all-*}
- config_name: corpus
  data_files:
  - {split: corpus, path: corpus/corpus-*}
- config_name: queries
  data_files: queries/queries-*
---
# A retrieval task
"""


@format("MTEB, a clone of a Hub data set", "ids")
def mteb(folder):
    (folder / "README.md").write_text(README)
    tables = {
        "corpus/corpus": [{"_id": id, "text": text, "title": ""} for id, text in DOCUMENTS.items()],
        "queries/queries": [{"_id": id, "text": text} for id, text in QUERIES.items()],
        "data/all": [{"query-id": query, "corpus-id": document, "score": float(grade)} for query, document, grade in JUDGED],
    }
    for name, rows in tables.items():
        (folder / name).parent.mkdir()
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}-00000-of-00001.parquet")
    return (folder,)


@format("MS MARCO, collection and queries", "ids")
def collection(folder):
    delimited(folder / "collection.tsv", DOCUMENTS.items(), "\t")
    delimited(folder / "queries.all.tsv", QUERIES.items(), "\t")
    delimited(folder / "qrels.all.tsv", ([query, "0", document, grade] for query, document, grade in JUDGED), "\t")
    return (folder,)


@format("TREC qrels", "ids")
def trec(folder):
    queries = delimited(folder / "topics.csv", [["qid", "query"], *QUERIES.items()], ",")
    (folder / "qrels.txt").write_text("".join(f"{query} 0 {document} {grade or -2}\n" for query, document, grade in JUDGED))
    return queries, documents(folder), folder / "qrels.txt"


@format("LlamaIndex", "right")
def llama_index(folder):
    relevant = {id: [document for document, grade in grades.items() if grade] for id, grades in QRELS.items()}
    value = {"queries": QUERIES, "corpus": DOCUMENTS, "relevant_docs": relevant, "mode": "text"}
    return (whole(folder / "qa.json", value),)


# Rows for training

TUPLES = [(CARD, ARRIVE, CHANGE), (PIN, CHANGE, OPEN)]


@format("sentence-transformers, pairs", "texts right")
def st_pairs(folder):
    return (delimited(folder / "pairs.csv", [["anchor", "positive"], *(row[:2] for row in TUPLES)], ","),)


@format("sentence-transformers, triplets and n-tuples", "texts")
def st_triplets(folder):
    pq.write_table(
        pa.Table.from_pylist([dict(zip(("anchor", "positive", "negative_1"), row, strict=True)) for row in TUPLES]), folder / "t.parquet"
    )
    return (folder / "t.parquet",)


@format("sentence-transformers, lists", "texts")
def st_lists(folder):
    return (lines(folder / "triplets.jsonl", TUPLES),)


@format("sentence-transformers, sets", "texts right")
def st_sets(folder):
    return (lines(folder / "sets.jsonl", ({"set": row[:2]} for row in TUPLES)),)


@format("sentence-transformers, pairs with a score or a label", "texts")
def st_scores(folder):
    rows = [(query, text, score) for query, right, wrong in TUPLES for text, score in ((right, "0.9"), (wrong, "0.2"))]
    return (delimited(folder / "stsb.csv", [["sentence1", "sentence2", "score"], *rows], ","),)


@format("NLI", "texts")
def nli(folder):
    rows = [(query, text, label) for query, right, wrong in TUPLES for text, label in ((right, "entailment"), (wrong, "contradiction"))]
    return (delimited(folder / "nli.csv", [["premise", "hypothesis", "label"], *rows], ","),)


@format("FlagEmbedding", "texts")
def flag(folder):
    rows = [
        {
            "query": query,
            "pos": [right],
            "neg": [wrong],
            "pos_scores": [],  # tests/tune/test_teacher.py reads some
            "prompt": "Represent this",
            "type": "normal",
        }
        for query, right, wrong in TUPLES
    ]
    return (lines(folder / "train.jsonl", rows),)


def passage(id):
    return {"docid": id, "title": "", "text": DOCUMENTS[id]}


@format("Tevatron", "ids")
def tevatron(folder):
    rows = [
        {
            "query_id": id,
            "query": QUERIES[id],
            "positive_passages": [passage(document) for document, grade in grades.items() if grade],
            "negative_passages": [passage(document) for document, grade in grades.items() if not grade],
        }
        for id, grades in QRELS.items()
    ]
    return (lines(folder / "train.jsonl", rows),)


@format("DPR", "texts")
def dpr(folder):
    rows = [
        {
            "dataset": None,
            "question": query,
            "answers": [],
            "positive_ctxs": [{"title": "", "text": right, "score": 0, "title_score": 1}],
            "negative_ctxs": [],
            "hard_negative_ctxs": [{"title": "", "text": wrong, "score": 0, "title_score": 0}],
        }
        for query, right, wrong in TUPLES
    ]
    return (whole(folder / "biencoder.json", rows),)


@format("MS MARCO, triples", "texts")
def triples(folder):
    (folder / "triples.train.small.tsv").write_text("".join("\t".join(row) + "\n" for row in TUPLES))
    return (folder / "triples.train.small.tsv",)


@format("MS MARCO, questions", "texts")
def questions(folder):
    rows = [
        {
            "query_id": number,
            "query": query,
            "query_type": "description",
            "passages": {"is_selected": [1, 0], "passage_text": [right, wrong], "url": ["http://a.example", "http://b.example"]},
            "answers": ["yes"],
        }
        for number, (query, right, wrong) in enumerate(TUPLES)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    return (folder / "train.parquet",)


@format("SQuAD", "texts right")
def squad(folder):
    def paragraph(id, context, question):
        return {
            "context": context,
            "qas": [{"id": id, "question": question, "answers": [{"text": "x", "answer_start": 0}], "is_impossible": False}],
        }

    articles = [{"title": "", "paragraphs": [paragraph("a", ARRIVE, CARD), paragraph("b", CHANGE, PIN)]}]
    return (whole(folder / "train-v2.0.json", {"version": "v2.0", "data": articles}),)


@format("SQuAD of the Hub", "texts right")
def squad_flat(folder):
    rows = [
        {"id": id, "title": "", "context": context, "question": text, "answers": {"text": ["x"], "answer_start": [0]}}
        for (id, text), context in zip(QUERIES.items(), (ARRIVE, CHANGE), strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "squad.parquet")
    return (folder / "squad.parquet",)


@format("Ragas", "right")
def ragas(folder):
    rows = [
        {"user_input": CARD, "reference_contexts": [f"<1-hop>\n\n{ARRIVE}"], "reference": "In ten days.", "synthesizer_name": "single_hop"},
        {"user_input": PIN, "reference_contexts": [CHANGE], "reference": "At a machine.", "synthesizer_name": "single_hop"},
    ]
    return lines(folder / "testset.jsonl", rows), documents(folder)


# Labelling tools


def note(who, *results):
    return {"id": 9, "completed_by": who, "was_cancelled": False, "ground_truth": False, "lead_time": 4.2, "result": list(results)}


def choice(*names):
    return {"id": "x", "from_name": "topic", "to_name": "text", "type": "choices", "origin": "manual", "value": {"choices": list(names)}}


@format("Label Studio, choices", "classes")
def studio(folder):
    tasks = [
        {
            "id": place,
            "data": {"text": row["text"]},
            "annotations": [note(1, choice(row["label"]))],
            "predictions": [],
            "meta": {},
            "project": 1,
        }
        for place, row in enumerate(CLASS_ROWS, 1)
    ]
    return (whole(folder / "project-1.json", tasks),)


@format("Label Studio, ranker", "ids")
def ranker(folder):
    def ranked(query):
        items = [{"id": document, "title": "", "body": DOCUMENTS[document]} for document in QRELS[query]]
        right, wrong = ([document for document, grade in QRELS[query].items() if grade == wanted] for wanted in (1, 0))
        value = {"ranker": {"_": [], "positives": right, "hard_negatives": wrong}}
        result = {"from_name": "rank", "to_name": "results", "type": "ranker", "value": value}
        return {"id": query, "data": {"query": QUERIES[query], "similar_docs": items}, "annotations": [note(1, result)]}

    return (whole(folder / "project-2.json", [ranked("a"), ranked("b")]),)


@format("Label Studio, JSON-MIN", "classes")
def studio_min(folder):
    about = {
        "annotator": 1,
        "annotation_id": 7,
        "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00Z",
        "lead_time": 3.1,
    }
    rows = [{"text": row["text"], "id": place, "topic": row["label"], **about} for place, row in enumerate(CLASS_ROWS, 1)]
    return (whole(folder / "project-min.json", rows),)


@format("Argilla 2", "classes")
def argilla(folder):
    rows = [
        {
            "id": place,
            "status": "completed",
            "fields": {"text": row["text"]},
            "metadata": {},
            "suggestions": {"label": {"value": "pins", "score": 0.4, "agent": "gpt"}},
            "responses": {"label": [{"value": row["label"], "user_id": "6f5e8ba0-1a2b-4c3d-8e9f-000000000001"}]},
            "vectors": {},
            "_server_id": "0b1c",
        }
        for place, row in enumerate(CLASS_ROWS, 1)
    ]
    return (whole(folder / "records.json", rows),)


@format("Argilla 2, flat", "classes")
def argilla_flat(folder):
    rows = [
        {
            "id": str(place),
            "status": "completed",
            "_server_id": "0b1c",
            "text": row["text"],
            "label.responses": [row["label"]],
            "label.responses.users": ["6f5e"],
            "label.responses.status": ["submitted"],
            "label.suggestion": None,
            "label.suggestion.score": None,
            "label.suggestion.agent": None,
        }
        for place, row in enumerate(CLASS_ROWS, 1)
    ]
    return (lines(folder / "records.jsonl", rows),)


HASHES = {"_input_hash": -11, "_task_hash": 22, "_session_id": "news-ann", "_view_id": "classification", "_timestamp": 1700000000}


@format("Prodigy, labels", "classes no ids")
def prodigy(folder):
    rows = [{"text": row["text"], "label": row["label"], **HASHES, "answer": "accept"} for row in CLASS_ROWS]
    return (lines(folder / "annotations.jsonl", rows),)


@format("Prodigy, choices", "classes no ids")
def prodigy_choice(folder):
    options = [{"id": name, "text": name} for name in ("cards", "pins")]
    rows = [
        {
            "text": row["text"],
            "options": options,
            "accept": [row["label"]],
            **HASHES,
            "config": {"choice_style": "single"},
            "answer": "accept",
        }
        for row in CLASS_ROWS
    ]
    return (lines(folder / "annotations.jsonl", rows),)


@format("Quepid", "ids no query ids")
def quepid(folder):
    rows = [["query", "docid", "rating"], *([QUERIES[query], document, str(grade)] for query, document, grade in JUDGED)]
    return delimited(folder / "case_8.csv", rows, ","), documents(folder)


@format("Quepid, book", "ids no query ids")
def quepid_book(folder):
    rows = [[QUERIES[query], document, f"{grade}.0", "" if grade else "0"] for query, document, grade in JUDGED]
    return delimited(folder / "book_3_export.csv", [["query", "docid", "Ann Lee", "bo@example.org"], *rows], ","), documents(folder)


@format("UBI", "ids no query ids")
def ubi(folder):
    searches = [
        {"query_id": "s1", "client_id": "c", "application": "shop", "user_query": CARD, "query_response_hit_ids": ["d2", "d1", "d3"]},
        {"query_id": "s2", "client_id": "c", "application": "shop", "user_query": PIN, "query_response_hit_ids": ["d3", "d2", "d1"]},
    ]
    events = [
        {
            "action_name": action,
            "query_id": search,
            "client_id": "c",
            "timestamp": "2026-01-01T00:00:00.000Z",
            "event_attributes": {"object": {"object_id": document, "object_id_field": "id"}, "position": {"ordinal": place}},
        }
        for action, search, document, place in (("impression", "s1", "d1", 2), ("click", "s1", "d1", 2), ("add_to_cart", "s2", "d2", 2))
    ]
    lines(folder / "ubi" / "ubi_events.jsonl", events), lines(folder / "ubi" / "ubi_queries.jsonl", searches)
    return folder / "ubi", documents(folder)
