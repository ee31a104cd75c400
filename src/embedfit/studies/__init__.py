"""Experiments beside the main one: method ladder, learning curve, forgetting, forms of a model, doubtful labels."""
