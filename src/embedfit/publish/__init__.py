"""A tuned model and its data set, in a folder or on the Hub."""
