import embedfit

qrels = {"q1": {"invoice": 1}, "q2": {"password": 1}, "q3": {"export": 1}}
before = {"q1": {"cancel": 0.9, "invoice": 0.8}, "q2": {"password": 0.7}, "q3": {"cancel": 0.4}}
after = {"q1": {"invoice": 0.9, "cancel": 0.2}, "q2": {"password": 0.8}, "q3": {"export": 0.5}}
scores = [embedfit.score_run(embedfit.Run.from_dict(hits), qrels) for hits in (before, after)]
print(embedfit.compare_scores(*scores).sentence)
