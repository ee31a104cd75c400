import embedfit

run = "runs/support-1a2b3c4d5e"
[publication] = embedfit.prepare_publications(run, "someone/support")
print(publication.describe())
print(embedfit.publish_run(run, publication).sentence)
