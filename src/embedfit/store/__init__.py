"""Vector stores keep the documents, metadata and vectors of the chosen model.

    chroma.py    a folder (the default), or a server
    pgvector.py  PostgreSQL
    qdrant.py    a server, or a folder for trials
    versions.py  fills a new version, checks it, makes it live, rolls back; the live version as a Retriever

A store keeps *collections* that are written once and then only read. Each index has a *live name* that points to the collection
that answers searches. A reader therefore never sees a half-written collection, and switching or rolling back is one small write.
"""
