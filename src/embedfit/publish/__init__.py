"""Publishes a tuned model and its data set to a folder, an archive or the Hugging Face Hub."""
