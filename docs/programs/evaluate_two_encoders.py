import embedfit

data = embedfit.load("queries.jsonl", "documents.jsonl")
small = embedfit.measure(embedfit.LocalEncoder("all-MiniLM-L6-v2"), data)
large = embedfit.measure(embedfit.RemoteEncoder("openai:text-embedding-3-large"), data)
print(embedfit.compare_scores(small, large).sentence)
