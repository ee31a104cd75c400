import embedfit

data = embedfit.load("queries.jsonl", "documents.jsonl")
encoder = embedfit.LocalEncoder("all-MiniLM-L6-v2")
retriever = embedfit.DenseRetriever(encoder).over(data)
for hit in retriever.find("where is my receipt", k=3):
    print(hit.score, hit.id, hit.text)
