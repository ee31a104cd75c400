"""Vector stores: where documents, their metadata and their vectors live when the best model is found.

    chroma.py    a folder (the default), or a server
    pgvector.py  PostgreSQL
    qdrant.py    a server; a folder for trying out
    versions.py  fill a new version, check it, switch to it, roll back; the live one as a Retriever

A store keeps *collections* that are written once and then only read, and for each index one *live name* that says which of
them answers. So a reader never sees a half-written collection, and going live or back is one small write.
"""
