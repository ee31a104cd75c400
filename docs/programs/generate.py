import embedfit

data = {"queries": "written.jsonl", "documents": "documents.jsonl"}
task = {"questions": 3, "model": "gpt-4.1-mini", "max_tokens_total": 200_000}
generated = embedfit.run_generate(embedfit.make_config({"data": data, "generate": task}))
print(generated.sentence)
