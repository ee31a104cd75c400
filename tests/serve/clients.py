"""Other people's clients against a server: reads {"address", "model", "texts"}, prints what each was given as JSON."""

import json
import sys

import numpy as np

asked = json.loads(sys.stdin.readline())
ADDRESS, MODEL, TEXTS = asked["address"], asked["model"], asked["texts"]
QUERY = TEXTS[0]


def openai():
    from openai import NotFoundError, OpenAI, UnprocessableEntityError

    client = OpenAI(base_url=f"{ADDRESS}/v1", api_key="none", max_retries=0)
    plain = client.embeddings.create(model=MODEL, input=TEXTS)  # base64, unless it is told otherwise
    floats = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    query = client.embeddings.create(model=MODEL, input=QUERY, extra_body={"input_type": "query"})
    named = client.embeddings.create(model=f"{MODEL}:query", input=[QUERY])
    short = client.embeddings.create(model=MODEL, input=TEXTS, dimensions=8)
    tokens = client.embeddings.create(model=MODEL, input=[asked["tokens"]])
    one = client.embeddings.create(model=MODEL, input=asked["tokens"])
    with_errors = []
    for error, arguments in (
        (NotFoundError, {"model": "text-embedding-3-small", "input": TEXTS}),
        (UnprocessableEntityError, {"model": MODEL, "input": [[10**6]]}),
        (UnprocessableEntityError, {"model": MODEL, "input": [""]}),
        (UnprocessableEntityError, {"model": MODEL, "input": TEXTS, "dimensions": 10_000}),
    ):
        try:
            client.embeddings.create(**arguments)
        except error as refused:
            with_errors.append([refused.status_code, refused.body["message"]])
    return {
        "documents": [[row.embedding for row in answer.data] for answer in (plain, floats)],
        "queries": [answer.data[0].embedding for answer in (query, named)],
        "short": [row.embedding for row in short.data],
        "tokens": [answer.data[0].embedding for answer in (tokens, one)],
        "usage": plain.usage.total_tokens,
        "models": [model.id for model in client.models.list()],
        "model": client.models.retrieve(MODEL).id,
        "errors": with_errors,
    }


def huggingface_hub():
    from huggingface_hub import InferenceClient

    client = InferenceClient(model=ADDRESS)
    single = InferenceClient(model=f"{ADDRESS}/embed").feature_extraction(QUERY, prompt_name="query")
    return {"documents": [client.feature_extraction(TEXTS).tolist()], "queries": np.asarray(single).reshape(1, -1).tolist()}


def chromadb():
    from chromadb.utils.embedding_functions import HuggingFaceEmbeddingServer, OpenAIEmbeddingFunction

    server = HuggingFaceEmbeddingServer(url=f"{ADDRESS}/embed")
    openai = OpenAIEmbeddingFunction(api_key="none", api_base=f"{ADDRESS}/v1", model_name=MODEL)
    return {"documents": [np.asarray(function(TEXTS)).tolist() for function in (server, openai)]}


def cohere():
    import cohere

    ranked = {}
    for name, client in (
        ("v2", cohere.ClientV2(api_key="none", base_url=ADDRESS)),
        ("v1", cohere.Client(api_key="none", base_url=ADDRESS)),
    ):
        answer = client.rerank(model=MODEL, query=QUERY, documents=TEXTS, top_n=2)
        ranked[name] = [[result.index, result.relevance_score] for result in answer.results]
    try:
        client.rerank(model="another", query=QUERY, documents=TEXTS)
    except cohere.errors.NotFoundError as error:
        ranked["error"] = error.body["message"]
    return {"ranked": ranked}


def langchain():
    from langchain_openai import OpenAIEmbeddings

    openai, query = (
        OpenAIEmbeddings(model=model, base_url=f"{ADDRESS}/v1", api_key="none", check_embedding_ctx_length=False)
        for model in (MODEL, f"{MODEL}:query")
    )
    return {"documents": [openai.embed_documents(TEXTS)], "queries": [query.embed_query(QUERY)]}


def llama_index():
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding
    from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

    like = OpenAILikeEmbedding(model_name=MODEL, api_base=f"{ADDRESS}/v1", api_key="none")
    inference = TextEmbeddingsInference(model_name=MODEL, base_url=ADDRESS)
    return {"documents": [like.get_text_embedding_batch(TEXTS), inference.get_text_embedding_batch(TEXTS)]}


CLIENTS = (openai, huggingface_hub, chromadb, cohere, langchain, llama_index)
print(json.dumps({client.__name__: client() for client in CLIENTS if client.__name__ in asked["clients"]}))
