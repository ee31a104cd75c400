"""Vector stores keep the documents and vectors of the chosen model, or those of a searcher with its labelled examples.

    chroma.py    a folder (the default), or a server
    pgvector.py  PostgreSQL
    qdrant.py    a server, or a folder for trials
    versions.py  fills a new version, checks it, makes it live, rolls back
    version.py   one version as a Retriever and for single searches
    stored.py    the searcher's views over a store
    live.py      the live version, and teaching it
    changes.py   what a version was taught

A store keeps *collections* that are written once and then only read. Each index has a *live name* that points to the version
that answers searches. A reader therefore never sees a half-written collection, and switching or rolling back is one small write. What a
live version is taught stands in a small collection beside it.
"""
