import embedfit

data = embedfit.load("queries.jsonl", "documents.jsonl")
small = embedfit.LocalEncoder("all-MiniLM-L6-v2")
large = embedfit.RemoteEncoder("openai:text-embedding-3-large")
comparison = embedfit.compare_scores(embedfit.measure(small, data), embedfit.measure(large, data))
print(comparison.sentence)
