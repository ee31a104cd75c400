import embedfit

encoder = embedfit.LocalEncoder("runs/support-1a2b3c4d5e/model")
with embedfit.open_store(embedfit.read_config("embedfit.toml").store) as store:
    for hit in embedfit.LiveIndex(store, encoder).find("where is my receipt", k=3):
        print(hit.score, hit.id, hit.text)
