"""Ways of changing a model with labelled pairs. None of them ever sees a test query."""
