"""What is deployed: an encoder, documents, labelled examples, and a calibration."""
