import embedfit

data = embedfit.load("queries.jsonl", "documents.jsonl")
result = embedfit.run(data, model="all-MiniLM-L6-v2")
print(result.verdict)
print(result.report)
