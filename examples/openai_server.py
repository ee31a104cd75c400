"""An OpenAI-compatible server on loopback that answers by rote, and misbehaves as it is told.

What it answers depends on the request alone, so that two runs can be compared. It counts what a customer would pay for:
each completion that it has sent whole.

    python examples/openai_server.py --faults 0.3 --paid paid.txt      # prints its address, serves until it is killed
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import re
import threading
import time
from collections import Counter

PASSING = ("429", "429 for a while", "500", "dropped", "cut in two", "slow")
LASTING = ("invalid", "wrong label", "refusal", "length")
FAULTS = PASSING + LASTING


def hashed(*what):
    return int(hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12], 16)


def words(draw, count):
    """Return so many words out of a few thousand, the same for the same draw."""
    source = random.Random(draw)
    return " ".join("".join(source.choice("bdfgklmnprstvz") + source.choice("aeiou") for _ in range(3)) for _ in range(count))


class Server:
    """Serves from a thread of this process while it is entered.

    Args:
        faults: Share of the requests that meet a fault.
        kinds: Which faults.
        answer: A function of (body, draw) -> message, for answers other than the usual ones.
        respond: A function of (number of the request, body) -> (status, headers, body as bytes) or None for the usual way.
        delay: Seconds before each answer.
        twins: Share of the answers that are one of a few.
        paid: A file to which the hash of each paid request is appended.
    """

    def __init__(self, *, faults=0.0, kinds=FAULTS, answer=None, respond=None, delay=0.0, twins=0.0, paid=None):
        self.faults, self.kinds, self.delay, self.twins = faults, kinds, delay, twins
        self.answer, self.respond = answer or self.usual, respond
        self.seen, self.paid, self.bodies, self.headers = Counter(), [], [], []
        self.under_way = self.most_under_way = 0
        self.labels = {}
        self.met = Counter()
        self._paid_file = open(paid, "a") if paid else None  # noqa: SIM115 - as long as the server

    def __enter__(self):
        ready = threading.Event()

        def serve():
            self._loop = asyncio.new_event_loop()
            self._loop.run_until_complete(self.start())
            ready.set()
            self._loop.run_forever()

        threading.Thread(target=serve, daemon=True).start()
        ready.wait()
        return self

    def __exit__(self, *error):
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def start(self):
        self._server = await asyncio.start_server(self.connected, "127.0.0.1", 0, backlog=512)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def connected(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                headers = {name.lower(): value for name, value in re.findall(r"^([^:\r\n]+): (.*)\r$", head, re.MULTILINE)}
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                self.headers.append(headers)
                self.under_way += 1
                self.most_under_way = max(self.most_under_way, self.under_way)
                try:
                    if not await self.serve(body, writer):
                        break
                finally:
                    self.under_way -= 1
        writer.close()

    async def serve(self, body, writer):
        """Answer one request; returns whether the connection stays."""
        own = hashed(body)
        self.bodies.append(body)
        self.seen[own] += 1
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.respond:
            answered = self.respond(len(self.bodies), body)
            if answered:
                await send(writer, *answered)
                return True
        fault = self.fault(own)
        self.met[fault] += 1
        if fault == "429":
            await send(writer, 429, {}, error("rate_limit_exceeded", "slow down"))
        elif fault == "429 for a while":
            await send(writer, 429, {"Retry-After": "0.02"}, error("rate_limit_exceeded", "slow down"))
        elif fault == "500":
            await send(writer, 500, {}, b"<html>oops</html>")
        elif fault == "dropped":
            return False
        else:
            draw = own if hashed(own, "twin") % 1000 >= 1000 * self.twins else own % 7
            message, finish = self.answer(body, draw), "stop"
            if fault == "invalid":
                message = {"content": (message.get("content") or "")[:-9]}
            elif fault == "wrong label":
                message = self.answer(body, draw, wrong=True)
            elif fault == "refusal":
                message = {"content": None, "refusal": "I cannot help with that."}
            elif fault == "length" and body["max_tokens"] < 1600:
                message, finish = {"content": message["content"][:40]}, "length"
            whole = completion(body, message, finish)
            if fault == "cut in two":
                writer.write(head_of(200, {}, whole) + whole[: len(whole) // 2])
                await writer.drain()
                return False
            await send(writer, 200, {}, whole, slow=fault == "slow")
            self.paid.append(own)
            if self._paid_file:
                self._paid_file.write(f"{own}\n")
                self._paid_file.flush()
        return True

    def fault(self, own):
        """Return the fault that a request meets: a lasting one each time, a passing one by how often it was asked."""
        lasting = [kind for kind in self.kinds if kind in LASTING]
        passing = [kind for kind in self.kinds if kind in PASSING]
        share = self.faults * len(lasting) / max(1, len(self.kinds))
        if lasting and hashed(own, "lasting") % 10_000 < 10_000 * share:
            return lasting[hashed(own, "which") % len(lasting)]
        if passing and hashed(own, self.seen[own]) % 10_000 < 10_000 * (self.faults - share):
            return passing[hashed(own, self.seen[own], "which") % len(passing)]
        return ""

    def usual(self, body, draw, wrong=False):
        schema = schema_of(body)["properties"]
        prompt = body["messages"][0]["content"]
        if "choice" in schema:
            merchant = re.search(r"Name: (.+)", prompt)
            right = self.labels.get(merchant.group(1)) if merchant else None
            options = schema["choice"]["enum"]
            return {"content": json.dumps({"choice": right if right and draw % 3 else options[draw % len(options)]})}
        if "evidence" in schema:
            passage = re.split(r"The passage:\s+", prompt)[-1].split()
            return {"content": json.dumps({"query": words(draw, 6), "evidence": " ".join(["nowhere"] if wrong else passage[2:6])})}
        label = schema["expense_category"]["enum"][0]
        merchant = words(draw, 2).title()
        self.labels[merchant] = label
        record = {
            "merchant_name": merchant,
            "merchant_category": [words(draw + 1, 3)],
            "department": words(draw + 2, 1),
            "location": words(draw + 3, 2),
            "amount": draw % 100_000 / 100,
            "memo": words(draw + 4, 5),
            "spend_program_name": words(draw + 5, 2),
            "trip_name": None,
            "expense_category": "Something Else" if wrong else label,
        }
        return {"content": json.dumps(record)}


def schema_of(body):
    if "response_format" in body and "json_schema" in body["response_format"]:
        return body["response_format"]["json_schema"]["schema"]
    if "tools" in body:
        return body["tools"][0]["function"]["parameters"]
    return json.loads(re.search(r"\{.*\}", body["messages"][0]["content"], re.DOTALL).group())


def completion(body, message, finish="stop", prompt_tokens=None):
    counted = prompt_tokens or len(json.dumps(body["messages"])) // 4
    written = max(1, len(message.get("content") or "") // 4)
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", **message}}],
            "usage": {"prompt_tokens": counted, "completion_tokens": written, "total_tokens": counted + written},
        }
    ).encode()


def error(code, message="no", **more):
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": code, **more}}).encode()


def head_of(status, headers, body):
    lines = [f"HTTP/1.1 {status} Said", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return ("\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items())]) + "\r\n\r\n").encode()


async def send(writer, status, headers, body, slow=False):
    whole = head_of(status, headers, body) + body
    if not slow:
        writer.write(whole)
    for start in range(0, len(whole) if slow else 0, len(whole) // 8):
        await asyncio.sleep(0.005)  # before, so that nothing is counted as paid later than the client has it
        writer.write(whole[start : start + len(whole) // 8])
    await writer.drain()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--kinds", nargs="*", default=FAULTS)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--twins", type=float, default=0.0)
    parser.add_argument("--paid")
    server = Server(**vars(parser.parse_args()))
    with server:
        print(server.url, flush=True)
        while True:
            time.sleep(60)


if __name__ == "__main__":
    main()
