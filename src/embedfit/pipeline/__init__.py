"""The whole way, from files to a verdict.

(generate ->) data -> check -> split -> encode -> retrieve -> score -> tune -> compare -> report

generating   an LLM writes the queries, where it is asked to
job          the data, its parts without leaks, the model, and where results go
training     tuning, for each split and seed
measuring    encoders, retrievers and rerankers measured without tuning; a vector store filled and measured
experiment   run, ladder, curve: all of it, and what is written down
publishing   a finished run, published and fetched again
"""
