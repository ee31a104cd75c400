"""The whole pipeline, from files to a verdict.

(generate ->) data -> check -> split -> encode -> retrieve -> score -> tune -> compare -> report

generating   an LLM writes the queries, if the settings ask for it
job          the data, its parts without leaks, the model, and the run directory
training     tuning, once per split and seed
measuring    encoders, retrievers, rerankers and vector stores, measured without tuning
experiment   run, ladder, curve: all steps, and the files they write
publishing   a finished run, published, fetched back and compared
"""
