import embedfit

result = embedfit.read_result("runs/support-1a2b3c4d5e")
print(result.comparison.sentence)
print(result.to_frame())
print(result.encoder.encode(["where is my receipt"], "query").shape)
