import pandas as pd

import embedfit

frame = pd.read_csv("tickets.csv")
data = embedfit.Dataset.from_pairs(frame.text, frame.label)
print(embedfit.check(data))
