"""Ways to improve a model with labelled pairs. None of them sees a test query."""
