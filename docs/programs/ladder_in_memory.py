import embedfit

data = embedfit.load("queries.jsonl", "documents.jsonl")
ladder = embedfit.ladder(data, model="all-MiniLM-L6-v2")
print(ladder.sentence)
print(ladder.to_frame())
